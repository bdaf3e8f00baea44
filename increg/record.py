"""`Recorder`: keeps what training and pruning do over time, as JSON lines. `read_record` reads them.

A row is an object with `what`, `step` (iterations run so far, those that were rolled back included) and `iter` (the
solver's number, which goes back when a better state is restored):

    {"what": "sample", "step": 40, "iter": 39, "state": "prune", "stage": 1, "rate": 0.0005, "loss": 0.01,
     "ceiling": 0.1226, "layers": {"conv1": {"unit": "columns", "target": 0.9, "pruned_ratio": 0.2, "rows": 0,
     "columns": 5.0, "punish": [0.01, null, ...], "rank": [3.2, null, ...]}, ...}}
    {"what": "test", "step": 5000, "iter": 5000, "accuracy": 0.9836, "loss": 0.05}

Plain training has samples without `state`, `stage`, `ceiling` and `layers`. `punish` and `rank` (the mean over time), or
what else the method's `numbers` are, have one value a weight group, null once it is pruned. They are there while the
schedule prunes, up to the sample after it, and in long runs not in every sample: a step's distance from the last such
sample is about 1/GROUP_SAMPLES of the step, so that the record of a large net stays small.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from typing import IO, Any

from caffe_compat.errors import ParseError
from caffe_compat.proto import Document
from caffe_compat.solver import Solver, SolverHook, TestScores

from .accuracy import accuracy_outputs
from .hook import PruneHook

Row = dict[str, Any]

#: Iterations between two samples.
EVERY = 20
#: How many samples with values of every group the first part of a run gets, and each doubling of its length again.
GROUP_SAMPLES = 48
#: Of layers with more groups than this (single weights), only every second, third... is kept.
MOST_GROUPS = 5000


class Recorder(SolverHook):
    """Appends to the file `path` what a solver does, every `every` iterations, at each change of state and each test.

    A resumed run goes on in the same file, after the rows that belong to the snapshot. `pruning` is the hook that prunes,
    None in plain training; add the recorder after it. `listeners` are called with every row.
    """

    name = "increg.record"

    def __init__(self, pruning: PruneHook | None, path: str | os.PathLike[str], every: int = EVERY,
                 listeners: Sequence[Callable[[Row], None]] = ()) -> None:
        self.pruning = pruning
        self.path = path
        self.every = every
        self.listeners = listeners
        self.step = 0
        self._state = ""
        self._groups_at = 0
        self._file: IO[str] | None = None

    def on_train_begin(self, solver: Solver) -> None:
        """Opens the file; keeps of it what was written up to here."""
        rows = [row for row in read_record(self.path) if row["step"] <= self.step] if os.path.exists(self.path) else []
        partial = f"{os.fspath(self.path)}.partial"
        with open(partial, "w") as file:
            file.writelines(f"{json.dumps(row)}\n" for row in rows)
        os.replace(partial, self.path)
        self._state = next((row.get("state", "") for row in reversed(rows) if row["what"] == "sample"), "")
        self._groups_at = next((row["step"] for row in reversed(rows) if _has_groups(row)), 0)
        self._file = open(self.path, "a", buffering=1)  # noqa: SIM115

    def on_updated(self, solver: Solver) -> None:
        """Takes a sample when it is due."""
        self.step += 1
        now = self.pruning.stages.now if self.pruning else None
        changed = now is not None and now.state != self._state
        if (self.step % self.every == 0 or self.step == 1 or changed) and not (now and now.done):
            self._write(self._sample(solver))
            self._state = now.state if now else ""

    def on_tested(self, solver: Solver, scores: TestScores) -> None:
        """Keeps the accuracy, the lowest of several (top-1), and the loss."""
        chosen = accuracy_outputs((name for name, _ in scores.scores),
                                  self.pruning.config.accuracy_output if self.pruning else "")
        accuracy = min((value for name, value in scores.scores if name in chosen), default=None)
        loss = next((value for name, value in scores.scores if "loss" in name), None)
        self._write({"what": "test", "step": self.step, "iter": solver.iter, "accuracy": accuracy, "loss": loss})

    def on_train_end(self, solver: Solver) -> None:
        """Closes the file."""
        self._file.close()
        self._file = None

    def save_state(self, solver: Solver, state: Document, extra: dict[str, bytes]) -> None:
        """Notes how many rows belong to a snapshot."""
        extra[self.name] = b"%d" % self.step

    def load_state(self, solver: Solver, state: Document, extra: dict[str, bytes]) -> None:
        """Goes on where a snapshot was taken; a roll-back while running does not count the steps back."""
        if self._file is None:
            self.step = int(extra.get(self.name, b"%d" % solver.iter))

    def _sample(self, solver: Solver) -> Row:
        row = {"what": "sample", "step": self.step, "iter": solver.iter, "rate": solver.rate,
               "loss": float(solver.net.loss)}
        if self.pruning is None:
            return row
        now = self.pruning.stages.now
        groups = "prune" in (now.state, self._state) and (
            now.state != self._state or self.step - self._groups_at >= max(self.every, self._groups_at // GROUP_SAMPLES))
        if groups:
            self._groups_at = self.step
        layers = {layer.name: self._layer(layer, groups) for layer in self.pruning.layers if layer.prunes}
        return {**row, "state": now.state, "stage": now.stage, "ceiling": now.ceiling, "layers": layers}

    def _layer(self, layer: Any, groups: bool) -> Row:
        pruning = self.pruning
        unit = pruning.pruner.unit
        row = {"unit": unit.plural, "target": float(layer.ratio_now), "pruned_ratio": float(layer.pruned_ratio),
               "rows": layer.num_rows, "columns": layer.num_columns}
        if groups:
            pruned = unit.pruned(layer.masks)
            every = -(-len(pruned) // MOST_GROUPS)
            for key, values in pruning.numbers(layer).items():
                row[key] = [None if gone else float(f"{value:.5g}")
                            for gone, value in zip(pruned[::every].tolist(), values[::every].tolist())]
        return row

    def _write(self, row: Row) -> None:
        if self._file is not None:
            self._file.write(json.dumps(row) + "\n")
            for listener in self.listeners:
                listener(row)


def _has_groups(row: Row) -> bool:
    return any(isinstance(value, list) for layer in row.get("layers", {}).values() for value in layer.values())


def read_record(path: str | os.PathLike[str]) -> list[Row]:
    """The rows of a record. A last line that a crash cut off is left out; raises `ParseError` for other damage."""
    with open(path) as file:
        lines = file.read().splitlines()
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            if number == len(lines):
                break
            raise ParseError(f"is not a line of a record ({error})", os.fspath(path), number) from error
        rows.append(row)
    return rows
