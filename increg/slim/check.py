"""`slim`: the smaller net of a pruned one, and the check that both compute the same."""

from __future__ import annotations

import torch
from torch import Tensor

from caffe_compat.errors import CaffeError, NetError
from caffe_compat.net import Net
from caffe_compat.proto import Document

from .matrices import TYPES
from .plan import Plan, plan
from .rewrite import rewrite

#: The largest difference allowed, as a share of a blob's largest value (or of 1, if that is larger).
TOLERANCE = 1e-5
#: How large the random images are that nets are compared with, and how many there are of each.
SCALES, SEED = (1.0, 60.0), 1


def slim(net: Net, document: Document, *, scattered: bool = False, round_to: int = 1) -> tuple[Document, Net, Plan]:
    """The definition of the smaller net, that net with its weights, and how it was made from `net`.

    `net` was built from `document` in the TEST phase, on the CPU, and holds the pruned weights. Rows stay, although they could
    go, that make up a multiple of `round_to` in a layer (in each of its groups): convolutions are written for blocks of
    channels. Raises `CaffeError` if there is nothing to take away; with `scattered`, only if no weight is zero.
    """
    found = plan(net, round_to)
    if not found.smaller and not (scattered and any(bool((each.weight == 0).any()) for each in found.matrices.values())):
        raise CaffeError(f"{document.path}: nothing to slim: no row, no input channel and no border of a kernel is zero "
                         f"throughout and without effect{_left(found)}")
    smaller = rewrite(document, found.edits, net.layer_dict)
    result = Net(smaller, "TEST", device=net.device)
    load(result, net, found)
    return smaller, result, found


def _left(found: Plan) -> str:
    """What else there is that is zero."""
    zeros = sum(int((matrix.weight == 0).sum()) for matrix in found.matrices.values())
    total = sum(matrix.weight.numel() for matrix in found.matrices.values())
    if not zeros:
        return ". The weights have no zeros: are they those of a pruned net?"
    return f". {100 * zeros / total:.1f} % of the weights are zero, but scattered; a gathered convolution can skip columns"


def load(result: Net, net: Net, found: Plan) -> None:
    """Copies parameters from `net`, those that the plan changes as it says."""
    for layer in result.layers:
        if not layer.blobs:
            continue
        edit, source = found.edits.get(layer.name), net.params[layer.name]
        for k, blob in enumerate(layer.blobs):
            values = edit.blobs.get(k) if edit else None
            if values is None:
                values = source[k].tensor.detach()
            if tuple(values.shape) != blob.shape:
                raise NetError(f"{layer.where}: parameter {k} of the smaller net is {blob.shape}, its values are "
                               f"{tuple(values.shape)}", layer.name)
            blob.write(values.cpu().numpy())


def random_inputs(net: Net) -> list[dict[str, Tensor]]:
    """Images to compare nets with, for each Input blob; one empty entry for a net that has data of its own."""
    if not net.inputs:
        return [{}]
    rng = torch.Generator().manual_seed(SEED)
    return [{name: torch.randn(net.blobs[name].shape, generator=rng) * scale for name in net.inputs} for scale in SCALES]


def check_same(net: Net, smaller: Net, found: Plan, inputs: list[dict[str, Tensor]]) -> float:
    """Runs both nets on each of `inputs`; returns the largest difference found in any blob that both have, as a share of
    the blob's largest value. Raises `NetError` if it exceeds `TOLERANCE`, or if outputs are missing."""
    if smaller.outputs != net.outputs:
        raise NetError(f"the smaller net has the outputs {', '.join(smaller.outputs)}, the pruned one {', '.join(net.outputs)}")
    kept = {name: torch.from_numpy(found.kept[ids]) for layer in net.layers
            for name, ids in zip(net.top_names[layer.name], found.channels.tops[layer.name])}
    worst = 0.0
    for given in inputs:
        for each in (net, smaller):
            for name, values in given.items():
                each.blobs[name].write(values.numpy())
            each.forward()
        scales = _scales(net)
        for name in smaller.blobs:
            if name in kept:
                worst = max(worst, _difference(name, net.blobs[name].tensor.detach(), smaller.blobs[name].tensor.detach(),
                                               kept[name], scales[name]))
    return worst


def _scales(net: Net) -> dict[str, float]:
    """By blob, what differences are measured with: its largest value, or 1, or (the rounding of large values stays where
    they are squashed) that of what it was made from without a product of matrices."""
    scales: dict[str, float] = {}
    for layer in net.layers:
        before = [] if layer.type in TYPES else [scales[name] for name in layer.spec.bottom]
        for name in net.top_names[layer.name]:
            values = net.blobs[name].tensor.detach()
            scales[name] = max(1.0, float(values.abs().max()) if values.numel() else 1.0, *before)
    return scales


def _difference(name: str, before: Tensor, after: Tensor, kept: Tensor, scale: float) -> float:
    expected = before[:, kept.to(before.device)] if before.dim() > 1 else before
    if expected.shape != after.shape:
        raise NetError(f"blob {name} of the smaller net is {tuple(after.shape)}, expected {tuple(expected.shape)}", blob=name)
    if not expected.numel():
        return 0.0
    found = float((expected - after).abs().max()) / scale
    if not found <= TOLERANCE:  # also NaN
        raise NetError(f"blob {name} of the smaller net differs by {found:.2g} of its largest value, {scale:.3g}; allowed is "
                       f"{TOLERANCE:g}. Nothing was written", blob=name)
    return found
