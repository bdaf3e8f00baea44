"""`RegSpa_Col`: incremental regularization of kernel positions (Wang et al., JSTSP 2019), and their rectangles."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ..state import LayerState
from ..units import UNITS
from .base import METHODS
from .reg import Reg


@METHODS.add("RegSpa")
class RegSpa(Reg):
    """Prunes kernel positions over all filters and channels; what a finished layer keeps becomes a rectangle, so that
    its kernel is a smaller kernel. (The reference's word for that unit is Col.)"""

    units: ClassVar = {"Col": UNITS["Spatial"]}
    rectangle = True

    def layer_finished(self, layer: LayerState) -> None:
        """Replaces the kernel positions that the layer keeps by a rectangle. Those that come back start anew."""
        if not (self.rectangle and layer.prunes):
            return
        before = self.unit.pruned(layer.masks)
        after = ~nearest_rectangle(~before.reshape(layer.layout.shape[2:])).flatten()
        self.pruner.replace_columns(layer, after.repeat(layer.layout.channels))
        for tensor in (self.table.score, self.table.punish):
            self.table.row(tensor, layer.table_index).masked_fill_(before & ~after, 0)
        self.take_groups([layer])


class RegSpaAsReference(RegSpa):
    """The reference as its recipes use it (prune_method Reg_Col, regularization_type RegSpa_Col): no rectangles."""

    rectangle = False


def nearest_rectangle(kept: Tensor) -> Tensor:
    """The axis-aligned rectangle that differs from `kept` (height, width; bool) in the fewest places, as bool.

    Of several, the first by (top, left, bottom, right).
    """
    height, width = kept.shape
    corners = torch.cartesian_prod(*(torch.arange(n, device=kept.device) for n in (height, width, height, width)))
    top, left, bottom, right = corners[(corners[:, 0] <= corners[:, 2]) & (corners[:, 1] <= corners[:, 3])].T[..., None]
    rows, columns = (torch.arange(n, device=kept.device) for n in (height, width))
    inside = ((top <= rows) & (rows <= bottom))[:, :, None] & ((left <= columns) & (columns <= right))[:, None, :]
    wrong = (inside != kept).sum((1, 2))
    return inside[int(wrong.argmin())]
