"""`plan`: what a pruned net becomes, layer by layer: new settings, new parameters, cuts."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from caffe_compat.layers.base import Layer
from caffe_compat.net import Net

from ..channels import PASSING, Channels
from .constants import constants, folded
from .crop import AxisCrop, crop_kernel, cut
from .keep import Inputs, carrier, keep
from .matrices import Matrix, from_matrix, layouts, matrices


@dataclass
class Edit:
    """What becomes of a layer: None where a setting stays.

    rows, inputs:   (before, after), of a matrix           kernel: its size before
    group, bias:    `group`; True if it gets a bias        crops: how the kernel is cut, an entry an axis
    slice_points:   of a Slice                             dim: of a Reshape, (index in shape, size)
    blobs:          the new parameters, by index
    """

    name: str
    rows: tuple[int, int] | None = None
    inputs: tuple[int, int] | None = None
    group: int | None = None
    bias: bool = False
    kernel: tuple[int, ...] = ()
    crops: list[AxisCrop] | None = None
    slice_points: list[int] | None = None
    dim: tuple[int, int] | None = None
    blobs: dict[int, Tensor] = field(default_factory=dict)

    @property
    def smaller(self) -> bool:
        """Whether any row, input or kernel position goes."""
        return self.crops is not None or any(pair and pair[0] != pair[1] for pair in (self.rows, self.inputs))


@dataclass
class Plan:
    """The edits by layer name, the channels, and which of them stay: `kept` (numbers,) bool."""

    edits: dict[str, Edit]
    channels: Channels
    kept: np.ndarray
    matrices: dict[str, Matrix]

    @property
    def smaller(self) -> list[Edit]:
        """The edits that make a layer smaller."""
        return [edit for edit in self.edits.values() if edit.smaller]

    def zero_rows_kept(self) -> dict[str, tuple[int, list[str]]]:
        """By layer: how many of the rows that stay have no weights left, and what keeps them."""
        found = {}
        for name, matrix in self.matrices.items():
            rows = self.kept[matrix.writes] & ~matrix.used.any(2).numpy()
            if rows.any():
                ids = matrix.writes[rows]
                why = [reason for some, reason in self.channels.reasons if np.isin(ids, some).any()]
                found[name] = int(rows.sum()), list(dict.fromkeys(why))
        return found


def plan(net: Net, round_to: int = 1) -> Plan:
    """What `net`, with its pruned weights, can do without; it is in the TEST phase and keeps its blobs. See `keep` for
    `round_to`."""
    channels = Channels(net, layouts(net), exact=True)
    found = matrices(net, channels)
    values = constants(net, channels, found)
    inputs = {name: Inputs.of(matrix, values[name]) for name, matrix in found.items()}
    kept = keep(channels, found, inputs, round_to)
    edits = {}
    for layer in net.layers:
        if layer.name in found:
            edit = _matrix(found[layer.name], inputs[layer.name], kept, net)
        else:
            edit = _other(layer, channels, kept, net)
        if edit is not None:
            edits[layer.name] = edit
    return Plan(edits, channels, kept, found)


def _matrix(matrix: Matrix, inputs: Inputs, kept: np.ndarray, net: Net) -> Edit | None:
    """A Convolution, Deconvolution or InnerProduct with fewer rows and inputs, and a smaller kernel."""
    layer, layout = matrix.layer, matrix.layout
    rows, columns = kept[matrix.writes], kept[matrix.reads]
    weight, bias = _folded(matrix, inputs, kept, rows, columns)
    alive = rows.any(1)
    groups = [weight[g][torch.from_numpy(rows[g])][:, torch.from_numpy(columns[g])] for g in np.flatnonzero(alive)]
    weight = torch.stack(groups)
    edit = Edit(layer.name, (rows.size, int(rows.sum())), (columns.size, int(columns.sum())), kernel=layout.shape[2:])
    edit.group = len(groups) if layout.group > 1 else None
    if layer.type == "Convolution":
        edit.crops = crop_kernel(matrix, weight, net.blobs[layer.spec.bottom[0]].shape[2:])
    if not edit.smaller:
        return None
    kernel = edit.kernel
    if edit.crops:
        weight, kernel = cut(weight, kernel, edit.crops), tuple(crop.kernel for crop in edit.crops)
    edit.blobs[0] = from_matrix(layer, weight, kernel)
    if bias is not None:
        edit.blobs[1] = bias[torch.from_numpy(rows)]
        edit.bias = matrix.bias is None
    return edit


def _folded(matrix: Matrix, inputs: Inputs, kept: np.ndarray, rows: np.ndarray,
            columns: np.ndarray) -> tuple[Tensor, Tensor | None]:
    """The weight and (group, rows) the bias, with what is taken away put into them."""
    weight, bias = matrix.weight, matrix.bias
    bias = None if bias is None else bias.reshape(rows.shape)
    gone = torch.from_numpy(np.where(inputs.removable & ~columns, inputs.values, 0))
    more = folded(matrix, gone)
    if bool((more[torch.from_numpy(rows)] != 0).any()):
        bias = more if bias is None else bias + more
    read = matrix.read_by(rows) if inputs.carried.any() else inputs.carried
    carried = (inputs.carried & read & ~columns)[0]
    if carried.any():
        into = carrier(kept, matrix, inputs, carried)
        shares = torch.from_numpy(inputs.values[0][carried] / inputs.values[0, into]).double()
        weight = weight.clone()
        weight[0, :, into] += torch.einsum("rcp,c->rp", weight[0][:, torch.from_numpy(carried)].double(), shares).float()
    return weight, bias


def _other(layer: Layer, channels: Channels, kept: np.ndarray, net: Net) -> Edit | None:
    """A layer between: parameters of its channels, the points of a Slice, the dimensions of a Reshape."""
    bottoms = [kept[ids] for ids in channels.bottoms[layer.name]]
    if not bottoms or all(mask.all() for mask in bottoms):
        return None
    mask, tops = bottoms[0], [kept[ids] for ids in channels.tops[layer.name]]
    edit = Edit(layer.name)
    if layer.type in PASSING:
        edit.blobs = {k: blob.tensor.detach()[torch.from_numpy(mask)] for k, blob in enumerate(layer.blobs)
                      if blob.shape == mask.shape and not (layer.type == "BatchNorm" and k == 2)}
    elif layer.type == "Slice" and sum(map(len, tops)) == len(mask):
        edit.slice_points = np.cumsum([top.sum() for top in tops])[:-1].tolist()
    elif layer.type == "Reshape":
        axis = layer.param.axis
        index = 1 - (axis if axis >= 0 else len(net.blobs[layer.spec.bottom[0]].shape) + 1 + axis)
        if 0 <= index < len(layer.param.shape.dim) and layer.param.shape.dim[index] > 0:
            edit.dim = index, int(tops[0].sum())
    return edit if edit.blobs or edit.slice_points or edit.dim else None
