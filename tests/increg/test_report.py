"""`increg report`: what the page holds, that it needs nothing but itself, and how a real browser shows it, also on a phone."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from caffe_compat.net import Net
from increg import experiments
from increg.cli import main
from increg.record import read_record
from increg.report import write_report
from increg.runfolder import BASELINE, HISTORY, NOTE, PRUNED, RECORD, SOLVER, add_history, write_note

pytest.importorskip("matplotlib")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PHONE, DESKTOP = 360, 1280
UNSAFE = '<script>alert("no")</script>'


def sample(step: int, state: str, groups: bool) -> dict:
    """A record's row, of two layers with 10 and 600 columns of which more and more are pruned."""
    layers = {}
    for name, count in (("conv1", 10), ("conv2/3x3", 600)):
        gone = min(step * count // 400, int(0.8 * count))
        layers[name] = {"unit": "columns", "target": 0.8, "pruned_ratio": gone / count, "rows": 0, "columns": gone}
        if groups:
            values = [None if k < gone else k / count for k in range(count)]
            layers[name] |= {"punish": values, "score": values}
    return {"what": "sample", "step": step, "iter": step - 1, "rate": 0.1, "loss": 1 / step, "state": state, "stage": 1,
            "ceiling": 1.0, "layers": layers}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run's folder, its record made up."""
    folder = tmp_path_factory.mktemp("run")
    rows = [sample(step, "prune", True) for step in range(20, 401, 20)] + [sample(420, "losseval", False)]
    rows += [{"what": "test", "step": step, "iter": step, "accuracy": 0.9 + step / 1e5, "loss": 0.2}
             for step in range(450, 600, 50)]
    rows += [sample(600, "retrain", False)]
    (folder / RECORD).write_text("".join(f"{json.dumps(row)}\n" for row in sorted(rows, key=lambda row: row["step"])))
    net = Net(experiments.folder("digits") / "deploy.prototxt", seed=1)
    for weights, kept in ((BASELINE, 1.0), (PRUNED, 0.0)):
        for layer, blobs in net.params.items():
            blobs[0].data[...] = np.random.default_rng(len(layer)).normal(size=blobs[0].shape)
            blobs[0].data[:, ..., ::2] *= kept
        net.save(folder / weights)
    shutil.copy(experiments.folder("digits") / "solver.prototxt", folder / SOLVER)
    layers = [{"name": name, "rows": 20, "columns": 25, "rows_pruned": 2, "columns_pruned": 20.0, "pruned_ratio": 0.82}
              for name in ("conv1", "conv2")]
    write_note(folder / NOTE, {
        "plan": {"experiment": UNSAFE, "method": "Reg_Col", "seed": 7, "quick": False},
        "result": {"accuracy_before": 0.95, "accuracy_after": 0.9475, "speedup": 5.038, "compression": 5.005, "layers": layers,
                   "budget": {"operations": 1888000, "operations_left": 374720.0, "weights": 25500, "weights_left": 5095.0},
                   "published": [{"what": "IncReg", "before": "99.09", "speedup": "10.934x", "after": "99.01", "source": "S&P"},
                                 {"what": "this run", "before": "95.00", "speedup": "5.038x", "after": "94.75",
                                  "source": "seed 7"}]}})
    add_history(folder / HISTORY, what="pruning begins", device="cpu")
    add_history(folder / HISTORY, what="pruning goes on", device="cpu")
    assert main(["report", str(folder)]) == 0
    return folder


class Page(HTMLParser):
    """What a page is made of: text, images, and everything that would be loaded from elsewhere."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.images: dict[str, str] = {}
        self.elsewhere: list[str] = []
        self.text = ""
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        if tag == "img":
            self.images[given["alt"]] = given["src"]
        if tag in ("script", "link", "iframe") or given.get("href"):
            self.elsewhere.append(tag)
        self.elsewhere += [value for key, value in attributes if key in ("src", "srcset") and not value.startswith("data:")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_what_the_page_holds(folder: Path) -> None:
    page = Page(folder / "report.html")
    assert page.elsewhere == [] and "@import" not in page.text and "url(" not in page.text
    assert set(page.images) == {"Pruning and retraining", "Share of the weights pruned", "What is left of each layer",
                                "conv1", "conv2", "conv2/3x3", "The filters of conv1"}
    for text in (UNSAFE, "pruned with Reg_Col", "95.00 %", "94.75 %", "5.04x fewer", "10.934x", "S&P", "1,888,000",
                 'prune_method: "Reg_Col"', "pruning goes on"):
        assert text in page.text
    assert "<script>" not in (folder / "report.html").read_text()


def test_pngs(folder: Path) -> None:
    import cv2

    paths = sorted((folder / "charts").glob("*"))
    assert [path.name for path in paths] == ["filters.png", "groups-conv1.png", "groups-conv2_3x3.png", "progress.png",
                                             "ratios.png", "savings.png", "weights-conv1.png", "weights-conv2.png"]
    for path in paths:
        image = cv2.imread(str(path))
        assert image.shape[1] > 500 and len(np.unique(image @ (1, 256, 65536))) > 8, path


@pytest.mark.skipif(BROWSER is None, reason="needs a browser: apt-get install chromium")
@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_in_a_browser(folder: Path, tmp_path: Path, width: int) -> None:
    """All images are shown, and the page is no wider than the screen. The script that tells so is added by this test."""
    script = """<script>addEventListener("load", () => parent.postMessage([
        document.documentElement.scrollWidth, innerWidth, document.images.length,
        [...document.images].filter(image => image.complete && image.naturalWidth > 100).length,
        document.querySelectorAll("h2").length], "*"))</script></body>"""
    page = (folder / "report.html").read_text()
    (tmp_path / "page.html").write_text(page.replace("</body>", script))
    (tmp_path / "frame.html").write_text(
        f'<body><script>onmessage = event => document.title = event.data.join(" ")</script>'
        f'<iframe src="page.html" width="{width}" height="800" style="border:0"></iframe></body>')
    result = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}",
         "--virtual-time-budget=10000", "--dump-dom", f"file://{tmp_path / 'frame.html'}"],
        capture_output=True, text=True, timeout=300)
    found = re.search(r"<title>(.*?)</title>", result.stdout)
    assert found, result.stderr[-1000:]
    page_width, window, images, shown, headings = map(int, found[1].split())
    assert window == width and page_width <= width
    assert images == shown == 8
    assert headings == 7


def test_an_unfinished_run(folder: Path, tmp_path: Path) -> None:
    rows = (folder / RECORD).read_text().splitlines(keepends=True)
    (tmp_path / RECORD).write_text("".join(rows[:5]))
    page = Page(write_report(tmp_path))
    assert "not finished: prune, 100 iterations" in page.text
    assert set(page.images) == {"Pruning and retraining", "Share of the weights pruned", "conv1", "conv2/3x3"}


def test_many_layers(tmp_path: Path) -> None:
    """More than fit into a legend become a heat map."""
    row = sample(20, "prune", False)
    rows = [{**row, "step": step, "layers": {f"conv{k}": row["layers"]["conv1"] for k in range(30)}} for step in (20, 40)]
    (tmp_path / RECORD).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    assert "Share of the weights pruned" in Page(write_report(tmp_path)).images


def test_tensorboard_logs(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shutil.copy(folder / RECORD, tmp_path)
    assert main(["report", str(tmp_path), "--tensorboard"]) == 0
    assert f"tensorboard --logdir {tmp_path}/tensorboard" in capsys.readouterr().out
    events = EventAccumulator(str(tmp_path / "tensorboard" / "pruning")).Reload()
    samples = [row for row in read_record(tmp_path / RECORD) if row["what"] == "sample"]
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [
        (row["step"], pytest.approx(row["loss"])) for row in samples]
    assert [event.step for event in events.Scalars("test/accuracy")] == [450, 500, 550]
    assert "punish/conv1" in events.Tags()["histograms"]


@pytest.mark.parametrize(("name", "message"), [("nowhere", "there is no such folder"), ("", "holds neither record.jsonl nor")])
def test_no_run(name: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["report", str(tmp_path / name)]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
