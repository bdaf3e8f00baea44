"""TensorBoard logs of a run, written while it runs (`Logs`) or from its records afterwards (`write_logs`)."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from caffe_compat.errors import CaffeError

from .charts import group_values
from .record import Row, read_record
from .runfolder import RECORD, TRAINING

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"


class Logs:
    """Writes the rows of a `Recorder` (`add` is a listener) to the folder `path`: scalars, and histograms of groups."""

    def __init__(self, path: str | Path) -> None:
        if not find_spec("tensorboard"):
            raise CaffeError('TensorBoard logs need tensorboard: pip install "caffe-compat[tensorboard]"')
        self.path = path
        self._writer: SummaryWriter | None = None

    def add(self, row: Row) -> None:
        """Writes what a row tells. In a resumed run the first one hides what an earlier log has from its step on."""
        from torch.utils.tensorboard import SummaryWriter

        step = row["step"]
        if self._writer is None:
            self._writer = SummaryWriter(str(self.path), purge_step=step)
        for name, value in _scalars(row):
            self._writer.add_scalar(name, value, step)
        for layer, told in row.get("layers", {}).items():
            for key in group_values(told):
                values = np.array(told[key], float)  # None: NaN
                if np.isfinite(values).any():
                    self._writer.add_histogram(f"{key}/{layer}", values[np.isfinite(values)], step)
        self._writer.flush()

    def close(self) -> None:
        """Ends the log."""
        if self._writer is not None:
            self._writer.close()


def _scalars(row: Row) -> list[tuple[str, Any]]:
    prefix = "test/" if row["what"] == "test" else "train/"
    found = [(prefix + key, row[key]) for key in ("loss", "rate", "accuracy", "ceiling") if row.get(key) is not None]
    return found + [(f"pruned_ratio/{layer}", told["pruned_ratio"]) for layer, told in row.get("layers", {}).items()]


def write_logs(folder: Path) -> Path:
    """Writes what a run's records hold to `tensorboard/` in its folder, anew; returns that."""
    target = folder / FOLDER
    shutil.rmtree(target, ignore_errors=True)
    for name, part in ((TRAINING, "training"), (RECORD, "pruning")):
        if (folder / name).exists():
            logs = Logs(target / part)
            for row in read_record(folder / name):
                logs.add(row)
            logs.close()
    return target
