"""`Recorder`: keeps what pruning does over time, as JSON lines. `read_record` reads them.

A row is an object with `what`, `step` (iterations run so far, those that were rolled back included) and `iter` (the
solver's number, which goes back when a better state is restored):

    {"what": "sample", "step": 40, "iter": 39, "state": "prune", "stage": 1, "rate": 0.0005, "loss": 0.01,
     "ceiling": 0.1226, "layers": {"conv1": {"unit": "columns", "target": 0.9, "pruned_ratio": 0.2, "rows": 0,
     "columns": 5.0, "punish": [0.01, null, ...], "rank": [3.2, null, ...]}, ...}}
    {"what": "test", "step": 5000, "iter": 5000, "accuracy": 0.9836}

`punish` and `rank` (the mean over time) have one value a weight group, null once it is pruned, and are there while the
schedule prunes, up to the sample after it.
"""

from __future__ import annotations

import json
import os
from typing import IO, Any

from caffe_compat.errors import ParseError
from caffe_compat.proto import Document
from caffe_compat.solver import Solver, SolverHook, TestScores

from .hook import PruneHook

Row = dict[str, Any]

#: Iterations between two samples.
EVERY = 20


class Recorder(SolverHook):
    """Appends to the file `path` what `pruning` does, every `every` iterations, at each change of state and each test.

    A resumed run goes on in the same file, after the rows that belong to the snapshot. Add it after the `PruneHook`.
    """

    name = "increg.record"

    def __init__(self, pruning: PruneHook, path: str | os.PathLike[str], every: int = EVERY) -> None:
        self.pruning = pruning
        self.path = path
        self.every = every
        self.step = 0
        self._state = ""
        self._file: IO[str] | None = None

    def on_train_begin(self, solver: Solver) -> None:
        """Opens the file; keeps of it what was written up to here."""
        rows = [row for row in read_record(self.path) if row["step"] <= self.step] if os.path.exists(self.path) else []
        partial = f"{os.fspath(self.path)}.partial"
        with open(partial, "w") as file:
            file.writelines(f"{json.dumps(row)}\n" for row in rows)
        os.replace(partial, self.path)
        self._state = next((row["state"] for row in reversed(rows) if row["what"] == "sample"), "")
        self._file = open(self.path, "a", buffering=1)  # noqa: SIM115

    def on_updated(self, solver: Solver) -> None:
        """Takes a sample when it is due."""
        self.step += 1
        now = self.pruning.stages.now
        if (self.step % self.every == 0 or self.step == 1 or now.state != self._state) and not now.done:
            self._write(self._sample(solver))
            self._state = now.state

    def on_tested(self, solver: Solver, scores: TestScores) -> None:
        """Keeps the accuracy, the lowest of several (top-1)."""
        accuracy = min((value for name, value in scores.scores if "ccuracy" in name), default=None)
        self._write({"what": "test", "step": self.step, "iter": solver.iter, "accuracy": accuracy})

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
        pruning, now = self.pruning, self.pruning.stages.now
        layers = {layer.name: self._layer(layer) for layer in pruning.layers if layer.prunes}
        return {"what": "sample", "step": self.step, "iter": solver.iter, "state": now.state, "stage": now.stage,
                "rate": solver.rate, "loss": float(solver.net.loss), "ceiling": now.ceiling, "layers": layers}

    def _layer(self, layer: Any) -> Row:
        pruning = self.pruning
        unit = pruning.pruner.unit
        row = {"unit": unit.plural, "target": float(layer.ratio_now), "pruned_ratio": float(layer.pruned_ratio),
               "rows": layer.num_rows, "columns": layer.num_columns}
        if "prune" in (pruning.stages.now.state, self._state):
            pruned = unit.pruned(layer.masks).tolist()
            for key, values in pruning.numbers(layer).items():
                row[key] = [None if gone else round(value, 6) for gone, value in zip(pruned, values.tolist())]
        return row

    def _write(self, row: Row) -> None:
        if self._file is not None:
            self._file.write(json.dumps(row) + "\n")


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
