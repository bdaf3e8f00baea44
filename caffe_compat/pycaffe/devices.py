"""Moves nets that exist to another device, as Caffe's blobs move when its mode is set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..blob import Blob
from ..net import compute_in_float32

if TYPE_CHECKING:
    from .net import Net


def move_net(net: Net, device: torch.device) -> None:
    """Moves everything a net holds, values, diffs and states of layers alike; the blobs stay the same objects."""
    compute_in_float32(device)
    moved: dict[int, Any] = {}
    for step in net._steps:
        step.tensors = None
        for blob in step.tops:
            _move(blob, device, moved)
        context = step.layer.context
        context.device, context.rng = device, _move(context.rng, device, moved)
        for name, value in vars(step.layer).items():
            setattr(step.layer, name, _move(value, device, moved))
    net.context.device, net.context.rng = device, _move(net.context.rng, device, moved)
    net.device = device


def _move(value: Any, device: torch.device, moved: dict[int, Any]) -> Any:
    """The value on the device; `moved` holds (value, result) by id, so that what several places use stays one thing."""
    if id(value) in moved:
        return moved[id(value)][1]
    result = value
    if isinstance(value, Tensor):
        result = value.detach().to(device).requires_grad_(value.requires_grad)
    elif isinstance(value, torch.Generator):
        result = torch.Generator(device).manual_seed(value.initial_seed())
    elif type(value) is Blob:  # a ReshapedBlob follows its owner
        grad = value.grad
        value.tensor = _move(value.tensor, device, moved)
        value.grad = None if grad is None else grad.to(device)
    elif isinstance(value, list):
        value[:] = [_move(item, device, moved) for item in value]
    elif type(value) is tuple:
        result = tuple(_move(item, device, moved) for item in value)
    moved[id(value)] = value, result
    return result
