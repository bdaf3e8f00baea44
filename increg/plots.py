"""Plots of a pruning run, drawn from the rows that `record.Recorder` keeps."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from caffe_compat.errors import CaffeError

from .record import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KEPT, PRUNED, LIMIT = "#2b6cb0", "#dd6b20", "#444444"


def plot_punishments(rows: Sequence[Row], path: str | os.PathLike[str], before: float | None = None) -> None:
    """Writes a PNG: for each pruned layer its groups' punishments and averaged ranks over time, each line ending where
    its group is pruned; below, the share pruned and the accuracy, retraining included.

    `rows` are a record's rows (see `record`), `before` the accuracy before pruning. Raises `CaffeError` if there is
    nothing to plot.
    """
    from matplotlib.figure import Figure

    samples = [row for row in rows if row["what"] == "sample"]
    pruning = [row for row in samples if any("punish" in layer for layer in row["layers"].values())]
    if not pruning:
        raise CaffeError(f"{os.fspath(path)}: nothing to plot: no row tells of an iteration that pruned")
    names = [name for name in pruning[0]["layers"] if any("punish" in row["layers"][name] for row in pruning)]
    figure = Figure(figsize=(max(9.0, 4.8 * len(names)), 9.6), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(2, 1))
    axes = upper.subplots(2, len(names), squeeze=False, sharex="col")
    for k, name in enumerate(names):
        _punishments(axes[0, k], pruning, name)
        _ranks(axes[1, k], pruning, name)
    shares, accuracy = lower.subplots(1, 2)
    _shares(shares, samples, names)
    _accuracy(accuracy, rows, samples, before)
    upper.legend(handles=_key(), fontsize="small", loc="outside upper center", ncols=3)
    figure.savefig(path, format="png", dpi=110)


def _series(rows: Sequence[Row], name: str, key: str) -> tuple[np.ndarray, np.ndarray]:
    """(step of every row, values: one line a row and one column a group, NaN once the group is pruned)."""
    rows = [row for row in rows if key in row["layers"][name]]
    values = np.array([row["layers"][name][key] for row in rows], float)  # None becomes NaN
    return np.array([row["step"] for row in rows]), values


def _lines(axes: Axes, steps: np.ndarray, values: np.ndarray) -> None:
    """One thin line a group, those of pruned groups on top."""
    pruned = np.isnan(values[-1])
    thin = {"linewidth": 0.8 if values.shape[1] <= 100 else 0.4, "alpha": 0.8 if values.shape[1] <= 100 else 0.4}
    if not pruned.all():
        axes.plot(steps, values[:, ~pruned], color=KEPT, **thin)
    if pruned.any():
        axes.plot(steps, values[:, pruned], color=PRUNED, **thin)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.25)


def _punishments(axes: Axes, rows: Sequence[Row], name: str) -> None:
    steps, values = _series(rows, name, "punish")
    _lines(axes, steps, values)
    axes.axhline(rows[-1]["ceiling"], color=LIMIT, linestyle="--", linewidth=1)
    groups = rows[0]["layers"][name]["unit"]
    axes.set_title(f"{name}: {np.isnan(values[-1]).sum()} of {values.shape[1]} {groups} pruned")
    axes.set_ylabel(f"punishment of a {groups.removesuffix('s')}")


def _ranks(axes: Axes, rows: Sequence[Row], name: str) -> None:
    _lines(axes, *_series(rows, name, "rank"))
    axes.set_ylabel("averaged rank by L1 norm")
    axes.set_xlabel("iterations run")


def _shares(axes: Axes, samples: Sequence[Row], names: Sequence[str]) -> None:
    steps = [row["step"] for row in samples]
    for name in names:
        axes.plot(steps, [row["layers"][name]["pruned_ratio"] for row in samples], label=name)
    axes.set(xlabel="iterations run", ylabel="share of the weights pruned", ylim=(0, 1), xlim=(0, None))
    for end in _ends(samples):
        axes.axvline(end, color=LIMIT, linestyle=":", linewidth=1)
    axes.legend(fontsize="small", loc="lower right")
    axes.grid(alpha=0.25)


def _accuracy(axes: Axes, rows: Sequence[Row], samples: Sequence[Row], before: float | None) -> None:
    tests = [(row["step"], row["accuracy"]) for row in rows if row["what"] == "test" and row["accuracy"] is not None]
    axes.plot([step for step, _ in tests], [100 * accuracy for _, accuracy in tests], color=KEPT, marker=".",
              label="while retraining")
    if before is not None:
        axes.axhline(100 * before, color=LIMIT, linestyle="--", linewidth=1, label="before pruning")
    axes.legend(fontsize="small", loc="lower right")
    axes.set(xlabel="iterations run (dotted: a state of the schedule ends)", ylabel="test accuracy in %",
             xlim=(0, max(row["step"] for row in samples) * 1.02))
    for end in _ends(samples):
        axes.axvline(end, color=LIMIT, linestyle=":", linewidth=1)
    axes.ticklabel_format(axis="y", useOffset=False)
    axes.grid(alpha=0.25)


def _ends(samples: Sequence[Row]) -> list[int]:
    """The steps at which the schedule went from one state to another."""
    return [after["step"] for before, after in pairwise(samples) if before["state"] != after["state"]]


def _key() -> list[Any]:
    from matplotlib.lines import Line2D

    return [Line2D([], [], color=PRUNED, label="pruned (line ends there)"), Line2D([], [], color=KEPT, label="kept"),
            Line2D([], [], color=LIMIT, linestyle="--", label="ceiling: pruned when reached")]
