"""`increg report`: one HTML page, and PNGs, that show a run of `increg reproduce` or `increg demo`, finished or not.

The page needs nothing but itself: charts are SVGs inside it, there is no script, and it fits a phone.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from functools import partial
from html import escape
from importlib.resources import files
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import numpy as np

from caffe_compat.errors import CaffeError
from caffe_compat.proto import Document, replacing
from caffe_compat.weights import read_weights

from . import charts
from .record import Row, read_record
from .runfolder import BASELINE, CHARTS, HISTORY, NOTE, PAGE, PRUNED, RECORD, SOLVER, TRAINING, read_history

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HELP = "show a run as one HTML page, with its charts as PNGs beside it"

#: Resolution of the PNGs, and of heat maps inside the SVGs, in dots per inch.
DPI = 144


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what `run` needs."""
    parser.add_argument("run_dir", metavar="RUN_DIR", help="the folder of the run")
    parser.add_argument("--tensorboard", action="store_true",
                        help="also write what was recorded as TensorBoard logs, to RUN_DIR/tensorboard")


def run(args: argparse.Namespace) -> None:
    """The command."""
    folder = Path(args.run_dir)
    print(f"The page is {write_report(folder)}")
    if args.tensorboard:
        from .tensorboard import write_logs

        print(f"For TensorBoard: tensorboard --logdir {write_logs(folder)}")


def write_report(folder: Path) -> Path:
    """Writes `report.html`, and the charts as PNGs in `charts/`, into a run's folder; returns the page's path.

    Raises `CaffeError` if there is no run in `folder`, or matplotlib is not installed.
    """
    if not find_spec("matplotlib"):
        raise CaffeError('a report needs matplotlib: pip install "caffe-compat[demo]"')
    if not folder.is_dir():
        raise CaffeError(f"{folder}: there is no such folder; give that of a run of increg reproduce or increg demo")
    if not any((folder / name).exists() for name in (RECORD, TRAINING)):
        raise CaffeError(f"{folder}: holds neither {RECORD} nor {TRAINING}; give the folder of a run of increg reproduce "
                         "or increg demo that has begun to train or prune")
    return Report(folder).write()


class Report:
    """A run's page in the making. All that may be missing because the run is not finished is left out."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows = _rows(folder / RECORD)
        self.training = _rows(folder / TRAINING)
        note = json.loads((folder / NOTE).read_text()) if (folder / NOTE).exists() else {}
        self.plan: dict[str, Any] = note.get("plan", {})
        self.result: dict[str, Any] = note.get("result", {})
        self.images: list[str] = []

    def write(self) -> Path:
        """Draws all charts, then writes the page."""
        (self.folder / CHARTS).mkdir(exist_ok=True)
        sections = {"Progress": self._progress(), "Cost": self._cost(), "Published and measured": self._published(),
                    "Weight groups": self._groups(), "Weights": self._weights(), "Configuration": self._configuration(),
                    "History": self._history()}
        body = "".join(f"<section><h2>{escape(title)}</h2>{content}</section>"
                       for title, content in sections.items() if content)
        template = Template(files(__package__).joinpath("report.html").read_text())
        path = self.folder / PAGE
        with replacing(path) as temporary:
            temporary.write_text(template.substitute(
                title=escape(self.title()), status=escape(self.status()), cards=self._cards(), body=body))
        return path

    def title(self) -> str:
        """What was run."""
        name = self.plan.get("experiment", self.folder.resolve().name)
        method = self.plan.get("method")
        return f"{name}, pruned with {method}" if method else str(name)

    def status(self) -> str:
        """How far the run is."""
        if self.result:
            return "finished" + (", a quick version: shows that all works, not how well" if self.plan.get("quick") else "")
        last = (self.rows or self.training or [{}])[-1]
        return f"not finished: {last.get('state', 'training')}, {last.get('step', 0)} iterations"

    # -- sections -------------------------------------------------------------------------------------------------------

    def _cards(self) -> str:
        result = self.result
        if not result:
            return ""
        before, after = 100 * result["accuracy_before"], 100 * result["accuracy_after"]
        cards = {"accuracy before": f"{before:.2f} %", "accuracy after": f"{after:.2f} %",
                 "conv multiply-adds": f"{result['speedup']:.2f}x fewer",
                 "conv weights": f"{result['compression']:.2f}x fewer"}
        return "".join(f"<div><b>{escape(value)}</b>{escape(name)}</div>" for name, value in cards.items())

    def _progress(self) -> str:
        before = self.result.get("accuracy_before")
        if before is None:
            tests = [row["accuracy"] for row in charts.of_kind(self.training, "test")]
            before = tests[-1] if tests else None
        return self._grid([("training", "Training before pruning", charts.progress(self.training)),
                           ("progress", "Pruning and retraining", charts.progress(self.rows, before)),
                           ("ratios", "Share of the weights pruned", charts.ratios(self.rows))])

    def _cost(self) -> str:
        if not self.result:
            return ""
        budget, layers = self.result["budget"], self.result["layers"]
        rows = [["conv multiply-adds for one image", f"{budget['operations']:,}", f"{budget['operations_left']:,.0f}",
                 f"{self.result['speedup']:.3f}x"],
                ["conv weights", f"{budget['weights']:,}", f"{budget['weights_left']:,.0f}",
                 f"{self.result['compression']:.3f}x"]]
        by_layer = [[layer["name"], f"{layer['rows_pruned']} of {layer['rows']}",
                     f"{layer['columns_pruned']:g} of {layer['columns']}", f"{100 * layer['pruned_ratio']:.1f} %"]
                    for layer in layers]
        return (table(["", "before", "after", "fewer"], rows)
                + table(["layer", "rows pruned", "columns pruned", "weights pruned"], by_layer)
                + self._grid([("savings", "What is left of each layer", charts.savings(layers))]))

    def _published(self) -> str:
        lines = self.result.get("published", [])
        heading = ["", "accuracy before", "speedup", "accuracy after", "source"]
        return table(heading, [[str(line.get(key, "")) for key in ("what", "before", "speedup", "after", "source")]
                               for line in lines]) if lines else ""

    def _groups(self) -> str:
        samples = [row for row in charts.of_kind(self.rows, "sample") if row.get("layers")]
        names = list(samples[0]["layers"]) if samples else []
        return self._details(((f"groups-{name}", name, partial(charts.groups, self.rows, name)) for name in names), 2)

    def _weights(self) -> str:
        paths = self.folder / BASELINE, self.folder / PRUNED
        if not all(path.exists() for path in paths):
            return ""
        before, after = (_layer_weights(read_weights(path)) for path in paths)
        first = next((name for name, values in before.items() if values.ndim == 4), None)
        names = [layer["name"] for layer in self.result.get("layers", [])] or list(before)
        names = [name for name in names
                 if name in before and name in after and before[name].shape == after[name].shape]
        first_filters = charts.filters(before[first], after[first]) if first in after else None
        return (self._grid([("filters", f"The filters of {first}", first_filters)])
                + self._details(((f"weights-{name}", name, partial(charts.weights, before[name], after[name]))
                                 for name in names), 2))

    def _configuration(self) -> str:
        plan = table(["setting", "value"], [[key, str(value)] for key, value in self.plan.items() if value is not None])
        paths = [self.folder / SOLVER, *sorted(self.folder.glob("solver_*.prototxt")),
                 *sorted(self.folder.glob("train_val*.prototxt"))]
        return plan + "".join(f"<details><summary>{escape(path.name)}</summary><pre>{escape(path.read_text())}</pre></details>"
                              for path in paths if path.exists())

    def _history(self) -> str:
        events = read_history(self.folder / HISTORY)
        keys = list(dict.fromkeys(key for event in events for key in event))
        return table(keys, [[str(event.get(key, "")) for key in keys] for event in events]) if events else ""

    # -- pieces ---------------------------------------------------------------------------------------------------------

    def _grid(self, images: list[tuple[str, str, Figure | None]]) -> str:
        cells = "".join(self._image(name, title, figure) for name, title, figure in images if figure is not None)
        return f'<div class="grid">{cells}</div>' if cells else ""

    def _details(self, images: Iterator[tuple[str, str, Any]], unfolded: int) -> str:
        """Charts, drawn one at a time, the first few of them unfolded."""
        cells = []
        for name, title, draw in images:
            figure = draw()
            if figure is not None:
                folded = "" if len(cells) < unfolded else "</details>"
                opening = f"<details><summary>{escape(title)}</summary>" if folded else ""
                cells.append(f"<div>{opening}{self._image(name, title, figure)}{folded}</div>")
        return f'<div class="grid">{"".join(cells)}</div>' if cells else ""

    def _image(self, name: str, title: str, figure: Figure) -> str:
        """Saves the chart as a PNG; returns it as an SVG in an <img>, which keeps the ids of its parts to itself."""
        from base64 import b64encode

        import matplotlib

        figure.get_layout_engine().execute(figure)
        figure.set_layout_engine("none")  # laying out takes as long as drawing: once is enough
        safe = "".join(character if character.isalnum() or character in "-_" else "_" for character in name)
        with replacing(self.folder / CHARTS / f"{safe}.png") as temporary:
            figure.savefig(temporary, format="png", dpi=DPI)
        stream = BytesIO()
        with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif"}):
            figure.savefig(stream, format="svg", dpi=DPI, metadata={"Date": None})
        data = b64encode(stream.getvalue()).decode()
        return (f'<figure><figcaption>{escape(title)}</figcaption>'
                f'<img alt="{escape(title)}" src="data:image/svg+xml;base64,{data}"></figure>')


def table(heading: list[str], rows: list[list[str]]) -> str:
    """An HTML table that scrolls by itself where the page is too narrow for it."""
    if not rows:
        return ""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in heading)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _rows(path: Path) -> list[Row]:
    return read_record(path) if path.exists() else []


def _layer_weights(document: Document) -> dict[str, np.ndarray]:
    """The weight of every layer that has one of two or more axes."""
    names = [layer.name for layer in document.message.layer]
    found = {key: values for key, values in document.arrays.items() if values.ndim >= 2}
    return {names[key[1]]: values for key, values in found.items() if key[0] == "layer" and key[-1] == 0}
