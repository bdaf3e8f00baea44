"""`Coupling`: which rows follow which columns, by the channels that `channels.Channels` finds in a net.

A row is not needed when no column that reads its channel is left; a column reads nothing when no row that writes its
channel is left. In a grouped (or depthwise) convolution a group without columns writes nothing, and one without rows
reads nothing. `table` shows the channels that go together.

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

from caffe_compat.net import Net

from .channels import Channels
from .state import LayerState


class Coupling:
    """Channels are numbered. `writes[i]` (rows,) and `reads[i]` (group, columns) are those of layer i, None if it has no
    part; `needed` and `given` are 1 for channels that are read and written by something that cannot be pruned. `grouped`
    are the layers whose groups go when one side of them is gone."""

    def __init__(self, writes: Sequence[Tensor | None], reads: Sequence[Tensor | None], needed: Tensor,
                 given: Tensor, grouped: Sequence[int] = ()) -> None:
        self.grouped = list(grouped)
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
        idle = self._idle(self.needed, self._read, [layers[i].masks.columns for i in self.readers],
                          self.writers, self._written, [layers[i].masks.rows for i in self.writers])
        for i in self.grouped:
            masks = layers[i].masks
            empty = masks.columns.all(1).repeat_interleave(len(masks.rows) // len(masks.columns))
            _add(idle, i, empty, masks.rows)
        return idle

    def idle_columns(self, layers: Sequence[LayerState]) -> dict[int, Tensor]:
        """By layer index, the columns (group, columns) that no row writes to any more, likewise."""
        idle = self._idle(self.given, self._written, [layers[i].masks.rows for i in self.writers],
                          self.readers, self._read, [layers[i].masks.columns for i in self.readers])
        for i in self.grouped:
            masks = layers[i].masks
            empty = masks.rows.reshape(len(masks.columns), -1).all(1, keepdim=True)
            _add(idle, i, empty.expand_as(masks.columns), masks.columns)
        return idle

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


def _add(idle: dict[int, Tensor], index: int, more: Tensor, pruned: Tensor) -> None:
    """Adds more idle rows or columns of a layer, if some of them are not pruned yet."""
    if bool((more & ~pruned).any()):
        idle[index] = idle[index] | more if index in idle else more


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
    """The coupling that the net's blobs say. Layers that use another one's weights are pruned with it."""
    layouts = {layer.name: layer.layout for layer in layers}
    owners = {layer.weight.tensor.data_ptr(): layer for layer in layers if layer.shared}
    for layer in net.layers:
        owner = owners.get(layer.blobs[0].tensor.data_ptr()) if layer.blobs else None
        if owner and layer.type == owner.kind and layer.blobs[0].shape == owner.layout.shape:
            layouts[layer.name] = owner.layout
    channels = Channels(net, layouts)

    def tensors(by_name: dict[str, np.ndarray]) -> list[Tensor | None]:
        return [torch.from_numpy(by_name[layer.name]).to(device) if layer.name in by_name else None for layer in layers]

    needed, given = (torch.from_numpy(mask).to(device, torch.int32) for mask in (channels.needed, channels.given))
    grouped = [i for i, layer in enumerate(layers) if layer.layout.group > 1 and layer.name in channels.writes]
    return Coupling(tensors(channels.writes), tensors(channels.reads), needed, given, grouped)
