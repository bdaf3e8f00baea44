"""`Channels`: which channels of a net's blobs are one, found by following its bottoms and tops.

A channel is what a row of one layer writes and a column of another reads. Layers between them pass channels on, put
them side by side (Concat), take them apart (Slice, Flatten) or add them up (Eltwise); channels that are added become
one, and so do those of layers that share a parameter. A depthwise convolution writes a channel of its own for each that
it reads.

What a layer of an unknown kind reads is needed, and what it writes is given: neither can be taken away. Nor can outputs
of the net.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from caffe_compat.layers.base import Layer
from caffe_compat.net import Net

from .groups import Layout

Shapes = list[tuple[int, ...]]

#: Layers whose top has the channels of their bottom.
PASSING = frozenset((
    "AbsVal", "BNLL", "BatchNorm", "Bias", "Clip", "Dropout", "ELU", "Exp", "LRN", "Log", "PReLU", "Pooling", "Power", "ReLU",
    "Scale", "Sigmoid", "Split", "Swish", "TanH", "Threshold",
))


class Channels:
    """The channels of `net`, by number; those that go together have the same.

    `layouts` names the layers whose weights are matrices of rows and columns, as `groups.Layout` sees them. With `exact`
    a channel passes only where taking it away leaves all others as they are: not through LRN across channels, nor
    through a Scale or Bias of several axes.

    bottoms, tops: by layer name, for each blob the number of each of its channels (axis 1)
    reads:         by layer name, (group, columns): the channel that each column reads
    writes:        by layer name, (rows,): the channel that each row writes
    needed, given: (numbers,) bool: read, written by something that cannot be pruned
    reasons:       (channels, why they are needed or given), for messages
    """

    def __init__(self, net: Net, layouts: Mapping[str, Layout], *, exact: bool = False) -> None:
        self.bottoms: dict[str, list[np.ndarray]] = {}
        self.tops: dict[str, list[np.ndarray]] = {}
        self.reads: dict[str, np.ndarray] = {}
        self.writes: dict[str, np.ndarray] = {}
        self._layouts, self._exact = layouts, exact
        self._parent: list[int] = []
        self.reasons: list[tuple[np.ndarray, str]] = []
        self._needed: list[np.ndarray] = []
        self._given: list[np.ndarray] = []
        #: By the address of a parameter, the first layer that has it, its shape, and the channels along its axes.
        self._parameters: dict[int, tuple[str, tuple[int, ...], list[np.ndarray]]] = {}
        blobs: dict[str, np.ndarray] = {}
        for layer in net.layers:
            tops = net.top_names[layer.name]
            bottoms = [blobs[name] for name in layer.spec.bottom]
            results = self._pass(layer, bottoms, [net.blobs[name].shape for name in layer.spec.bottom],
                                 [net.blobs[name].shape for name in tops])
            known = results is not None
            if results is None:
                results = [self._own(net.blobs[name].shape) for name in tops]
                self._fix(f"{layer.name} ({layer.type})", needed=bottoms, given=results)
            self.bottoms[layer.name], self.tops[layer.name] = bottoms, results
            self._meet(layer, known)
            blobs.update(zip(tops, results))
        for name in net.outputs:
            self._fix(f"output {name}", needed=[blobs[name]])
        self._finish()

    def _finish(self) -> None:
        """Puts the number that stands for all that are one in the place of each."""
        number = np.array([self._root(channel) for channel in range(len(self._parent))], dtype=np.int64)
        for arrays in (self.reads, self.writes):
            arrays.update({name: number[ids] for name, ids in arrays.items()})
        for lists in (self.bottoms, self.tops):
            lists.update({name: [number[ids] for ids in blobs] for name, blobs in lists.items()})
        self.reasons = [(number[ids], why) for ids, why in self.reasons]
        self.needed, self.given = np.zeros((2, len(number)), dtype=bool)
        for mask, arrays in ((self.needed, self._needed), (self.given, self._given)):
            for ids in arrays:
                mask[number[ids]] = True

    # -- one layer --------------------------------------------------------------------------------------------------

    def _pass(self, layer: Layer, bottoms: list[np.ndarray], in_shapes: Shapes, out_shapes: Shapes) -> list[np.ndarray] | None:
        """The channels of the tops, None for a layer whose channels are its own business."""
        if layer.name in self._layouts:
            return self._matrix(layer, bottoms, len(out_shapes))
        if layer.type == "Silence":
            return []
        if layer.type in PASSING and len(bottoms) == 1 and all(shape[1:2] == in_shapes[0][1:2] for shape in out_shapes):
            return None if self._exact and mixes(layer, len(in_shapes[0])) else [bottoms[0]] * len(out_shapes)
        if layer.type == "Eltwise":
            self._join(bottoms, layer.name)
            return [bottoms[0]]
        if layer.type == "Concat":
            return self._concat(layer, bottoms, in_shapes, out_shapes[0])
        if layer.type == "Slice" and len(in_shapes[0]) > 1:
            return self._slice(bottoms[0], out_shapes)
        if layer.type == "Crop" and layer.canonical_axis(layer.param.axis, in_shapes[0]) > 1:
            return [bottoms[0]]  # of the other bottom only the size counts
        if layer.type in ("Flatten", "Reshape") and out_shapes[0][:1] == in_shapes[0][:1] and len(out_shapes[0]) > 1:
            return self._reshape(bottoms[0], out_shapes[0])
        return None

    def _matrix(self, layer: Layer, bottoms: list[np.ndarray], tops: int) -> list[np.ndarray] | None:
        """A Convolution or InnerProduct that can be pruned. Several bottoms go through the same weights."""
        layout = self._layouts[layer.name]
        self._join(bottoms, layer.name)
        width = layout.group * layout.channels
        if layer.param.axis != 1 or width % len(bottoms[0]) or (layout.positions > 1 and width != len(bottoms[0])):
            return None
        channels = np.repeat(bottoms[0], width // len(bottoms[0]))
        self.reads[layer.name] = np.repeat(channels, layout.positions).reshape(layout.group, -1)
        self.writes[layer.name] = self._new(layout.rows)
        return [self.writes[layer.name]] * tops

    def _concat(self, layer: Layer, bottoms: list[np.ndarray], in_shapes: Shapes,
                out_shape: tuple[int, ...]) -> list[np.ndarray]:
        if len(bottoms) > 1 and out_shape[1:2] == (sum(shape[1] for shape in in_shapes if len(shape) > 1),):
            return [np.concatenate(bottoms)]
        self._join(bottoms, layer.name)
        return [bottoms[0]]

    @staticmethod
    def _slice(bottom: np.ndarray, out_shapes: Shapes) -> list[np.ndarray]:
        sizes = [shape[1] for shape in out_shapes]
        return np.split(bottom, np.cumsum(sizes)[:-1]) if sum(sizes) == len(bottom) else [bottom] * len(sizes)

    def _reshape(self, bottom: np.ndarray, out_shape: tuple[int, ...]) -> list[np.ndarray] | None:
        """Channels stay, or each becomes as many as it has pixels."""
        return [np.repeat(bottom, out_shape[1] // len(bottom))] if len(bottom) and out_shape[1] % len(bottom) == 0 else None

    def _meet(self, layer: Layer, known: bool) -> None:
        """Makes one what layers with the same parameters read and write; fixes it where they use them differently."""
        for k, blob in enumerate(layer.blobs):
            if layer.name in self.writes:
                axes = [self.writes[layer.name], self.reads[layer.name].flatten()][:1 if k else 2]
            else:
                axes = self.bottoms[layer.name][:1] if known else []
            first, shape, others = self._parameters.setdefault(blob.tensor.data_ptr(), (layer.name, blob.shape, axes))
            if first == layer.name:
                continue
            if shape == blob.shape and len(axes) == len(others) and self._layouts.get(first) == self._layouts.get(layer.name):
                for pair in zip(axes, others):
                    self._join(pair, layer.name)
            else:
                self._fix(f"{layer.name} (shares a parameter with {first})", [*axes, *others], [*axes, *others])

    # -- numbers ----------------------------------------------------------------------------------------------------

    def _new(self, count: int) -> np.ndarray:
        first = len(self._parent)
        self._parent.extend(range(first, first + count))
        return np.arange(first, first + count)

    def _own(self, shape: tuple[int, ...]) -> np.ndarray:
        return self._new(shape[1] if len(shape) > 1 else 1)

    def _fix(self, why: str, needed: Sequence[np.ndarray], given: Sequence[np.ndarray] = ()) -> None:
        self._needed += needed
        self._given += given
        self.reasons += [(ids, why) for ids in (*needed, *given)]

    def _join(self, blobs: Sequence[np.ndarray], layer: str) -> None:
        """Makes the channels of several blobs one, or keeps all of them if they do not match."""
        one = blobs[0]
        for other in blobs[1:]:
            if len(one) != len(other):
                self._fix(f"{layer} (joins blobs of different channels)", [one, other], [one, other])
                continue
            for a, b in zip(map(self._root, one.tolist()), map(self._root, other.tolist())):
                self._parent[max(a, b)] = min(a, b)

    def _root(self, channel: int) -> int:
        while self._parent[channel] != channel:
            self._parent[channel] = channel = self._parent[self._parent[channel]]
        return channel


def mixes(layer: Layer, axes: int) -> bool:
    """Whether a layer that passes the channels of a blob of so many axes on does not treat each by itself."""
    if layer.type == "LRN":
        return layer.param.norm_region == layer.param.ACROSS_CHANNELS
    return layer.type in ("Scale", "Bias") and (len(layer.blobs[0].shape) != 1 or layer.param.axis % axes != 1)
