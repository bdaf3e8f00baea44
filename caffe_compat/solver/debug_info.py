"""SolverParameter.debug_info: the mean absolute value of every blob, parameter and gradient, in Caffe's lines."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import torch
from torch import Tensor

from ..net import Net

log = logging.getLogger(__name__)


def forward_backward(net: Net) -> Tensor:
    """`net.forward_backward()`, and a line for everything that it computes."""
    net.run()
    show_forward(net)
    diffs: dict[tuple[int, int], Tensor] = {}
    for position, step in enumerate(net._steps):
        for k, tensor in enumerate(step.tensors):
            if tensor.requires_grad:
                tensor.register_hook(lambda diff, key=(position, k): diffs.update({key: diff}))
    net.propagate()
    _show_backward(net, diffs)
    return net.loss


def show_forward(net: Net) -> None:
    """The tops and parameters of each layer after a forward pass; a blob that is changed in place has several lines."""
    for step in net._steps:
        name = step.layer.name
        for top, tensor in zip(step.top_names, step.tensors):
            log.info("    [Forward] Layer %s, top blob %s data: %g", name, top, _mean(tensor))
        labels = [param.name for param in step.layer.spec.param]
        for i, blob in enumerate(step.layer.blobs):
            label = labels[i] if i < len(labels) and labels[i] else i
            log.info("    [Forward] Layer %s, param blob %s data: %g", name, label, _mean(blob.tensor))


def _show_backward(net: Net, diffs: dict[tuple[int, int], Tensor]) -> None:
    """The gradients of bottoms and parameters, the last layer first; `diffs` are by the step and top they belong to."""
    for step in reversed(net._steps):
        if not step.need_backward:
            continue
        name = step.layer.name
        for k, (bottom, source) in enumerate(zip(step.layer.spec.bottom, step.sources)):
            if k not in step.cut:
                log.info("    [Backward] Layer %s, bottom blob %s diff: %g", name, bottom, _mean(diffs.get(source)))
        for i, blob in enumerate(step.layer.blobs):
            if blob.tensor.requires_grad:
                log.info("    [Backward] Layer %s, param blob %d diff: %g", name, i, _mean(blob.grad))
    data = [learnable.blob.tensor.detach() for learnable in net.learnable]
    grads = [learnable.blob.grad for learnable in net.learnable if learnable.blob.grad is not None]
    log.error("    [Backward] All net params (data, diff): L1 norm = (%g, %g); L2 norm = (%g, %g)",
              _norm(data, 1), _norm(grads, 1), _norm(data, 2), _norm(grads, 2))


def _mean(tensor: Tensor | None) -> float:
    return 0.0 if tensor is None else float(tensor.detach().abs().mean())


def _norm(tensors: Iterable[Tensor], order: int) -> float:
    norms = [torch.linalg.vector_norm(tensor, order) for tensor in tensors]
    return float(torch.linalg.vector_norm(torch.stack(norms), order)) if norms else 0.0
