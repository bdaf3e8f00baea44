"""The charts of a pruning run, drawn from the rows that `record.Recorder` keeps, and from its weights.

Each function returns a matplotlib Figure that is as wide as a phone's page, or None if the run has nothing to show in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from .record import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Width of all charts, and height of one with a single panel, in inches.
WIDTH, HEIGHT = 4.3, 2.9
BLUE, ORANGE, GREY = "#2b6cb0", "#dd6b20", "#444444"
#: The backgrounds of the schedule's states, and of those it does not list.
SHADES = {"prune": "#fde8d7", "losseval": "#fff7cc", "retrain": "#dcecfb", "final_retrain": "#dff3e3"}
OTHER_SHADE = "#eeeeee"
#: What the values of groups are called, where their names in the record are not words.
GROUP_LABELS = {"punish": "punishment", "rank": "mean rank"}
#: More layers than that are rows of a heat map, not lines; more groups or samples than that are thinned out.
MANY_LAYERS, MANY_GROUPS, MANY_SAMPLES = 8, 256, 200
#: The first layer's filters are shown as images if they are no smaller than this, and no more of them than that.
FILTER_SIZE, MANY_FILTERS = 3, 96


def progress(rows: Sequence[Row], before: float | None = None) -> Figure | None:
    """Loss while training and accuracy at each test over the iterations run, the states of the schedule behind them.

    `before` is the accuracy before pruning, a dashed line.
    """
    samples, tests = of_kind(rows, "sample"), [row for row in of_kind(rows, "test") if row["accuracy"] is not None]
    if not samples:
        return None
    end = max(row["step"] for row in rows)
    figure, axes = _figure(2 if tests else 1, HEIGHT * (1.6 if tests else 1))
    axes[0].plot(*_xy(samples, "loss"), color=BLUE, linewidth=0.8, label="training")
    if any(row.get("loss") is not None for row in tests):
        axes[0].plot(*_xy(tests, "loss"), color=ORANGE, marker=".", linewidth=0.8, label="test")
        axes[0].legend(fontsize="small")
    axes[0].set_ylabel("loss")
    if tests:
        steps, values = _xy(tests, "accuracy")
        axes[1].plot(steps, 100 * values, color=ORANGE, marker=".", linewidth=0.8)
        axes[1].set_ylabel("test accuracy in %")
        if before is not None:
            axes[1].axhline(100 * before, color=GREY, linestyle="--", linewidth=1, label="before pruning")
            axes[1].legend(fontsize="small", loc="lower right")
        axes[1].ticklabel_format(axis="y", useOffset=False)
    for panel in axes:
        panel.set_xlim(0, end)
        _shade_states(panel, samples, end)
        panel.grid(alpha=0.3)
    _name_states(figure, samples)
    axes[-1].set_xlabel("iterations run")
    return figure


def ratios(rows: Sequence[Row]) -> Figure | None:
    """The share of each layer's weights that is pruned, over the iterations: lines, or a heat map of many layers."""
    samples = [row for row in of_kind(rows, "sample") if row.get("layers")]
    if not samples:
        return None
    names, steps = list(samples[0]["layers"]), [row["step"] for row in samples]
    values = np.array([[row["layers"][name]["pruned_ratio"] for name in names] for row in samples])
    if len(names) > MANY_LAYERS:
        figure, (panel,) = _figure(1, max(HEIGHT, 0.17 * len(names) + 0.9))
        _heat_map(figure, panel, steps, values, "share of the weights pruned", ceiling=1.0)
        panel.set_yticks(np.arange(len(names)) + 0.5, names, fontsize=6)
    else:
        figure, (panel,) = _figure(1, HEIGHT)
        for name, line in zip(names, values.T):
            panel.plot(steps, line, label=name, linewidth=1.2)
        _shade_states(panel, samples, steps[-1])
        panel.set(ylim=(0, 1), xlim=(0, steps[-1]), ylabel="share of the weights pruned")
        panel.legend(fontsize="small", loc="best")
        panel.grid(alpha=0.3)
    panel.set_xlabel("iterations run")
    return figure


def groups(rows: Sequence[Row], layer: str) -> Figure | None:
    """What each weight group of a layer went through: heat maps of what the method keeps of it (punishment, rank...) over
    the iterations, the groups in the order in which they were pruned, those that are kept at the top. Where a group is
    pruned it is grey."""
    samples = [row for row in of_kind(rows, "sample") if group_values(row.get("layers", {}).get(layer, {}))]
    if len(samples) < 2:
        return None
    samples = [samples[k] for k in _spread(len(samples), MANY_SAMPLES)]
    steps = [row["step"] for row in samples]
    keys = group_values(samples[0]["layers"][layer])
    values = {key: np.array([row["layers"][layer][key] for row in samples], float) for key in keys}  # None: NaN
    order = _fate(values[keys[-1]])
    order = order[_spread(len(order), MANY_GROUPS)]
    unit = samples[0]["layers"][layer]["unit"]
    figure, axes = _figure(len(keys), HEIGHT * 0.85 * len(keys))
    for panel, key in zip(axes, keys):
        _heat_map(figure, panel, steps, values[key][:, order], GROUP_LABELS.get(key, key.replace("_", " ")))
        panel.set_ylabel(f"{len(order)} of {values[key].shape[1]} {unit}" if len(order) < values[key].shape[1] else unit)
    axes[-1].set_xlabel("iterations run")
    return figure


def filters(before: np.ndarray, after: np.ndarray) -> Figure | None:
    """A first layer's filters, (filters, 1 or 3, height, width), as images before and after pruning; None for others."""
    if before.shape[1] not in (1, 3) or min(before.shape[2:]) < FILTER_SIZE:
        return None
    scale = np.abs(before).max() or 1.0
    figure, axes = _figure(2, HEIGHT * 1.5)
    for panel, weights, when in zip(axes, (before, after), ("before", "after")):
        sheet = contact_sheet(np.clip(weights[:MANY_FILTERS] / scale / 2 + 0.5, 0, 1))
        panel.imshow(sheet if sheet.shape[2] == 3 else sheet[..., 0], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        panel.set_title(f"{when} pruning", fontsize=9)
        panel.axis("off")
    return figure


def contact_sheet(images: np.ndarray) -> np.ndarray:
    """Images (count, channels, height, width) of 0..1 side by side with white edges: (height, width, channels)."""
    count, channels, height, width = images.shape
    across = int(np.ceil(np.sqrt(count * 2)))
    down = -(-count // across)
    sheet = np.ones((down * across, channels, height + 1, width + 1), images.dtype)
    sheet[:count, :, :height, :width] = images
    return (sheet.reshape(down, across, channels, height + 1, width + 1).transpose(0, 3, 1, 4, 2)
            .reshape(down * (height + 1), across * (width + 1), channels))


def weights(before: np.ndarray, after: np.ndarray) -> Figure:
    """A layer's weights as the matrix of rows (filters) and columns that pruning sees, before and after: how large they
    are, pruned ones white."""
    matrices = [np.abs(values.reshape(len(values), -1)) for values in (before, after)]
    matrices = [_thin(matrix, (MANY_GROUPS, 2 * MANY_GROUPS)) for matrix in matrices]
    figure, axes = _figure(2, HEIGHT * 1.5)
    top = np.quantile(matrices[0], 0.99) or 1.0
    for panel, matrix, when in zip(axes, matrices, ("before", "after")):
        image = panel.imshow(np.where(matrix == 0, np.nan, matrix), aspect="auto", cmap="viridis", vmin=0, vmax=top,
                             interpolation="nearest")
        panel.set_title(f"size of the weights {when} pruning", fontsize=9)
        panel.set(ylabel="rows", xlabel="columns", xticks=[], yticks=[])
    figure.colorbar(image, ax=axes, shrink=0.6)
    return figure


def savings(layers: Sequence[Mapping[str, Any]]) -> Figure | None:
    """What is left of each layer's rows, columns and weights."""
    if not layers:
        return None
    figure, (panel,) = _figure(1, max(HEIGHT * 0.8, 0.3 * len(layers) + 0.8))
    place = np.arange(len(layers))
    bars = {"rows": GREY, "columns": ORANGE, "weights": BLUE}
    for k, (what, color) in enumerate(bars.items()):
        left = [1 - (layer["pruned_ratio"] if what == "weights" else layer[f"{what}_pruned"] / layer[what])
                for layer in layers]
        panel.barh(place + 0.27 * (k - 1), np.multiply(left, 100), 0.25, color=color, label=what)
    panel.set_yticks(place, [layer["name"] for layer in layers], fontsize=7)
    panel.set(xlim=(0, 100), xlabel="left after pruning, in %")
    panel.invert_yaxis()
    panel.grid(alpha=0.3, axis="x")
    figure.legend(fontsize="small", loc="outside upper center", ncols=3)
    return figure


# -- helpers ----------------------------------------------------------------------------------------------------------

def of_kind(rows: Sequence[Row], what: str) -> list[Row]:
    """The rows that tell of `what`."""
    return [row for row in rows if row["what"] == what]


def group_values(layer: Mapping[str, Any]) -> list[str]:
    """The names of what a record's row tells of every group of a layer."""
    return [key for key, value in layer.items() if isinstance(value, list)]


def states(samples: Sequence[Row], end: int) -> list[tuple[str, int, int]]:
    """(state, first step, last step) of the schedule's states one after the other up to the step `end`, rows without a
    state left out."""
    spans = [(state, [row["step"] for row in group]) for state, group in groupby(samples, lambda row: row.get("state"))]
    ends = [steps[0] for _, steps in spans[1:]] + [end]
    return [(state, steps[0], last) for (state, steps), last in zip(spans, ends) if state]


def _figure(panels: int, height: float) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = list(figure.subplots(panels, 1, squeeze=False)[:, 0])
    for panel in axes:
        panel.tick_params(labelsize=8)
    return figure, axes


def _xy(rows: Sequence[Row], key: str) -> tuple[np.ndarray, np.ndarray]:
    return np.array([row["step"] for row in rows]), np.array([row.get(key) for row in rows], float)


def _shade_states(axes: Axes, samples: Sequence[Row], end: int) -> None:
    for state, start, last in states(samples, end):
        axes.axvspan(start, last, color=SHADES.get(state, OTHER_SHADE), zorder=0, linewidth=0)


def _name_states(figure: Figure, samples: Sequence[Row]) -> None:
    from matplotlib.patches import Patch

    names = dict.fromkeys(row["state"] for row in samples if row.get("state"))
    if names:
        figure.legend(handles=[Patch(color=SHADES.get(name, OTHER_SHADE), label=name) for name in names],
                      fontsize="small", loc="outside upper center", ncols=4)


def _heat_map(figure: Figure, axes: Axes, steps: Sequence[int], values: np.ndarray, label: str,
              ceiling: float | None = None) -> None:
    """`values` (samples, lines) over the steps at which they were taken; NaN is grey."""
    from matplotlib import colormaps

    edges = np.append(steps, steps[-1] + (steps[-1] - steps[-2] if len(steps) > 1 else 1))
    colors = colormaps["viridis"].with_extremes(bad="#d0d0d0")
    mesh = axes.pcolormesh(edges, np.arange(values.shape[1] + 1), np.ma.masked_invalid(values.T), cmap=colors, vmin=0,
                           vmax=ceiling, rasterized=True)
    figure.colorbar(mesh, ax=axes, label=label)


def _fate(ranks: np.ndarray) -> np.ndarray:
    """The groups in the order in which they were pruned, then those that are kept, by their last rank."""
    gone = np.isnan(ranks)
    pruned_at = np.where(gone.any(0), gone.argmax(0), len(ranks))
    last = ranks[np.maximum(pruned_at - 1, 0), np.arange(ranks.shape[1])]
    return np.lexsort((np.nan_to_num(last), pruned_at))


def _spread(count: int, most: int) -> np.ndarray:
    """At most `most` of 0 ... count - 1, evenly spread, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))


def _thin(matrix: np.ndarray, most: tuple[int, int]) -> np.ndarray:
    rows, columns = (_spread(count, limit) for count, limit in zip(matrix.shape, most))
    return matrix[np.ix_(rows, columns)]
