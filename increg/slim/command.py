"""`increg slim`: writes the smaller net of a pruned one, having checked that both compute the same, and times both."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from caffe_compat import proto
from caffe_compat.errors import CaffeError, WeightError
from caffe_compat.net import Net
from caffe_compat.proto import Document
from caffe_compat.tools.flags import add_python_flag, device_of, positive
from caffe_compat.tools.show import table

from ..budget import MATRIX, budget, layer_budgets
from .check import check_same, random_inputs, slim
from .export import before_and_after, export, forward_passes, not_gathered
from .latency import fastest, running
from .plan import Plan
from .rewrite import rewrite

HELP = "write the smaller net that a pruned one amounts to"
BATCHES = (1, 16)
EXPORTS = ("torch", "onnx")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The net, its weights, where the smaller one goes, what to check with and what to time."""
    parser.add_argument("net", metavar="NET", help="the network definition (prototxt), best the one to deploy")
    parser.add_argument("weights", metavar="WEIGHTS", help="its pruned weights (.caffemodel)")
    parser.add_argument("--out", metavar="DIR", required=True,
                        help="the folder to write to, under the names of NET and WEIGHTS")
    parser.add_argument("--also", metavar="NET", action="append", default=[],
                        help="another definition of the same net (train_val, say) to make smaller in the same way")
    parser.add_argument("--inputs", metavar="FILE", action="append", default=[],
                        help="images to check with, beside random ones: .npy of the shape of the net's input blob, any batch")
    parser.add_argument("--batches", metavar="N,N", default=",".join(map(str, BATCHES)),
                        help="batch sizes to time both nets with (default %(default)s); 0 to time none")
    parser.add_argument("--to", choices=EXPORTS, action="append", default=[],
                        help="export the net, too, with convolutions that skip columns of zeros: to a folder DIR/torch, or "
                        "DIR/<NET>.onnx")
    parser.add_argument("--round-to", metavar="N", type=positive, default=1,
                        help="keep so many rows of each layer that their number is a multiple of N: what is left may run "
                        "faster with 8 or 16 (default %(default)s)")
    parser.add_argument("--gpu", help="time on this GPU, too")
    add_python_flag(parser)


def run(args: argparse.Namespace) -> None:
    """The command: nothing is written unless all checks passed."""
    batches = _batches(args.batches)
    outputs = _outputs(args)
    document, net = pruned_net(args.net, args.weights)
    inputs = random_inputs(net) + [given for path in args.inputs for given in read_inputs(path, net)]
    smaller, result, found = slim(net, document, scattered=bool(args.to), round_to=args.round_to)
    worst = check_same(net, result, found, inputs)
    others = [rewrite(proto.read_text(path, "NetParameter"), found.edits, net.layer_dict) for path in args.also]
    os.makedirs(args.out, exist_ok=True)
    for path, each in zip(outputs, [smaller, *others]):
        proto.write_text(path, each.message)
    result.save(outputs[-1])
    show(found)
    print(f"outputs are the same: the largest difference in any blob is {worst:.1e} of its largest value, on "
          f"{len(inputs)} batches of {_what(net)}")
    before, after = (budget(layer_budgets(each), MATRIX) for each in (net, result))
    theory = before.operations / after.operations
    print(f"multiply-adds {before.operations:,} -> {after.operations:,}, {theory:.3f}x fewer; weights {before.weights:,} -> "
          f"{after.weights:,}, {before.weights / after.weights:.3f}x fewer\n({MATRIX.text})")
    if after.operations_left < 0.99 * after.operations:
        print(f"rows and columns of zeros that remain scattered: skipping them would leave {after.operations_left:,.0f} "
              "multiply-adds")
    for target in args.to:
        path = Path(args.out) / ("torch" if target == "torch" else f"{Path(args.net).stem}.onnx")
        worst = export(result, smaller, target, path).comparison.worst
        print(f"{path}: written, and differs by {worst:.1e} of a blob's standard deviation at most")
    if args.to and (names := not_gathered(result)):
        print("columns of zeros that exports multiply all the same, as gathering the others would take longer: "
              f"{', '.join(names)}")
    if net.inputs and found.smaller:
        show_latency(batches, device_of(args.gpu), (document, net), (smaller, result), theory)
    if len(net.inputs) == 1 and "torch" in args.to:
        show_exports(batches, device_of(args.gpu), net, result, before.operations / after.operations_left)
    print("written: " + ", ".join(map(str, outputs)))


def pruned_net(path: str, weights: str) -> tuple[Document, Net]:
    """A net in the TEST phase with weights for all of its layers; raises `WeightError` where some are missing."""
    document = proto.read_text(path, "NetParameter")
    net = Net(document, "TEST")
    report = net.copy_from(weights)
    if report.missing:
        raise WeightError(f"{weights}: has no weights for {', '.join(report.missing)}; is it of the net in {path}?")
    return document, net


def _outputs(args: argparse.Namespace) -> list[Path]:
    """What is to be written: the definitions and, last, the weights; not over what is read."""
    names = [args.net, *args.also, args.weights]
    outputs = [Path(args.out) / Path(name).name for name in names]
    if len(set(outputs)) < len(outputs):
        raise CaffeError(f"the files to write have the same names: {', '.join(map(str, outputs))}; rename the originals")
    for path, name in zip(outputs, names):
        if os.path.exists(path) and os.path.exists(name) and os.path.samefile(path, name):
            raise CaffeError(f"--out {args.out}: {path} would overwrite its original; give another folder")
    return outputs


def read_inputs(path: str, net: Net) -> list[dict[str, Tensor]]:
    """Batches of the size that `net` has now from a .npy file, the last one filled up with its first images."""
    if len(net.inputs) != 1:
        raise CaffeError(f"{path}: --inputs is for nets with one Input blob; this one has {len(net.inputs)}")
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise CaffeError(f"{path}: is no .npy file of numbers: {error}") from None
    shape = net.blobs[net.inputs[0]].shape
    if not isinstance(values, np.ndarray) or values.shape[1:] != shape[1:] or not len(values) or values.dtype.kind not in "fiu":
        raise CaffeError(f"{path}: holds {getattr(values, 'dtype', 'several arrays')} {getattr(values, 'shape', '')}, expected "
                         f"numbers of shape (any, {', '.join(map(str, shape[1:]))})")
    values = np.concatenate([values, np.resize(values, (-len(values) % shape[0], *shape[1:]))]).astype(np.float32)
    return [{net.inputs[0]: torch.from_numpy(batch)} for batch in values.reshape(-1, *shape)]


def _what(net: Net) -> str:
    return "random and given images" if net.inputs else "its own data"


def show(found: Plan) -> None:
    """A line a layer that became smaller, and what stayed although it is zero."""
    if not found.smaller:
        print("no row, input or kernel border goes; only scattered weights are zero")
        return
    table(["layer", "rows", "inputs", "kernel", "notes"], [
        [edit.name, *(f"{a} -> {b}" if a != b else f"{a}" for a, b in (edit.rows, edit.inputs)), *_kernel(edit)]
        for edit in found.smaller])
    for name, (count, why) in found.zero_rows_kept().items():
        print(f"{name}: {count} rows of zeros stay: {'needed by ' + ', '.join(why[:3]) if why else _COUPLED}")


_COUPLED = "rows of other layers that are added to theirs do, or what they write matters at borders that are padded"


def _kernel(edit: object) -> tuple[str, str]:
    before = "x".join(map(str, edit.kernel)) or "-"
    notes = ["gets a bias"] if edit.bias else []
    if not edit.crops:
        return before, ", ".join(notes)
    if any(any(crop.inputs) for crop in edit.crops):
        notes.append("a Slice cuts its bottom")
    if any(any(crop.outputs) for crop in edit.crops):
        notes.append("padded for one side, a Slice cuts its top")
    if any(crop.inputs[1] or crop.outputs[1] for crop in edit.crops):
        notes.append("for this size of image only")
    return f"{before} -> {'x'.join(str(crop.kernel) for crop in edit.crops)}", ", ".join(notes)


def show_latency(batches: Sequence[int], gpu: torch.device | None, before: tuple[Document, Net], after: tuple[Document, Net],
                 theory: float) -> None:
    """Times both nets side by side on the CPU, and on the GPU that was asked for."""
    for device in [torch.device("cpu"), *([gpu] if gpu else [])]:
        for batch in batches:
            passes = {name: running(*each, batch, device) for name, each in (("before", before), ("after", after))}
            times = fastest(passes, device)
            print(_compared(f"{device}, batch {batch}", times["before"], times["after"], theory))


def show_exports(batches: Sequence[int], gpu: torch.device | None, net: Net, slimmed: Net, theory: float) -> None:
    """Times the exports to PyTorch, the dense one and the gathered one, side by side, in the memory formats that are faster."""
    for device in [torch.device("cpu"), *([gpu] if gpu else [])]:
        for batch in batches:
            shape = (batch, *net.blobs[net.inputs[0]].shape[1:])
            times = fastest(forward_passes(net, slimmed, shape, device), device)
            print(_compared(f"PyTorch, {device}, batch {batch}", *before_and_after(times), theory))


def _compared(what: str, before: float, after: float, theory: float) -> str:
    speedup = before / after
    return (f"{what}: {1e3 * before:.2f} ms -> {1e3 * after:.2f} ms, {speedup:.2f}x as fast, {100 * speedup / theory:.0f} % of "
            f"{theory:.2f}x")


def _batches(text: str) -> list[int]:
    """The batch sizes to time, none for 0."""
    words = text.split(",")
    if not all(word.strip().isdigit() for word in words):
        raise CaffeError(f"--batches {text}: expected whole numbers, separated by commas")
    return [size for size in map(int, words) if size]
