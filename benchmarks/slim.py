"""VGG-16 and ResNet-50 pruned by a ratio and slimmed: theoretical and measured speedup, side by side.

    python benchmarks/slim.py [vgg16 resnet50] [--cases row2 spatial2 col5] [--batches 1 16] [--round-to 16] [--threads 2]

Weights are random; the rows, kernel positions or columns with the smallest L1 norm are set to zero in every convolution,
as many as give the speedup aimed at, and the net is made smaller by `increg.slim`. For rows and kernels both nets run as
Caffe nets of ours. Scattered columns no Caffe layer skips: there the exports to PyTorch are compared, of the dense net and
with gathered convolutions where they are worth while (each in the memory format that is faster), and the convolutions alone,
all of them gathered. On a busy machine use `--threads 1`: processor time is counted then. Results are in
`docs/pruning.md`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from caffe_compat import proto
from caffe_compat.memory import keep_freed_memory
from caffe_compat.net import Net
from caffe_compat.proto import Document
from increg.budget import CONV, MATRIX, Rule, budget, layer_budgets
from increg.slim import check_same, slim
from increg.slim.check import random_inputs
from increg.slim.export import before_and_after, forward_passes
from increg.slim.gathered import gathered
from increg.slim.latency import fastest, running

PROTOTXT = Path(__file__).parents[1] / "prototxt"


def rows(weight: Tensor, speedup: float) -> Tensor:
    """Of both sides of a layer 1 / sqrt(speedup) stays: rows here, and the inputs that other layers' rows make."""
    return _smallest(weight.abs().sum((1, 2, 3)), speedup ** -0.5)[:, None, None, None]


def positions(weight: Tensor, speedup: float) -> Tensor:
    """The rectangle of h x w positions that is nearest to 1 / speedup of the kernel, in its lower right corner."""
    high, wide = weight.shape[2:]
    sizes = [(h, w) for h in range(1, high + 1) for w in range(1, wide + 1)]
    h, w = min(sizes, key=lambda size: (abs(size[0] * size[1] - high * wide / speedup), abs(size[0] - size[1])))
    mask = torch.zeros(high, wide)
    mask[high - h:, wide - w:] = 1
    return mask


def columns(weight: Tensor, speedup: float) -> Tensor:
    """A share p of the columns stays, with p (1 - (1 - p)^positions) = 1 / speedup: an input channel that loses all of its
    positions takes a row of the layer before along."""
    shares = torch.linspace(0, 1, 10001, dtype=torch.float64)
    left = shares * (1 - (1 - shares) ** weight[0, 0].numel())
    kept = float(shares[(left - 1 / speedup).abs().argmin()])
    return _smallest(weight.abs().sum(0).flatten(), kept).reshape(weight.shape[1:])


def _smallest(norms: Tensor, kept: float) -> Tensor:
    """1 for the largest `kept` share of values, 0 for the others."""
    mask = torch.zeros_like(norms)
    mask[norms.argsort(descending=True)[:max(1, round(kept * len(norms)))]] = 1
    return mask


CASES: dict[str, tuple[Callable[[Tensor, float], Tensor], float]] = {
    "row2": (rows, 2), "spatial2": (positions, 2), "col5": (columns, 5)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nets", nargs="*", metavar="NET", default=["vgg16", "resnet50"])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--threads", type=int, default=2, help="torch's threads (default 2)")
    parser.add_argument("--seconds", type=float, default=5, help="time for each contender (default 5)")
    parser.add_argument("--round-to", type=int, default=1, help="rows are kept in multiples of this (default 1)")
    parser.add_argument("--gpu", type=int, help="the GPU to run on; without it the CPU")
    args = parser.parse_args()
    keep_freed_memory()  # as the commands do
    torch.set_num_threads(args.threads)
    device = torch.device("cpu" if args.gpu is None else f"cuda:{args.gpu}")
    print(f"{device}, {args.threads} threads; theory: {MATRIX.text}; for convolutions alone: {CONV.text}")
    print(f"{'':24}{'batch':>6}{'before':>11}{'after':>11}{'measured':>10}{'theory':>9}{'reached':>9}")
    for name in args.nets:
        for case in args.cases:
            measure(name, case, args.round_to, args.batches, args.seconds, device)


def measure(name: str, case: str, round_to: int, batches: list[int], seconds: float, device: torch.device) -> None:
    """A line for each batch size."""
    document, net = pruned(name, case)
    smaller, result, found = slim(net, document, scattered=True, round_to=round_to)
    check_same(net, result, found, random_inputs(net)[:1])
    clock = time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter

    def show(what: str, rule: Rule, batch: int, dense: float, after: float) -> None:
        theory = (budget(layer_budgets(net, pruned=False), rule).operations
                  / budget(layer_budgets(result), rule).operations_left)
        print(f"{name + ' ' + what:24}{batch:6}{1e3 * dense:8.1f} ms{1e3 * after:8.1f} ms{dense / after:9.2f}x{theory:8.2f}x"
              f"{100 * dense / after / theory:7.0f} %", flush=True)

    for batch in batches:
        if case.startswith("col"):
            show(f"{case}, convs alone", CONV, batch, *convolutions(net, result, batch, seconds, device, clock))
        if case.startswith("col"):
            shape = (batch, *net.blobs[net.inputs[0]].shape[1:])
            passes = forward_passes(net, result, shape, device)
        else:
            passes = {"before": running(document, net, batch, device), "after": running(smaller, result, batch, device)}
        show(case, MATRIX, batch, *before_and_after(fastest(passes, device, seconds=seconds, clock=clock)))


def pruned(name: str, case: str) -> tuple[Document, Net]:
    """The deploy net with random weights, its convolutions pruned; statistics are such that values neither grow nor vanish."""
    document = proto.read_text(PROTOTXT / name / "deploy.prototxt", "NetParameter")
    net = Net(document, "TEST", seed=1)
    generator = torch.Generator().manual_seed(1)
    choose, speedup = CASES[case]
    for layer in net.layers:
        for k, blob in enumerate(layer.blobs):
            _fill(layer.type, k, blob.tensor.data, generator)
        if layer.type == "Convolution":
            weight = layer.blobs[0].tensor.data
            weight.mul_(choose(weight, speedup))
    return document, net


def _fill(kind: str, index: int, values: Tensor, generator: torch.Generator) -> None:
    if kind in ("Convolution", "InnerProduct") and index == 0:
        values.normal_(0, (2 / values[0].numel()) ** 0.5, generator=generator)
    elif (kind == "BatchNorm" and index) or (kind == "Scale" and not index):
        values.fill_(1)
    elif kind == "Scale":
        values.normal_(0, 0.1, generator=generator)
    elif kind == "BatchNorm":
        values.zero_()


def convolutions(net: Net, slimmed: Net, batch: int, seconds: float, device: torch.device,
                 clock: Callable[[], float]) -> tuple[float, float]:
    """Seconds of all convolutions one by one: dense, each in the memory format that is faster, and gathered."""
    layers = [layer for layer in net.layers if layer.type == "Convolution"]
    dense = after = 0.0
    for layer in layers:
        passes: dict[str, Callable[[], object]] = {}
        for form, memory_format in (("NCHW", torch.contiguous_format), ("NHWC", torch.channels_last)):
            weight, *bias = (blob.tensor.detach().to(device) for blob in layer.blobs)
            x = torch.randn(batch, *net.blobs[layer.spec.bottom[0]].shape[1:], device=device)
            passes[form] = partial(F.conv2d, x.contiguous(memory_format=memory_format),
                                   weight.contiguous(memory_format=memory_format), bias[0] if bias else None,
                                   layer.window.stride, layer.window.pad)
        small = slimmed.layer_dict[layer.name]
        weight, *bias = (blob.tensor.detach() for blob in small.blobs)
        made = gathered(weight, bias[0] if bias else None, small.window.stride, (*small.window.pad, *small.window.pad))
        x = torch.randn(batch, *slimmed.blobs[small.spec.bottom[0]].shape[1:], device=device)
        passes["after"] = partial(made.to(device), x)
        with torch.inference_mode():
            times = fastest(passes, device, seconds=seconds / len(layers), rounds=4, clock=clock)
        dense += min(times["NCHW"], times["NHWC"])
        after += times["after"]
    return dense, after


if __name__ == "__main__":
    main()
