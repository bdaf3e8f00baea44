"""What a user sees of a long run: a progress bar on a terminal, now and then a plain line anywhere else."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

from tqdm import tqdm

from caffe_compat.solver import Solver, SolverHook

from .hook import PruneHook

#: What is said when the schedule enters a state.
STATES = {"losseval": "All layers are pruned; the loss settles", "retrain": "Retraining begins",
          "final_retrain": "The last retraining begins", "prune": "The next stage of pruning begins"}
#: Iterations between two looks at the clock, and seconds between two lines of a log.
EVERY, SECONDS = 10, 10.0


class Progress(SolverHook):
    """Shows how far a solver is: `describe(solver)` gives the words, `total` the iterations if their number is known.

    The bar goes to standard error if that is a terminal; otherwise lines go to `out`, one every `seconds` seconds.
    """

    name = "increg.progress"

    def __init__(self, title: str, total: int | None, describe: Callable[[Solver], str], out: TextIO | None = None,
                 seconds: float = SECONDS) -> None:
        self.title = title
        self.total = total
        self.describe = describe
        self.out = out or sys.stdout
        self.seconds = seconds
        self._ran = 0

    def on_train_begin(self, solver: Solver) -> None:
        """Starts the clock; a resumed run starts where it was."""
        self._bar = tqdm(desc=self.title, total=self.total, initial=solver.iter, unit=" iter", file=sys.stderr,
                         disable=None, leave=False, dynamic_ncols=True)
        self._told = time.monotonic()
        self._told_at = 0

    def on_updated(self, solver: Solver) -> None:
        """Moves on, every EVERY iterations."""
        self._ran += 1
        if self._ran % EVERY:
            return
        if not self._bar.disable:
            self._bar.set_postfix_str(self.describe(solver), refresh=False)
            self._bar.update(EVERY)
        elif (now := time.monotonic()) - self._told >= self.seconds:
            rate = (self._ran - self._told_at) / (now - self._told)
            done = f"{solver.iter + 1}" + (f" of {self.total}" if self.total else "")
            self.say(f"{self.title}: iteration {done}, {self.describe(solver)} ({rate:.0f} iter/s)")
            self._told, self._told_at = now, self._ran

    def on_train_end(self, solver: Solver) -> None:
        """Takes the bar away."""
        self._bar.close()

    def say(self, text: str) -> None:
        """Prints a line, above the bar if there is one."""
        tqdm.write(text, file=self.out)
        self.out.flush()


def describe(hook: PruneHook) -> str:
    """How far pruning is, in a few words."""
    now = hook.stages.now
    if now.state != "prune":
        word = "settling" if now.state == "losseval" else "retraining"
        return word + (f", best accuracy {100 * now.best.accuracy:.2f} %" if now.best.iter else "")
    layers = [f"{layer.name} {100 * layer.compared_ratio(hook.config.by_rows):.0f} of {100 * layer.ratio_now:.0f} %"
              for layer in hook.layers if layer.prunes]
    return f"pruned: {', '.join(layers)}"


class Narrator(SolverHook):
    """Says what pruning has reached: a layer its ratio, the schedule another state."""

    name = "increg.narrator"

    def __init__(self, pruning: PruneHook, say: Callable[[str], None]) -> None:
        self.pruning = pruning
        self.say = say
        self._state = "prune"
        self._finished: set[str] = set()

    def on_updated(self, solver: Solver) -> None:
        """Tells what is new."""
        state = self.pruning.stages.now.state
        for layer in self.pruning.layers:
            if layer.prunes and layer.finished is not None and layer.name not in self._finished:
                self._finished.add(layer.name)
                self.say(f"Iteration {solver.iter + 1}: {layer.name} is pruned, "
                         f"{100 * layer.pruned_ratio:.1f} % of its weights")
        if state != self._state and not self.pruning.stages.now.done:
            self._state = state
            self.say(f"Iteration {solver.iter + 1}: {STATES[state]}")
