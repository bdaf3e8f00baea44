"""Ties: layers whose rows write the same channels, because they are added up, or because one is a depthwise convolution
of the other's. What is pruned of one can only be left out of a smaller net if it is pruned of all."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .coupling import Coupling
from .state import LayerState

#: The layers of a tie whose rows go together, row by row.
Tie = list[LayerState]


@dataclass(frozen=True)
class Meeting:
    """Layers whose rows meet; `aligned` if row i of each meets row i of all others, and nothing else."""

    layers: Tie
    aligned: bool


def needed_rows(layers: Sequence[LayerState], coupling: Coupling) -> list[LayerState]:
    """The layers that have rows which something reads that cannot be pruned: the net's outputs, layers of other kinds."""
    needed = coupling.needed.cpu().numpy().astype(bool)
    result = []
    for layer in layers:
        channels = coupling.writes[layer.index]
        if channels is None or needed[channels.cpu().numpy()].any():
            result.append(layer)
    return result


def find_ties(layers: Sequence[LayerState], coupling: Coupling, depthwise: bool) -> list[Meeting]:
    """All meetings of two and more layers; with `depthwise` those of depthwise convolutions with what they read, too."""
    channels: dict[int, np.ndarray] = {layer.index: coupling.writes[layer.index].cpu().numpy() for layer in layers
                                       if coupling.writes[layer.index] is not None}
    links: list[set[int]] = []
    by_channel: dict[int, set[int]] = defaultdict(set)
    for index, written in channels.items():
        for channel in set(written.tolist()):
            by_channel[channel].add(index)
    links += by_channel.values()
    followed: dict[int, np.ndarray] = {}
    if depthwise:
        for layer in layers:
            read = coupling.reads[layer.index]
            if layer.index in channels and is_depthwise(layer) and read is not None:
                followed[layer.index] = read[:, 0].cpu().numpy()
                links += [{layer.index} | by_channel.get(channel, set()) for channel in followed[layer.index].tolist()]
    return [_meeting([layers[index] for index in sorted(group)], channels, followed) for group in _merge(links)
            if len(group) > 1]


def is_depthwise(layer: LayerState) -> bool:
    """Whether each row reads one channel of its own."""
    return layer.layout.group == layer.layout.rows > 1 and layer.layout.channels == 1


def _merge(links: list[set[int]]) -> list[set[int]]:
    """Sets that have a member in common made one."""
    owner: dict[int, set[int]] = {}
    for link in links:
        merged = set(link)
        for member in link:
            merged |= owner.get(member, set())
        for member in merged:
            owner[member] = merged
    return list({id(group): group for group in owner.values()}.values())


def _meeting(tie: Tie, channels: dict[int, np.ndarray], followed: dict[int, np.ndarray]) -> Meeting:
    """Row i of all must have one name: the channel it writes, or, of a depthwise layer, the channel it reads."""
    written = {layer.index: channels[layer.index] for layer in tie}
    names = {index: followed.get(index, row) for index, row in written.items()}
    sizes = {len(row) for row in written.values()}
    if len(sizes) > 1:
        return Meeting(tie, False)
    # Chains of depthwise layers: what one reads is what another writes. Names go up to the first writer.
    first = {int(channel): int(name) for index in names for channel, name in zip(written[index], names[index])
             if index in followed}

    def origin(channel: int) -> int:
        seen = set()
        while channel in first and channel not in seen:
            seen.add(channel)
            channel = first[channel]
        return channel

    resolved = [tuple(origin(int(name)) for name in row) for row in names.values()]
    return Meeting(tie, len(set(resolved)) == 1 and len(set(resolved[0])) == len(resolved[0]))


def together(layers: Sequence[LayerState], ties: Sequence[Tie]) -> list[Tie]:
    """All of `layers`, those of a tie as one, in the order of the first ones."""
    tied = {layer.index for tie in ties for layer in tie}
    return sorted([*ties, *([layer] for layer in layers if layer.index not in tied)], key=lambda group: group[0].index)
