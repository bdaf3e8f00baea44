"""`LayerState`: everything pruning knows of one layer; and how all of them go into a snapshot and come back.

A SolverState of the increg dialect has, for every learnable blob in order, a `history_score` and a `history_punish` of
the weight's shape: zeros in the place of a bias, empty ones for layers that are not pruned. Scores stand in the part of
the blob that the unit's `slot` names, punishments in all of it.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from caffe_compat.blob import Blob
from caffe_compat.errors import WeightError
from caffe_compat.layers.base import format_shape
from caffe_compat.net_builder import Learnable
from caffe_compat.proto import Document

from .groups import Layout, Masks
from .table import GroupTable
from .units import Unit, Weight

_f = np.float32
ZERO = _f(0)


@dataclass
class LayerState:
    """A Convolution or InnerProduct layer that takes part in pruning, also if only through its neighbours.

    where:       `conv2 (net.prototxt:41)`, for messages
    index:       its number in the order of the net, as the reference's lines and SolverState count layers
    learnable:   the index of its weight among the solver's parameters and histories
    outputs:     pixels of its top: how often its weights are used on one image
    ratio, ratio_step, update: its PruneParameter (prune_ratio, prune_ratio_step, IF_update_row_col)
    decays:      whether it has weight decay
    shared:      whether other layers use the same weight
    explicit:    whether the net or the solver gives its ratio, be it 0
    note:        what is to be said of its ratio
    table_index: its number among the layers being pruned, None if its ratio is 0
    ratio_now:   what this stage aims at (current_prune_ratio)
    last_feasible, last_infeasible: ratios reached by the last stage that was good, and by the last that was bad
    num_rows, num_columns: how many count as pruned; the masks say which
    settled:     whether its method has pruned all that it is going to prune, in methods that do not go by the ratio
    finished:    the iteration at which this stage's aim was found reached, None before
    """

    name: str
    where: str
    kind: str
    index: int
    weight: Blob
    learnable: int
    layout: Layout
    outputs: int
    ratio: np.float32
    ratio_step: np.float32
    update: bool
    decays: bool
    shared: bool
    masks: Masks
    table_index: int | None = None
    ratio_now: np.float32 = ZERO
    last_feasible: np.float32 = ZERO
    last_infeasible: np.float32 = ZERO
    num_rows: int = 0
    num_columns: float = 0.0
    pruned_ratio: np.float32 = field(default=ZERO, init=False)
    pruned_ratio_row: np.float32 = field(default=ZERO, init=False)
    pruned_ratio_column: np.float32 = field(default=ZERO, init=False)
    settled: bool = False
    finished: int | None = None
    explicit: bool = True
    note: str = ""

    @property
    def is_conv(self) -> bool:
        """Whether it is a Convolution, not an InnerProduct."""
        return self.kind == "Convolution"

    @property
    def prunes(self) -> bool:
        """Whether groups of this layer are to be pruned."""
        return self.table_index is not None

    def take_counts(self) -> None:
        """Counts what the masks say."""
        self.num_rows, self.num_columns = self.masks.num_rows, self.masks.num_columns

    def update_ratios(self) -> None:
        """Ratios from counts, in float32: row + column - row * column."""
        row = self.pruned_ratio_row = _f(self.num_rows / self.layout.rows)
        column = self.pruned_ratio_column = _f(_f(self.num_columns) / _f(self.layout.columns))
        self.pruned_ratio = _f(_f(column + row) - _f(column * row))
        if self.masks.weights is not None:
            self.pruned_ratio = _f(int(self.masks.zeros().sum()) / (self.layout.rows * self.layout.columns))

    def compared_ratio(self, by_rows: bool) -> np.float32:
        """The pruned ratio that is compared with the aim: of rows or of columns; of weights where those are pruned."""
        if self.masks.weights is not None:
            return self.pruned_ratio
        return self.pruned_ratio_row if by_rows else self.pruned_ratio_column


# -- SolverState ------------------------------------------------------------------------------------------------------

RATIOS = {"current_prune_ratio": "ratio_now", "last_feasible_prune_ratio": "last_feasible",
          "last_infeasible_prune_ratio": "last_infeasible"}
HISTORIES = "history_score", "history_punish"
#: What `pack_values` keeps all that is not a tensor under.
PLAIN = "(plain)"


def write_ratios(state: Document, layers: Sequence[LayerState]) -> None:
    """Adds to a SolverState what each layer aims at in this stage, and the last good and bad ratios."""
    for name, attribute in RATIOS.items():
        getattr(state.message, name).add()
        state.arrays[name, 0] = np.array([getattr(layer, attribute) for layer in layers], np.float32)


def write(state: Document, layers: Sequence[LayerState], learnable: Sequence[Learnable], table: GroupTable,
          unit: Unit) -> None:
    """Adds scores and punishments to a SolverState."""
    message, arrays = state.message, state.arrays
    by_name = {layer.name: layer for layer in layers if layer.prunes}
    for i, parameter in enumerate(learnable):
        for name in HISTORIES:
            getattr(message, name).add()
        layer = by_name.get(parameter.layer_name)
        if layer is None:
            continue
        if i == layer.learnable:
            arrays["history_score", i], arrays["history_punish", i] = _blobs(layer, table, unit)
        else:
            zeros = np.zeros(layer.layout.shape, np.float32)
            arrays["history_score", i] = arrays["history_punish", i] = zeros


def _blobs(layer: LayerState, table: GroupTable, unit: Unit) -> tuple[np.ndarray, np.ndarray]:
    layout = layer.layout
    score = torch.zeros(layout.rows, layout.columns)
    unit.slot(layout, score).copy_(table.row(table.score, layer.table_index))
    if table.stray is not None:
        stray = table.row(table.stray, layer.table_index).cpu()
        score.view(-1)[:len(stray)][stray != 0] = stray[stray != 0]
    punish = unit.spread(layout, table.row(table.punish, layer.table_index), layer.weight.tensor).expand(layout.shape)
    return layout.weight(score).numpy(), np.ascontiguousarray(punish.cpu().numpy())


def read(state: Document, layers: Sequence[LayerState], parameters: int, table: GroupTable, unit: Unit) -> dict[str, Tensor]:
    """Takes scores and punishments back, of the whole net or (on an error) of none; `read_ratios` does the rest.

    Returns the groups of each layer, by its name, that are pruned according to their scores: one pruned in the very last
    update is not zero yet. Raises `WeightError` for a state without these fields, or from another net.
    """
    check_histories(state, layers, parameters)
    check_ratios(state, layers)
    marks = {}
    for layer in (layer for layer in layers if layer.prunes):
        score, punish = (layer.layout.matrix(_tensor(state.arrays[name, layer.learnable])) for name in HISTORIES)
        table.row(table.score, layer.table_index).copy_(unit.slot(layer.layout, score))
        table.row(table.punish, layer.table_index).copy_(unit.slot(layer.layout, punish))
        marked = score.reshape(-1)[:unit.size(layer.layout)]  # where the reference writes them, also for rows
        marks[layer.name] = (marked < 0).to(table.score.device)
        if table.stray is not None:
            table.row(table.stray, layer.table_index).copy_(marked.clamp(max=0))
    return marks


def check_histories(state: Document, layers: Sequence[LayerState], parameters: int) -> None:
    """Raises `WeightError` if the scores and punishments of a SolverState do not fit these layers."""
    message = state.message
    for name in HISTORIES:
        found = len(getattr(message, name, ()))
        if found != parameters:
            raise WeightError(
                f"{state.path}: found {found} {name} blobs, expected {parameters}, one a parameter. A state that was not "
                "written while pruning this net cannot be resumed; start from its .caffemodel instead (--weights)")
        for layer in (layer for layer in layers if layer.prunes):
            shape = state.arrays[name, layer.learnable].shape
            if shape != layer.layout.shape:
                raise WeightError(f"{state.path}: {name} of layer {layer.name} has shape {format_shape(shape)}, the weight "
                                  f"{format_shape(layer.layout.shape)}; is the file from another net?")


def check_ratios(state: Document, layers: Sequence[LayerState]) -> None:
    """Raises `WeightError` if the ratios of a SolverState are not those of these layers."""
    for name in RATIOS:
        found = state.arrays[name, 0].size if len(getattr(state.message, name, ())) else 0
        if found != len(layers):
            raise WeightError(f"{state.path}: {name} has {found} values, expected {len(layers)}, one for each layer that "
                              f"can be pruned: {', '.join(layer.name for layer in layers)}")


def read_ratios(state: Document, layers: Sequence[LayerState]) -> None:
    """Takes back what each layer aims at in this stage, and the last good and bad ratios."""
    for name, attribute in RATIOS.items():
        for layer, value in zip(layers, state.arrays[name, 0].reshape(-1)):
            setattr(layer, attribute, _f(value))


def restore_masks(layer: LayerState, unit: Unit, marked: Tensor | None) -> None:
    """Works out what is pruned, as the reference does when it loads weights: rows and columns of zeros, and `marked`
    groups."""
    layer.masks.set_from_zeros(layer.weight.tensor.detach())
    if isinstance(unit, Weight):
        layer.masks.add_weights(layer.weight.tensor.detach() == 0)
    if marked is not None:
        unit.prune(layer.masks, marked)
    layer.take_counts()


# -- our own extra ----------------------------------------------------------------------------------------------------

def to_extra(layer: LayerState) -> dict[str, Any]:
    """What SolverState has no field for, as JSON can hold it."""
    extra = {"rows": _pack(layer.masks.rows), "columns": _pack(layer.masks.columns), "num_rows": layer.num_rows,
             "num_columns": layer.num_columns, "finished": layer.finished, "settled": layer.settled,
             "ratio": float(layer.ratio)}
    if layer.masks.weights is not None:
        extra["weights"] = _pack(layer.masks.weights)
    return extra


def masks_from_extra(layer: LayerState, extra: dict[str, Any]) -> None:
    """Takes masks and counts back from what `to_extra` returned."""
    masks = layer.masks
    masks.set(_unpack(extra["rows"], masks.rows), _unpack(extra["columns"], masks.columns))
    masks.weights, masks.num_weights = None, 0
    if "weights" in extra:
        masks.add_weights(_unpack(extra["weights"], layer.weight.tensor))
    layer.num_rows, layer.num_columns = extra["num_rows"], extra["num_columns"]


def _pack(mask: Tensor) -> str:
    return np.packbits(mask.cpu().numpy()).tobytes().hex()


def _unpack(text: str, like: Tensor) -> Tensor:
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8), count=like.numel())
    return torch.from_numpy(bits.astype(bool)).reshape(like.shape).to(like.device)


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(values, dtype=np.float32))


def pack_values(values: dict[str, Any]) -> bytes:
    """A method's state, tensors and values that JSON holds, as bytes."""
    arrays = {name: value.detach().cpu().numpy() for name, value in values.items() if isinstance(value, Tensor)}
    plain = {name: value for name, value in values.items() if name not in arrays}
    stream = io.BytesIO()
    np.savez(stream, **arrays, **{PLAIN: np.frombuffer(json.dumps(plain).encode(), np.uint8)})
    return stream.getvalue()


def unpack_values(packed: bytes) -> dict[str, Any]:
    """The inverse of `pack_values`; tensors come on the CPU."""
    with np.load(io.BytesIO(packed)) as file:
        values = {name: torch.from_numpy(file[name]) for name in file.files if name != PLAIN}
        return values | json.loads(file[PLAIN].tobytes())
