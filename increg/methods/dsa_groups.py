"""Groups of layers that share one keep ratio and one mask: those whose rows are added up, or tied by a depthwise
convolution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..coupling import Coupling
from ..state import LayerState
from ..ties import find_ties


@dataclass(frozen=True)
class KeepGroup:
    """Layers in the order of the net; the first one's filters alone decide. `aligned` if one mask fits all of them."""

    layers: list[LayerState]
    aligned: bool = True

    @property
    def leader(self) -> LayerState:
        """The layer whose importance decides."""
        return self.layers[0]


def keep_groups(layers: Sequence[LayerState], coupling: Coupling) -> list[KeepGroup]:
    """The groups of some layers of a net, in the order of their first ones."""
    found = {layer.index: KeepGroup([layer]) for layer in layers}
    for meeting in find_ties(layers, coupling, depthwise=True):
        group = KeepGroup(meeting.layers, meeting.aligned)
        found.update({layer.index: group for layer in meeting.layers})
    return sorted({id(group): group for group in found.values()}.values(), key=lambda group: group.leader.index)
