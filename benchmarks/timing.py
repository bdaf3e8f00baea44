"""Fair timing of things that are to be compared: they take turns, and processor time is counted, not waiting time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median

from caffe_compat import Solver


def seconds_per_iteration(
    contenders: Mapping[str, Callable[[int], object]], iterations: int, rounds: int, warm_up: int | None = None,
) -> dict[str, float]:
    """Processor seconds of all threads for one iteration of each contender, a function that runs so many iterations.

    The contenders take turns for `rounds` rounds of `iterations`, after `warm_up` (by default one round of each); the
    median round counts. With one torch thread this is one core's time, whatever else the machine does meanwhile.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for run in contenders.values():
        run(iterations if warm_up is None else warm_up)
    for _ in range(rounds):
        for name, run in contenders.items():
            start = time.process_time()
            run(iterations)
            times[name].append((time.process_time() - start) / iterations)
    return {name: median(values) for name, values in times.items()}


class HookClock:
    """Counts the processor seconds that a solver's hooks take, in `seconds`, and the iterations, in `iterations`."""

    def __init__(self, solver: Solver) -> None:
        self.seconds = 0.0
        self.iterations = 0
        for hook in solver.hooks:
            for event in ("on_start", "on_gradients_ready", "on_regularize", "on_updated"):
                setattr(hook, event, self._timed(getattr(hook, event), event))

    def _timed(self, method: Callable[[Solver], None], event: str) -> Callable[[Solver], None]:
        def timed(solver: Solver) -> None:
            start = time.process_time()
            method(solver)
            self.seconds += time.process_time() - start
            self.iterations += event == "on_updated"

        return timed


def show(seconds: Mapping[str, float], base: str) -> None:
    """Prints a table: iterations a second, milliseconds an iteration, speed relative to the contender `base`."""
    width = max(map(len, seconds))
    print(f"{'':{width}}   iter/s  ms/iter  relative")
    for name, value in seconds.items():
        print(f"{name:{width}} {1 / value:8.1f} {1e3 * value:8.3f} {seconds[base] / value:8.2f}x")


def show_share(training: float, pruning: float, clock: HookClock | None) -> None:
    """Prints what pruning adds to an iteration: the difference of the two, and what its hook was seen to take."""
    print(f"pruning adds {100 * (pruning / training - 1):.1f} % to an iteration", end="")
    if clock is not None:
        inside = clock.seconds / clock.iterations
        print(f"; {1e3 * inside:.3f} ms, {100 * inside / training:.1f} %, are spent in its hook", end="")
    print()
