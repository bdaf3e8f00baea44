"""`Matrix`: a layer's weight as rows by input channels by kernel positions, in groups, whatever its type stores."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from caffe_compat.layers.base import Layer
from caffe_compat.net import Net

from ..channels import Channels
from ..groups import Layout

#: The layers whose rows and input channels can be taken away.
TYPES = "Convolution", "Deconvolution", "InnerProduct"


def layouts(net: Net) -> dict[str, Layout]:
    """Of every layer of `TYPES`, its rows and columns; a Deconvolution's as those of the convolution it transposes."""
    found = {}
    for layer in net.layers:
        if layer.type not in TYPES:
            continue
        shape = layer.blobs[0].shape
        if layer.type == "InnerProduct":
            found[layer.name] = Layout(shape, transposed=layer.param.transpose)
        elif layer.type == "Convolution":
            found[layer.name] = Layout(shape, layer.param.group)
        else:
            group = layer.param.group
            found[layer.name] = Layout((shape[1] * group, shape[0] // group, *shape[2:]), group)
    return found


@dataclass
class Matrix:
    """The weight of a layer, and the channels (`channels.Channels`) of its rows and inputs.

    weight: (group, rows, inputs, positions), a view where the type allows it; an input of an InnerProduct is a column
    writes: (group, rows) channel of each row         reads: (group, inputs) channel of each input
    used:   (group, rows, inputs) bool, whether the row reads the input: a weight of it is not zero
    padded: whether rows read zeros beyond the borders
    shared: whether other layers have the same weight or bias
    """

    layer: Layer
    layout: Layout
    weight: Tensor
    writes: np.ndarray
    reads: np.ndarray
    used: Tensor
    padded: bool
    shared: bool

    @classmethod
    def of(cls, layer: Layer, layout: Layout, channels: Channels, shared: bool) -> Matrix:
        """The matrix of a layer that `channels` knows as one."""
        group, positions = layout.group, layout.positions
        weight = as_matrix(layer, layer.blobs[0].tensor.detach(), group)
        used = weight != 0
        return cls(
            layer, layout, weight, channels.writes[layer.name].reshape(group, -1),
            channels.reads[layer.name].reshape(group, -1, positions)[..., 0],
            used.squeeze(-1) if positions == 1 else used.any(-1),
            padded=layer.type == "Deconvolution" or (layer.type == "Convolution" and _reaches_out(layer, used)), shared=shared)

    @property
    def bias(self) -> Tensor | None:
        """(rows,), None without."""
        return self.layer.blobs[1].tensor.detach() if len(self.layer.blobs) > 1 else None

    def read_by(self, rows: np.ndarray) -> np.ndarray:
        """(group, inputs) bool: the inputs that one of `rows` (group, rows) bool reads."""
        if len(rows) == 1:
            return self.used[0, torch.from_numpy(rows[0])].any(0, keepdim=True).numpy()
        return (self.used & torch.from_numpy(rows)[..., None]).any(1).numpy()


def _reaches_out(layer: Layer, used: Tensor) -> bool:
    """Whether a position of a Convolution's kernel that is not zero lies beyond the borders at times."""
    window = layer.window
    positions = used.flatten(0, 2).any(0).reshape(window.kernel).nonzero()
    if not len(positions):
        return False
    pad, dilation, kernel = (torch.tensor(sizes) for sizes in (window.pad, window.dilation, window.kernel))
    return bool((positions.amin(0) * dilation < pad).any() or ((kernel - 1 - positions.amax(0)) * dilation < pad).any())


def as_matrix(layer: Layer, weight: Tensor, group: int) -> Tensor:
    """A weight as (group, rows, inputs, positions)."""
    if layer.type == "InnerProduct":
        return (weight.T if layer.param.transpose else weight)[None, :, :, None]
    split = weight.unflatten(0, (group, -1)).flatten(3) if weight.dim() > 2 else weight.unflatten(0, (group, -1))[..., None]
    return split.transpose(1, 2) if layer.type == "Deconvolution" else split


def from_matrix(layer: Layer, matrix: Tensor, kernel: tuple[int, ...]) -> Tensor:
    """The inverse of `as_matrix`, for positions of `kernel`; contiguous."""
    if layer.type == "InnerProduct":
        weight = matrix[0, :, :, 0]
        return (weight.T if layer.param.transpose else weight).contiguous()
    if layer.type == "Deconvolution":
        matrix = matrix.transpose(1, 2)
    return matrix.reshape(-1, matrix.shape[2], *kernel).contiguous()


def matrices(net: Net, channels: Channels) -> dict[str, Matrix]:
    """The matrix of every layer that `channels` knows as one, in the order of the net."""
    found = layouts(net)
    uses = Counter(blob.tensor.data_ptr() for layer in net.layers for blob in layer.blobs)
    return {layer.name: Matrix.of(layer, found[layer.name], channels,
                                  any(uses[blob.tensor.data_ptr()] > 1 for blob in layer.blobs))
            for layer in net.layers if layer.name in channels.writes}
