"""`StageState`: all that the schedule remembers between two iterations."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from .aims import FIRST_INCREASE

#: stage_iter_prune_finished where there is none.
UNSET = 2147483647


@dataclass
class Best:
    """The best test so far: accuracy, iteration, and how many tests there had been."""

    accuracy: float = 0.0
    iter: int = 0
    tests: int = 0

    def take(self, accuracy: np.float32, iteration: int, tests: int) -> None:
        """Keeps a strictly better one; of equal ones the earliest stays."""
        if accuracy > self.accuracy:
            self.accuracy, self.iter, self.tests = float(accuracy), iteration, tests


@dataclass
class StageState:
    """All that the schedule remembers, saved whole in snapshots. Rates and accuracies are float32 values.

    finished_iter: the iteration at which the last layer reached its aim (stage_iter_prune_finished)
    reached:       whether that has happened in this stage
    rate:          the learning rate held, 0 before the first update; state_rate: at the start of `retrain`;
                   retrain_rate: the last one that `retrain` used
    decays, period_tests, period, best, first_iter, accuracies: of the retraining that is going on: rate periods ended,
                   tests of this period, its best, the best of all, the best iteration of the first period, all accuracies
    feasible_iter, feasible_accuracy: of the last good stage, to go back to; feasible_best: its best test
    increase, total_increase: of the pruned ratio, aimed at by this stage, and by all so far
    """

    state: str = "prune"
    stage: int = 0
    finished_iter: int = UNSET
    reached: bool = False
    ceiling: float = 0.0
    rate: float = 0.0
    state_rate: float = 0.0
    retrain_rate: float = 0.0
    state_iter: int = -1
    decays: int = 0
    period_tests: int = 0
    period: Best = field(default_factory=Best)
    best: Best = field(default_factory=Best)
    first_iter: int = 0
    accuracies: list[float] = field(default_factory=list)
    feasible_iter: int = 0
    feasible_accuracy: float = 0.0
    feasible_best: Best = field(default_factory=Best)
    increase: float = float(FIRST_INCREASE)
    total_increase: float = float(FIRST_INCREASE)
    speedup_reached: bool = False
    done: bool = False

    def to_json(self) -> dict[str, Any]:
        """A dictionary of plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> StageState:
        """The inverse of `to_json`."""
        best = {name: Best(**values[name]) for name in ("period", "best", "feasible_best")}
        return cls(**{**values, **best})
