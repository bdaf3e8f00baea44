"""`SolverHook`: how pruning, and users, take part in training. The solver knows hooks and nothing of what they do."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..proto import Document
    from .solver import Solver, TestScores


class SolverHook:
    """Called by `Solver.step` in this order, once an iteration unless said otherwise; every method may be left out.

        on_start            before the first forward pass; Caffe's Callback.on_start
        (forward and backward, iter_size times)
        on_gradients_ready  diffs are summed over the passes, before clipping; Caffe's Callback.on_gradients_ready
        (clip, divide by iter_size, weight decay)
        on_regularize       diffs may get further penalties, histories may be masked
        (the update rule, weights -= diff)
        on_updated          weights are new, `solver.iter` still is the number of this iteration (from 0)
        (solver.iter += 1, snapshot when due)

    A hook acts through the solver's `net`, `history`, `set_rate`, `set_pass_multiplier`, `test_all`, `snapshot`,
    `restore` and `stop`. `name` keys what it keeps in snapshots.
    """

    name: str = "hook"

    def on_train_begin(self, solver: Solver) -> None:
        """Once when `Solver.solve` or the first `Solver.step` begins, weights and state loaded."""

    def on_start(self, solver: Solver) -> None:
        """Before the first forward pass of an iteration."""

    def on_gradients_ready(self, solver: Solver) -> None:
        """After the last backward pass: diffs are sums over all passes, not yet clipped or normalized."""

    def on_regularize(self, solver: Solver) -> None:
        """After weight decay was added to the diffs and before the update rule reads them."""

    def on_updated(self, solver: Solver) -> None:
        """After the weights were updated; `solver.iter` still numbers this iteration."""

    def on_tested(self, solver: Solver, scores: TestScores) -> None:
        """After a test net ran its test_iter batches; `scores` are the means."""

    def on_snapshot(self, solver: Solver) -> None:
        """After the snapshot that SolverParameter.snapshot or a signal asked for."""

    def on_weights_loaded(self, solver: Solver) -> None:
        """After weights were copied into the net from a file, a snapshot's included."""

    def on_train_end(self, solver: Solver) -> None:
        """Once when `Solver.solve` ends, also after an early stop."""

    def save_state(self, solver: Solver, state: Document, extra: dict[str, bytes]) -> None:
        """Adds to a snapshot: fields of `state.message` (a SolverState of the solver's dialect) and its `arrays`,
        and whatever else in `extra[self.name]`, which real Caffe skips."""

    def load_state(self, solver: Solver, state: Document, extra: dict[str, bytes]) -> None:
        """Takes back what `save_state` wrote; `extra` is empty for a file that real Caffe wrote."""
