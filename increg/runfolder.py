"""The folder of a run: chosen so that nothing is overwritten, with a note of what is run in it, a log, and a history."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

from caffe_compat.errors import CaffeError
from caffe_compat.log import GlogFormatter

#: Where runs go that name no folder.
RUNS = Path("runs")
#: The file that says what is run in a folder, and once it is finished what came of it; when it was begun and continued.
NOTE, HISTORY = "run.json", "history.jsonl"
#: What is trained and pruned.
BASELINE, PRUNED, DEPLOY = "baseline.caffemodel", "pruned.caffemodel", "deploy.prototxt"
BASELINE_SOLVER, SOLVER, SNAPSHOTS = "solver_baseline.prototxt", "solver.prototxt", "snapshots"
#: What tells of it.
LOG, TRAINING, RECORD, PAGE, CHARTS = "log.txt", "training.jsonl", "record.jsonl", "report.html", "charts"


def open_folder(out: str | None, plan: dict[str, Any], name: str) -> Path:
    """The folder to run `plan` in, made if it is new: `out`, or the first of runs/<name>, runs/<name>-2, ... that is free.

    A folder is free if it is new or empty, or holds the same plan, not yet finished: then the run goes on. Raises
    `CaffeError` if `out` is not free or cannot be written.
    """
    if out is not None:
        folder = Path(out)
        if not _is_free(folder, plan):
            raise CaffeError(f"{folder}: holds a finished run, one of other settings, or other files; name a new "
                             "folder, or remove this one")
    else:
        names = (RUNS / (f"{name}-{k}" if k > 1 else name) for k in count(1))
        folder = next(name for name in names if _is_free(name, plan))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_note(folder / NOTE, {"plan": plan})
    except OSError as error:
        raise CaffeError(f"{folder}: cannot be written: {error.strerror or error}; choose another folder with "
                         "--out") from error
    return folder


def _is_free(folder: Path, plan: dict[str, Any]) -> bool:
    try:
        if not os.path.lexists(folder) or not any(folder.iterdir()):
            return True
        note = json.loads((folder / NOTE).read_text())
        return note["plan"] == plan and "result" not in note
    except (OSError, ValueError, KeyError, TypeError):
        return False


def write_note(path: str | os.PathLike[str], content: dict[str, Any]) -> None:
    """Writes JSON, whole or not at all."""
    partial = f"{os.fspath(path)}.partial"
    Path(partial).write_text(json.dumps(content, indent=1) + "\n")
    os.replace(partial, path)


def add_history(path: str | os.PathLike[str], **event: Any) -> None:
    """Appends an event, with the time (UTC) it happened at."""
    with open(path, "a") as file:
        file.write(json.dumps({"time": datetime.now(UTC).isoformat(" ", "seconds"), **event}) + "\n")


def read_history(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The events in the order in which they happened; none if there is no file. A line that was cut off is left out."""
    if not os.path.exists(path):
        return []
    events = []
    for line in Path(path).read_text().splitlines():
        try:
            events.append(json.loads(line))
        except ValueError:
            continue
    return events


@contextmanager
def log_to(path: str | os.PathLike[str]) -> Iterator[None]:
    """Appends Caffe's log lines, and what pruning prints, to a file instead of showing them."""
    logger = logging.getLogger("caffe_compat")
    before = logger.handlers, logger.level
    with open(path, "a", buffering=1) as stream, redirect_stdout(stream):
        handler = logging.StreamHandler(stream)
        handler.setFormatter(GlogFormatter())
        logger.handlers = [handler]
        logger.setLevel(logging.INFO)
        try:
            yield
        finally:
            logger.handlers, level = before
            logger.setLevel(level)
