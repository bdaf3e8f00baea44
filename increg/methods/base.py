"""What a pruning method is: `PruneMethod`, and the registry it is entered in by the name that a solver prototxt uses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor

from caffe_compat.registry import Registry

from ..groups import Layout, Unit
from ..table import GroupTable


@dataclass(frozen=True)
class Goal:
    """What one layer is to reach in this stage, as a method needs it.

    to_prune:  groups still to prune, at least 1
    pruned:    groups pruned
    unpruned:  groups not pruned
    progress:  how much of this stage's increase of the pruned ratio is reached, 0 to 1
    """

    to_prune: int
    pruned: int
    unpruned: int
    progress: float = 0.0


class PruneMethod:
    """Decides which groups to punish, by how much, and when they are pruned. Tensor operations on a `GroupTable`, no
    net, no solver, nothing that waits for the device.

    `unit` is what it prunes, `unit_punishment` SolverParameter.AA.
    """

    name: ClassVar[str]
    unit: ClassVar[Unit]
    #: Whether the groups kept by a finished layer are replaced by the nearest rectangle of kernel positions.
    rectangle: ClassVar[bool] = False
    #: Whether a group can be pruned again, and is counted again.
    recounts: ClassVar[bool] = False

    def __init__(self, unit_punishment: float, scheme: int = 1) -> None:
        self.unit_punishment = np.float32(unit_punishment)
        self.scheme = scheme

    def growth(self, goal: Goal) -> np.ndarray:
        """float32: what punishments change by, for the unpruned groups of a layer in the order of their scores."""
        raise NotImplementedError

    def step(self, table: GroupTable, iteration: int, ceiling: float) -> Tensor:
        """One iteration (numbered from 1): new scores and punishments in `table`, from `table.norms`.

        Returns the groups that are pruned now, as bool of the table's shape; their weights are not yet zero.
        """
        raise NotImplementedError

    def record(self, table: GroupTable, index: int, layout: Layout, fresh: Tensor, iteration: int,
               ceiling: float) -> None:
        """Writes down in `table` that the groups `fresh` (bool, without padding) of layer `index`, whose weight has
        `layout`, are pruned since `iteration`."""
        raise NotImplementedError


METHODS: Registry[type[PruneMethod]] = Registry("prune_method")
