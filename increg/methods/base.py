"""What a pruning method is: `PruneMethod`, and the registry it is entered in by the first word of prune_method.

A method decides which groups of which layers go, when, and what is done to them before. It acts through a `Pruner`,
which keeps what is pruned at zero, lets neighbours follow and counts; it knows no solver. A new one is a file here:

    @METHODS.add("L1")
    class L1(PruneMethod):
        units = units("Row", "Col")
        settings = "l1_param"                 # a message of its own in SolverParameter (caffe_compat/proto/increg.proto)

        def regularize(self, iteration): ...  # and whichever other events it needs
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from caffe_compat.errors import SolverError, UnknownType
from caffe_compat.registry import Registry

from ..units import UNITS, Unit

if TYPE_CHECKING:
    from caffe_compat.net_builder import Learnable
    from caffe_compat.proto import Document

    from ..config import PruneConfig
    from ..pruner import Pruner
    from ..state import LayerState


class PruneMethod:
    """Called while the schedule is in its state `prune`, in this order, `iteration` being the solver's, from 0:

        begin             once, before the first iteration of a run that is not resumed; weights are loaded
        before_forward    before the first forward pass
        gradients_ready   `layer.weight.grad` holds the sums over the iteration's passes, nothing divided or added yet
        regularize        penalties may be added to `layer.weight.grad`, which is divided and has weight decay by now
        updated           weights are new

    All run while torch records no gradients. `self.pruner` has the layers
    (`pruner.pruned`: those with a ratio) and does what takes more than tensors: `prune`, `finish`, `gradients`.
    Settings are checked in `__init__`, which raises `SolverError`; what a run needs is made in `bind`.
    """

    #: By the word for them in prune_method, the units it knows.
    units: ClassVar[Mapping[str, Unit]]
    #: The SolverParameter field that holds its settings, None if it has none.
    settings: ClassVar[str | None] = None
    #: What becomes of rows that share channels with another layer's unless coupled_rows says otherwise: ALONE, SKIP or
    #: TOGETHER, as the authors' code does it.
    coupled: ClassVar[str] = "ALONE"
    #: Whether a layer's ratio may grow in stages, by the accuracy reached (acc_borderline); the reference's methods.
    staged: ClassVar[bool] = False
    #: Whether the learning rate of the first update is held until the schedule changes it, whatever lr_policy says.
    holds_rate: ClassVar[bool] = False
    #: Whether momentum starts anew once all is pruned.
    fresh_momentum: ClassVar[bool] = False
    #: Whether a group can be pruned again, and is counted again: a defect of the reference's Reg_Row.
    recounts: ClassVar[bool] = False
    #: Whether it decides by itself how many groups each layer loses; the ratios are then only where it begins.
    chooses_ratios: ClassVar[bool] = False
    #: Whether it prunes fewer groups where a layer would lose too many; else asking for that is an error.
    leaves_some: ClassVar[bool] = True
    #: Whether groups of zeros in the weights that a run starts from are taken for pruned.
    zeros_are_pruned: ClassVar[bool] = True

    def __init__(self, config: PruneConfig) -> None:
        self.config = config
        self.unit = config.unit
        self.param: Any = config.settings
        self.pruner: Pruner = None  # type: ignore[assignment]  # until `bind`

    def bind(self, pruner: Pruner) -> None:
        """Takes the layers over. To be extended by methods that keep something for each of them."""
        self.pruner = pruner

    # -- aims ---------------------------------------------------------------------------------------------------------

    @property
    def rate(self) -> float | None:
        """The learning rate to hold while pruning, None to follow lr_policy."""
        return None

    @property
    def weight_decay(self) -> float | None:
        """The weight decay to hold in the coming iteration, None for the solver's."""
        return None

    @classmethod
    def count(cls, groups: int, ratio: np.float32, param: Any = None) -> int:
        """How many of a layer's groups a prune_ratio asks for, `param` being the method's settings; a layer may keep more
        (`Pruner.count`)."""
        return math.ceil(written(ratio) * groups)

    def likely(self) -> list[Tensor]:
        """Scores by which groups are likely to go, the least first, as far as the weights tell before pruning: one vector
        for each layer with a ratio, (groups,)."""
        return [self.unit.totals(layer.layout, layer.weight.tensor.detach(), torch.abs) for layer in self.pruner.pruned]

    @classmethod
    def reached(cls, layer: LayerState, by_rows: bool) -> bool:
        """Whether a layer has reached what this stage aims at."""
        return layer.settled

    # -- events -------------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Before the first iteration."""

    def before_forward(self, iteration: int) -> None:
        """Before the first forward pass of an iteration."""

    def gradients_ready(self, iteration: int) -> None:
        """After the last backward pass."""

    def regularize(self, iteration: int) -> None:
        """After weight decay, before the update rule reads the gradients."""

    def updated(self, iteration: int) -> None:
        """After the update."""

    def plan(self, pruning: bool) -> None:
        """Before a forward pass, when layers or masks have changed; `pruning` says whether events follow."""

    def masks_replaced(self) -> None:
        """Masks or weights were loaded."""

    def layer_finished(self, layer: LayerState) -> None:
        """A layer has reached its aim."""

    def clear_left_over(self, layer: LayerState, ceiling: float) -> list[float]:
        """All layers have reached their aims: takes back what was done to groups that stay; returns the punishments that
        were between 0 and `ceiling`, for a line of the log."""
        return []

    # -- what is kept and shown ---------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """What a snapshot must hold for a run to go on exactly: tensors, and values that JSON holds, by name."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Takes back what `state` returned. Tensors come on the CPU."""

    def write_fields(self, document: Document, learnable: Sequence[Learnable]) -> None:
        """Adds to a SolverState what the fork's schema has fields for."""

    def read_fields(self, document: Document, parameters: int) -> dict[str, Tensor] | None:
        """Takes back what `write_fields` added, also if it was the reference that did. Returns, by layer name, groups that
        are pruned whatever the weights say; None if this method cannot go on from those fields alone. Raises `WeightError`
        if they do not fit."""
        return None

    def numbers(self, layer: LayerState) -> dict[str, Tensor]:
        """What there is to record of a layer with a ratio: vectors of one value a group, by name: "punish" is the factor of
        a group's own L2 penalty, "score" what groups are chosen by (the least go first)."""
        return {}

    def fail(self, message: str) -> None:
        """Raises `SolverError` about a setting."""
        raise SolverError(f"{self.config.where}: {message}")


METHODS: Registry[type[PruneMethod]] = Registry("pruning method")


def units(*words: str) -> dict[str, Unit]:
    """A method's `units`, from their words in prune_method."""
    return {word: UNITS[word] for word in words}


def method_names() -> list[str]:
    """Everything that prune_method can be, but None, sorted."""
    return sorted(f"{core}_{word}" for core in METHODS.names() for word in METHODS.get(core).units)


def find_method(name: str, where: str) -> tuple[type[PruneMethod], Unit]:
    """The method and unit that prune_method names. Raises `UnknownType`, or `SolverError` for a unit the method lacks."""
    core, _, word = name.rpartition("_")
    if core not in METHODS:
        raise UnknownType("prune_method", name, method_names(), where)
    method = METHODS.get(core)
    if word in UNITS and word not in method.units:
        others = ", ".join(other for other in method_names() if other.endswith(f"_{word}")) or "none"
        raise SolverError(f"{where}: prune_method is {name}, but {core} prunes by {', '.join(method.units)} alone, not by "
                          f"{word}. Methods that do: {others}")
    if word not in method.units:
        raise UnknownType("prune_method", name, method_names(), where)
    return method, method.units[word]


def written(value: float | np.floating) -> float:
    """The double nearest to what a prototxt says, of which a float field holds a rounding: 0.2, not 0.200000003.
    Counts of groups are taken from products in double precision, as the authors' Python does."""
    return float(str(np.float32(value)))


def least(scores: Tensor, count: int) -> Tensor:
    """bool: the `count` groups of the least score; of equal ones the first."""
    chosen = torch.zeros_like(scores, dtype=torch.bool)
    return chosen.index_fill_(0, scores.argsort(stable=True)[:count], True)


def seed_of(own: int, config: PruneConfig) -> int:
    """The seed of a method's choices: its own setting, or else SolverParameter.random_seed, or else 0."""
    return own or max(config.seed, 0)
