"""`increg sensitivity`: what pruning one layer alone costs, at one ratio after the other, and the ratios that suggests.

Nothing is trained: weights are pruned at once, the net is tested, and they are put back. Layers whose rows can only go
together are pruned together, as `prune_ratios` would do it.
"""

from __future__ import annotations

import argparse
import glob
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from caffe_compat import proto
from caffe_compat.errors import CaffeError, SolverError, WeightError, did_you_mean
from caffe_compat.net import Net
from caffe_compat.tools.flags import add_python_flag, device_of, flag, positive

from . import coupling
from .accuracy import accuracy_outputs
from .config import PruneConfig, read_config
from .methods import OneShot, find_method, method_names
from .prunable import find_layers
from .pruner import Pruner
from .ratios import settle
from .runfolder import write_note
from .state import LayerState
from .ties import together

HELP = "show what pruning each layer alone costs, without training, and suggest ratios"
RATIOS = tuple(k / 10 for k in range(1, 10))
#: What accuracies, means of float32 numbers, may be off by.
ROUNDING = 1e-6
#: How the command is called in messages about the settings that its flags make.
WHERE = "--method"


@dataclass(frozen=True)
class Cost:
    """What pruning `layers`, which go together, costs at each ratio: the accuracy left, and how many times fewer
    multiply-adds the convolutions have. `groups` is how many each layer has."""

    layers: tuple[str, ...]
    groups: int
    accuracies: tuple[float, ...]
    speedups: tuple[float, ...]

    def largest(self, ratios: Sequence[float], least: float) -> float:
        """The largest of the rising `ratios` before the first with an accuracy below `least`; 0 if there is none."""
        found = 0.0
        for ratio, accuracy in zip(ratios, self.accuracies):
            if accuracy < least - ROUNDING:
                break
            found = ratio
        return found


class Scan:
    """Prunes and tests `net`, a net of the TEST phase that reads data of its own, by a one-shot `method`. An accuracy is the
    mean of `output` over `iterations` batches, the same ones each time; by default of the least of the outputs with
    "ccuracy" in their names, which is top-1.

    groups:  the layers that can be pruned, those that go together as one
    skipped: by the names of layers that cannot be pruned, why not
    """

    def __init__(self, net: Net, method: str, iterations: int, output: str = "") -> None:
        self.net = net
        self.iterations = iterations
        self.config = _config(method)
        self.outputs = _outputs(net, output)
        self._start = [(layer, state) for layer in net.layers if (state := layer.state()) is not None]
        layers = find_layers(net, 0)
        self._weights = [(layer.weight.tensor, layer.weight.tensor.detach().clone()) for layer in layers]
        self._coupling = coupling.from_net(net, layers, net.device)
        pruner = self._pruner({layer.name: 0.5 for layer in layers if self._refusal(layer) is None})
        self.groups = together(pruner.pruned, pruner.ties)
        self.skipped = {layer.name: self._refusal(layer) or layer.note for layer in pruner.layers if not layer.prunes}

    def _refusal(self, layer: LayerState) -> str | None:
        unit = self.config.unit
        if (why := unit.refusal(layer.layout)) is not None:
            return why
        groups = unit.size(layer.layout)
        return f"too few {unit.plural} to prune some: {groups}" if groups <= self.config.least_groups else None

    def _pruner(self, ratios: dict[str, float]) -> Pruner:
        """What prunes the layers of these names by their ratios, and no others."""
        layers = find_layers(self.net, 0)
        for layer in layers:
            layer.ratio, layer.explicit = np.float32(ratios.get(layer.name, 0)), True
        ties = settle(layers, self.config, self._coupling)
        return Pruner(layers, self.config, self._coupling, self.net.device, self.net, ties)

    @torch.no_grad()
    def accuracy(self) -> float:
        """Of the net as it is now."""
        for layer, state in self._start:
            layer.load_state(state)
        scores = []
        for _ in range(self.iterations):
            blobs = self.net.forward()
            scores.append(torch.stack([blobs[name].reshape(()) for name in self.outputs]))
        return float(torch.stack(scores).double().mean(0).min())

    @torch.no_grad()
    def cost(self, layers: Sequence[LayerState], ratios: Sequence[float]) -> Cost:
        """Prunes layers that go together at each ratio, tests, and puts their weights back."""
        accuracies, speedups = [], []
        for ratio in ratios:
            pruner = self._pruner({layer.name: ratio for layer in layers})
            try:
                pruner.method.before_forward(0)
                pruner.take_stock(True, lambda layer: None)
                pruner.mask_weights()
                accuracies.append(self.accuracy())
            finally:
                for weight, before in self._weights:
                    weight.copy_(before)
            speedups.append(pruner.budget().speedup)
        names = tuple(layer.name for layer in layers)
        return Cost(names, self.config.unit.size(layers[0].layout), tuple(accuracies), tuple(speedups))


def _config(method: str) -> PruneConfig:
    def prunes_at_once(name: str) -> bool:
        return issubclass(find_method(name, WHERE)[0], OneShot)

    if not prunes_at_once(method):
        raise SolverError(f"{WHERE}: {method} prunes while it trains, and nothing is trained here; expected one of "
                          f"{', '.join(filter(prunes_at_once, method_names()))}")
    message = proto.parse_text("", "SolverParameter", dialect=proto.INCREG).message
    message.prune_method = method
    return read_config(message, WHERE)


def _outputs(net: Net, output: str) -> list[str]:
    if net.inputs:
        raise CaffeError(f"{net.path}: reads no data of its own ({', '.join(net.inputs)} must be given); take the net that is "
                         "tested while training (train_val.prototxt)")
    found = [name for name in accuracy_outputs(net.outputs, output) if net.blobs[name].count == 1]
    if not found:
        looked = f"no output {output}" if output else 'no output with "ccuracy" in its name'
        known = [name if (count := net.blobs[name].count) == 1 else f"{name} (no single number, but {count})"
                 for name in net.outputs]
        raise CaffeError(f"{net.path}: {looked}; name the one to watch with --output, of which more must be better. There "
                         f"{'is' if len(net.outputs) == 1 else 'are'} {', '.join(known) or 'none'}"
                         f"{did_you_mean(output, net.outputs) if output else ''}")
    return found


# -- the command ------------------------------------------------------------------------------------------------------

def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The net, its weights, how they are pruned, and what is tested."""
    parser.add_argument("net", metavar="NET", help="the network definition that training tests (train_val.prototxt)")
    parser.add_argument("weights", metavar="WEIGHTS", help="its trained weights (.caffemodel)")
    parser.add_argument("--method", default="L1_Row", metavar="METHOD",
                        help="L1, L2, Largest or Random, _, and Row, Col, Channel, Spatial or Weight (default %(default)s)")
    parser.add_argument("--ratios", nargs="+", type=float, default=list(RATIOS), metavar="R",
                        help="the shares of a layer's groups to prune (default 0.1 to 0.9)")
    parser.add_argument("--points", type=float, default=1.0, metavar="P",
                        help="suggest the largest ratios that cost a layer at most so many points of accuracy (default 1)")
    flag(parser, "iterations", type=positive, default=50, help="how many batches to test with (default 50)")
    parser.add_argument("--output", metavar="BLOB", default="",
                        help='the output to watch (default: the least that has "ccuracy" in its name)')
    parser.add_argument("--json", metavar="FILE", help="write all numbers to FILE")
    flag(parser, "gpu", help="the GPU to run on; without it the CPU")
    add_python_flag(parser)


def run(args: argparse.Namespace) -> None:
    """A line for each layer, and prune_ratios to begin with."""
    ratios = sorted(set(args.ratios))
    if not 0 < ratios[0] <= ratios[-1] < 1:
        raise CaffeError(f"--ratios: found {', '.join(f'{ratio:g}' for ratio in ratios)}, expected numbers between 0 and 1")
    if args.json and not Path(args.json).resolve().parent.is_dir():
        raise CaffeError(f"--json {args.json}: there is no such folder to write to")
    net = Net(args.net, "TEST", device=device_of(args.gpu) or torch.device("cpu"), keep_blobs=False)
    missing = net.copy_from(args.weights).missing
    if missing:
        raise WeightError(f"{args.weights}: has no weights for {', '.join(missing)}; is it of the net in {args.net}?")
    scan = Scan(net, args.method, args.iterations, args.output)
    before = scan.accuracy()
    print(f"{', '.join(scan.outputs)} in percent with one layer pruned by {args.method} and the others whole "
          f"({100 * before:.2f} with none pruned), {args.iterations} batches:\n")
    titles, unit = [" + ".join(layer.name for layer in group) for group in scan.groups], scan.config.unit.plural
    widths = [max(map(len, [*titles, "layer"])), max(len(unit), 6), *(5 for _ in ratios)]
    _line(widths, "layer", unit, *(f"{ratio:g}" for ratio in ratios))
    costs = []
    for title, group in zip(titles, scan.groups):
        cost = scan.cost(group, ratios)
        _line(widths, title, str(cost.groups), *(f"{100 * value:.2f}" for value in cost.accuracies))
        costs.append(cost)
    for name, why in scan.skipped.items():
        print(f"{name} is not pruned: {why}")
    suggested = {name: ratio for cost in costs if (ratio := cost.largest(ratios, before - args.points / 100))
                 for name in cost.layers}
    print(f"\nThe largest ratios that cost at most {args.points:g} points each. All together cost more; training wins some "
          "of it back.\n")
    print("\n".join(f'prune_ratios {{ layer: "{glob.escape(name)}" prune_ratio: {ratio:g} }}'
                    for name, ratio in suggested.items()) or "none")
    if args.json:
        write_note(args.json, {"net": args.net, "weights": args.weights, "method": args.method, "iterations": args.iterations,
                               "before": before, "ratios": ratios, "costs": [asdict(cost) for cost in costs],
                               "skipped": scan.skipped, "suggested": suggested})


def _line(widths: Sequence[int], *cells: str) -> None:
    """Prints a line of the table at once: a scan of a large net takes long."""
    print("  ".join(cell.ljust(width) for cell, width in zip(cells, widths)).rstrip(), flush=True)
