"""`Coupling`: which rows follow which columns, read from the bottoms and tops of a net.

A channel is what a row of one layer writes and a column of another reads. Layers between them pass channels on, put
them side by side (Concat), take them apart (Slice, Flatten) or add them up (Eltwise); channels that are added become
one, so everything written to it and everything that reads it goes together. A row is not needed when no column that
reads its channel is left; a column reads nothing when no row that writes its channel is left.

What a layer of an unknown kind reads is always needed, what it writes always there. Outputs of the net are needed.
LRN across channels is passed through, as in the reference, although a channel that nobody reads still dampens its
neighbours a little; so is a bias, which a row without weights still writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from caffe_compat.layers.base import Layer
from caffe_compat.net import Net

from .state import LayerState

#: Layers whose top has the channels of their bottom.
PASSING = frozenset((
    "AbsVal", "BNLL", "BatchNorm", "Bias", "Clip", "Dropout", "ELU", "Exp", "LRN", "Log", "PReLU", "Pooling", "Power", "ReLU",
    "Scale", "Sigmoid", "Split", "Swish", "TanH", "Threshold",
))


class Coupling:
    """Channels are numbered. `writes[i]` (rows,) and `reads[i]` (group, columns) are those of layer i, None if it has no
    part; `needed` and `given` are 1 for channels that are read and written by something that cannot be pruned."""

    def __init__(self, writes: Sequence[Tensor | None], reads: Sequence[Tensor | None], needed: Tensor,
                 given: Tensor) -> None:
        self.writes = list(writes)
        self.reads = list(reads)
        self.needed = needed
        self.given = given
        self.writers = [i for i, channels in enumerate(writes) if channels is not None]
        self.readers = [i for i, channels in enumerate(reads) if channels is not None]
        self._written = _flat([writes[i] for i in self.writers], needed.device)
        self._read = _flat([reads[i] for i in self.readers], needed.device)

    def idle_rows(self, layers: Sequence[LayerState]) -> dict[int, Tensor]:
        """By layer index, the rows that no column reads any more, if some of those are not pruned yet. Waits for the
        device."""
        return self._idle(self.needed, self._read, [layers[i].masks.columns for i in self.readers],
                          self.writers, self._written, [layers[i].masks.rows for i in self.writers])

    def idle_columns(self, layers: Sequence[LayerState]) -> dict[int, Tensor]:
        """By layer index, the columns (group, columns) that no row writes to any more, likewise."""
        return self._idle(self.given, self._written, [layers[i].masks.rows for i in self.writers],
                          self.readers, self._read, [layers[i].masks.columns for i in self.readers])

    @staticmethod
    def _idle(fixed: Tensor, users: Tensor, users_pruned: list[Tensor], indices: list[int], channels: Tensor,
              pruned: list[Tensor]) -> dict[int, Tensor]:
        if not indices:
            return {}
        used = fixed.index_add(0, users, (~_flat(users_pruned, fixed.device)).to(fixed.dtype))
        idle = used[channels] == 0
        if not bool((idle & ~_flat(pruned, fixed.device)).any()):
            return {}
        parts = idle.split([mask.numel() for mask in pruned])
        news = [(index, part.reshape(mask.shape)) for index, part, mask in zip(indices, parts, pruned)
                if bool((part & ~mask.flatten()).any())]
        return dict(news)


def _flat(tensors: Sequence[Tensor], device: torch.device) -> Tensor:
    """All values of several tensors in one; long integers if there are none."""
    return torch.cat([tensor.flatten() for tensor in tensors]) if tensors else torch.empty(0, dtype=torch.long, device=device)


def as_reference(layers: Sequence[LayerState], device: torch.device) -> Coupling:
    """What the reference takes for granted: layer L - 1 writes what layer L reads, except for the first Convolution and
    the first InnerProduct."""
    writes: list[Tensor | None] = [None] * len(layers)
    reads: list[Tensor | None] = [None] * len(layers)
    firsts = {next((layer.index for layer in layers if layer.is_conv is kind), -1) for kind in (True, False)}
    total = 0
    for before, layer in pairwise(layers):
        if layer.index in firsts:
            continue
        layout = layer.layout
        number = max(before.layout.rows, layout.group * layout.channels)
        writes[before.index] = total + torch.arange(before.layout.rows, device=device)
        channels = total + torch.arange(layout.group * layout.channels, device=device)
        reads[layer.index] = channels.repeat_interleave(layout.positions).reshape(layout.group, -1)
        total += number
    needed, given = torch.ones(2, total, dtype=torch.int32, device=device)
    for before, layer in zip(writes, reads[1:]):
        if before is not None and layer is not None:
            needed[layer] = 0
            given[before] = 0
    return Coupling(writes, reads, needed, given)


def from_net(net: Net, layers: Sequence[LayerState], device: torch.device) -> Coupling:
    """The coupling that the net's blobs say."""
    tracer = _Tracer({layer.name: layer for layer in layers if not layer.shared})
    for layer in net.layers:
        tracer.visit(layer, [net.blobs[name].shape for name in net.bottom_names[layer.name]],
                     [net.blobs[name].shape for name in net.top_names[layer.name]], net.top_names[layer.name])
    for name in net.outputs:
        tracer.need(tracer.blobs[name])
    number = tracer.roots()

    def tensors(by_name: dict[str, np.ndarray]) -> list[Tensor | None]:
        return [torch.from_numpy(number[by_name[layer.name]]).to(device) if layer.name in by_name else None
                for layer in layers]

    needed, given = torch.zeros(2, len(number), dtype=torch.int32, device=device)
    needed[torch.from_numpy(number[tracer.ids(tracer.needed)]).to(device)] = 1
    given[torch.from_numpy(number[tracer.ids(tracer.given)]).to(device)] = 1
    return Coupling(tensors(tracer.writes), tensors(tracer.reads), needed, given)


class _Tracer:
    """Follows channels through the layers of a net; a blob is an array with the number of each of its channels."""

    def __init__(self, layers: dict[str, LayerState]) -> None:
        self.layers = layers
        self.blobs: dict[str, np.ndarray] = {}
        self.writes: dict[str, np.ndarray] = {}
        self.reads: dict[str, np.ndarray] = {}
        self.needed: list[np.ndarray] = []
        self.given: list[np.ndarray] = []
        self._parent: list[int] = []

    def visit(self, layer: Layer, in_shapes: list[tuple[int, ...]], out_shapes: list[tuple[int, ...]],
              tops: list[str]) -> None:
        """Reads the layer's bottoms and makes its tops."""
        bottoms = [self.blobs[name] for name in layer.spec.bottom]
        results = self._pass(layer, bottoms, in_shapes, out_shapes)
        if results is None:
            for channels in bottoms:
                self.need(channels)
            results = [self._given(shape) for shape in out_shapes]
        self.blobs.update(zip(tops, results))

    def _pass(self, layer: Layer, bottoms: list[np.ndarray], in_shapes: list[tuple[int, ...]],
              out_shapes: list[tuple[int, ...]]) -> list[np.ndarray] | None:
        """The channels of the tops, None for a layer whose channels are its own business."""
        if layer.name in self.layers:
            return self._matrix(layer, bottoms, in_shapes, len(out_shapes))
        if layer.type == "Silence":
            return []
        if layer.type in PASSING and len(bottoms) == 1 and all(shape[1:2] == in_shapes[0][1:2] for shape in out_shapes):
            return [bottoms[0]] * len(out_shapes)
        if layer.type == "Eltwise":
            for other in bottoms[1:]:
                self._join(bottoms[0], other)
            return [bottoms[0]]
        if layer.type == "Concat":
            return self._concat(bottoms, in_shapes, out_shapes[0])
        if layer.type == "Slice" and all(shape[2:] == in_shapes[0][2:] for shape in out_shapes):
            return np.split(bottoms[0], np.cumsum([shape[1] for shape in out_shapes])[:-1])
        if layer.type in ("Flatten", "Reshape") and out_shapes[0][:1] == in_shapes[0][:1] and len(out_shapes[0]) > 1:
            return self._reshape(bottoms[0], out_shapes[0])
        return None

    def _matrix(self, layer: Layer, bottoms: list[np.ndarray], in_shapes: list[tuple[int, ...]],
                tops: int) -> list[np.ndarray] | None:
        """A Convolution or InnerProduct that can be pruned. Several bottoms go through the same weights."""
        layout = self.layers[layer.name].layout
        for other in bottoms[1:]:
            self._join(bottoms[0], other)
        width = layout.group * layout.channels
        if layer.param.axis != 1 or width % len(bottoms[0]) or (layout.positions > 1 and width != len(bottoms[0])):
            return None
        channels = np.repeat(bottoms[0], width // len(bottoms[0]))
        self.reads[layer.name] = np.repeat(channels, layout.positions).reshape(layout.group, -1)
        self.writes[layer.name] = self._new(layout.rows)
        return [self.writes[layer.name]] * tops

    def _concat(self, bottoms: list[np.ndarray], in_shapes: list[tuple[int, ...]],
                out_shape: tuple[int, ...]) -> list[np.ndarray]:
        if out_shape[1] == sum(shape[1] for shape in in_shapes) and len(bottoms) > 1:
            return [np.concatenate(bottoms)]
        for other in bottoms[1:]:
            self._join(bottoms[0], other)
        return [bottoms[0]]

    def _reshape(self, bottom: np.ndarray, out_shape: tuple[int, ...]) -> list[np.ndarray] | None:
        """Channels stay, or each becomes as many as it has pixels."""
        return [np.repeat(bottom, out_shape[1] // len(bottom))] if len(bottom) and out_shape[1] % len(bottom) == 0 else None

    def need(self, channels: np.ndarray) -> None:
        """Something that cannot be pruned reads these."""
        self.needed.append(channels)

    def _new(self, count: int) -> np.ndarray:
        first = len(self._parent)
        self._parent.extend(range(first, first + count))
        return np.arange(first, first + count)

    def _given(self, shape: tuple[int, ...]) -> np.ndarray:
        channels = self._new(shape[1] if len(shape) > 1 else 1)
        self.given.append(channels)
        return channels

    def _join(self, one: np.ndarray, other: np.ndarray) -> None:
        """Makes the channels of two blobs one, or keeps all of them if they do not match."""
        if len(one) != len(other):
            self.need(one)
            self.need(other)
            self.given += [one, other]
            return
        for a, b in zip(map(self._root, one), map(self._root, other)):
            self._parent[max(a, b)] = min(a, b)

    def _root(self, channel: int) -> int:
        while self._parent[channel] != channel:
            self._parent[channel] = channel = self._parent[self._parent[channel]]
        return channel

    def roots(self) -> np.ndarray:
        """For every number, the one that stands for all that were joined with it."""
        return np.array([self._root(channel) for channel in range(len(self._parent))], dtype=np.int64)

    @staticmethod
    def ids(arrays: list[np.ndarray]) -> np.ndarray:
        """All numbers in `arrays`, as one array."""
        return np.concatenate([np.empty(0, np.int64), *arrays])
