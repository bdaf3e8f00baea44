"""`Trainer`: what the schedule asks of the one who trains."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from .budget import Budget
from .state import LayerState


class Trainer(Protocol):
    """What the schedule acts through: the hook, or a test's stand-in. `iter` numbers the update just done."""

    @property
    def iter(self) -> int: ...

    @property
    def rate(self) -> float:
        """The learning rate that lr_policy gives at `iter`."""

    def accuracies(self) -> list[np.float32] | None:
        """Tests; one value for each output that is an accuracy, None if the test was broken off."""

    def snapshot(self, infix: str) -> None:
        """Keeps everything as `infix` at `iter`."""

    def restore(self, infix: str, iteration: int) -> str:
        """Takes weights, momentum, scores, punishments and masks back from a snapshot, sets `iter`, returns the path."""

    def set_rate(self, rate: np.float32) -> None:
        """Holds the learning rate."""

    def set_passes(self, passes: int) -> None:
        """Sets how many forward and backward passes make an iteration, from the next one on."""

    def clear_left_over(self, layer: LayerState, ceiling: np.float32) -> list[float]:
        """Sets a layer's punishments between 0 and the ceiling to 0; returns them."""

    def budget(self) -> Budget:
        """What the net costs now."""

    def report_layers(self) -> None:
        """Prints what is pruned of each layer."""

    def stop(self) -> None:
        """Ends training."""


def say(line: str) -> None:
    """Prints a line to standard output at once."""
    print(line, flush=True)
