"""The command line's log against real Caffe's: line by line, and as tables that Caffe's log parser would make of it.

`golden/logs` has the commands, their input and what Caffe logged.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from caffe_compat import cli, hdf5, proto

FOLDER = Path(__file__).parent / "golden" / "logs"
CASES = json.loads((FOLDER / "cases.json").read_text())
RUNS = {run["log"].removesuffix(".log"): run for run in CASES["runs"]}

PREFIX = re.compile(r"([IWEF])(\d\d\d\d \d\d:\d\d:\d\d\.\d{6}) +\d+ \S+:\d+\] (.*)")
NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?(?![\w.])")
SPEED = re.compile(r"\(\S+ iter/s, \S+s/(\d+) iters\)")
#: What only one of the two says, or says at another place.
ELSEWHERE = re.compile("Use CPU|Initializing (net|solver) from|Finetuning from|Ignoring source layer|Resuming from"
                       "|SGDSolver: restoring history|Restoring previous|snapshot_prefix|Number of HDF5 files")


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Callable[[str], str]:
    """Runs a recorded command on a copy of its input; returns what it logged."""
    shutil.copytree(FOLDER, tmp_path / "logs")
    monkeypatch.chdir(tmp_path / "logs")

    def run(name: str) -> str:
        capfd.readouterr()
        assert cli.main(RUNS[name]["arguments"]) == 0
        return capfd.readouterr().err

    return run


def messages(log: str) -> list[tuple[str, str]]:
    """(severity, message) of the lines that both should have; speeds are left out."""
    found = [match.group(1, 3) for line in log.splitlines() if (match := PREFIX.fullmatch(line))]
    return [(severity, SPEED.sub(r"(\1 iters)", text)) for severity, text in found if not ELSEWHERE.match(text)]


def numbers(text: str) -> list[float]:
    return [float(number) for number in NUMBER.findall(text)]


@pytest.mark.parametrize("name", ["train", "resume", "variant", "test"])
def test_line_by_line(name: str, log: Callable[[str], str]) -> None:
    """Nets, iterations, rates, losses and outputs; in `variant` also debug_info, clipping and the steps of the rate."""
    ours, caffes = messages(log(name)), messages((FOLDER / f"{name}.log").read_text())
    assert len(caffes) > 75
    assert [(s, NUMBER.sub("#", text)) for s, text in ours] == [(s, NUMBER.sub("#", text)) for s, text in caffes]
    for (_, our), (_, their) in zip(ours, caffes):
        # four significant digits, as sums are rounded in another order; more than that agree in fact
        assert numbers(our) == pytest.approx(numbers(their), rel=1e-4), their


def test_a_loss_that_is_no_number_is_pointed_out_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Where the loss is shown; Caffe trains on, and so do we."""
    (tmp_path / "solver.prototxt").write_text('''
        base_lr: 1e30 lr_policy: "fixed" max_iter: 40 display: 10 solver_mode: CPU snapshot_after_train: false random_seed: 1
        net_param {
          layer { name: "x" type: "DummyData" top: "x" top: "t" dummy_data_param { shape { dim: 2 dim: 3 }
            data_filler { type: "gaussian" } } }
          layer { name: "y" type: "InnerProduct" bottom: "x" top: "y" inner_product_param { num_output: 3
            weight_filler { type: "xavier" } } }
          layer { name: "loss" type: "EuclideanLoss" bottom: "y" bottom: "t" top: "loss" } }''')
    assert cli.main(["train", f"--solver={tmp_path / 'solver.prototxt'}"]) == 0
    warnings = [text for severity, text in messages(capfd.readouterr().err) if severity == "W"]
    assert warnings == ["Iteration 10: training has diverged, the loss is not a number any more. Lower base_lr, set "
                        "clip_gradients, or start from other weights"]


def test_what_is_trained(log: Callable[[str], str]) -> None:
    """The numbers shown are not all: the weights written at the end are Caffe's."""
    log("train")
    ours, caffes = (proto.read_binary(folder / "snap/run_iter_60.caffemodel", "NetParameter").arrays
                    for folder in (Path(), FOLDER))
    assert ours.keys() == caffes.keys() and len(ours) == 4
    for key, values in caffes.items():
        np.testing.assert_allclose(ours[key], values, rtol=0, atol=1e-4)


def test_hdf5_snapshots_of_the_variant(log: Callable[[str], str]) -> None:
    log("variant")
    state = hdf5.read_state("snap/variant_iter_9.solverstate.h5", proto.BVLC).message
    assert (state.iter, state.current_step, state.learned_net) == (9, 2, "snap/variant_iter_9.caffemodel.h5")
    assert {layer.name for layer in hdf5.read_weights(state.learned_net, proto.BVLC).message.layer if layer.blobs} == {
        "conv1", "fc"}


@pytest.mark.parametrize("name", ["time", "time_test_phase"])
def test_time(name: str, log: Callable[[str], str]) -> None:
    """The lines are Caffe's; the numbers are of this machine."""
    ours, caffes = (messages(text[text.index("Performing Forward"):]) for text in
                    (log(name), (FOLDER / f"{name}.log").read_text()))
    assert [(s, NUMBER.sub("#", text)) for s, text in ours] == [(s, NUMBER.sub("#", text)) for s, text in caffes]
    assert len(caffes) > 15


def test_time_of_a_net_with_inputs(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """What is written into an input takes no time, and its layer has its line all the same."""
    path = tmp_path / "net.prototxt"
    path.write_text('layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 2 dim: 5 } } }'
                    'layer { name: "act" type: "TanH" bottom: "x" top: "y" }')
    assert cli.main(["time", f"-model={path}", "-iterations=1", "-phase=TEST"]) == 0
    texts = [text for _, text in messages(capfd.readouterr().err)]
    assert "        in\tforward: 0 ms." in texts and "        in\tbackward: 0 ms." in texts
    assert any(re.fullmatch(r"       act\tforward: [\d.e-]+ ms\.", text) for text in texts)


# -- tables -----------------------------------------------------------------------------------------------------------


def tables(log: str) -> dict[str, list[dict[str, float]]]:
    """What Caffe's parse_log makes of a log: rows of the outputs of training and of tests.

    Nothing counts before "Solving". A row is of the iteration named last and has the rate shown last, which for the
    first row is copied from the second. It ends with the number of columns that the first row has, the first with the
    next iteration; what is open at the end is lost.
    """
    lines = [match.group(2, 3) for line in log.splitlines() if (match := PREFIX.fullmatch(line))]
    start = next(i for i, (_, text) in enumerate(lines) if "Solving" in text)
    rows: dict[str, list[dict[str, float]]] = {"train": [], "test": []}
    unfinished: dict[str, dict[str, float]] = {"train": {}, "test": {}}
    iteration, rate = None, float("nan")
    for time, text in lines[start + 1:]:
        if match := re.search(r"Iteration (\d+)", text):
            iteration = float(match[1])
        if match := re.search(r"lr = ([-+.\de]+)", text):
            rate = float(match[1])
        for kind in rows:
            row = unfinished[kind]
            if match := re.search(rf"{kind.capitalize()} net output #\d+: (\S+) = ([-+.\deE]+)", text):
                if row.get("NumIters") != iteration:
                    if row:
                        rows[kind].append(row)
                    row = {"NumIters": iteration, "Seconds": seconds(lines[start][0], time), "LearningRate": rate}
                row[match[1]] = float(match[2])
            if row and rows[kind] and len(row) == len(rows[kind][0]):
                rows[kind].append(row)
                row = {}
            unfinished[kind] = row
    for found in rows.values():
        if len(found) > 1:
            found[0]["LearningRate"] = found[1]["LearningRate"]
    return rows


def seconds(start: str, end: str) -> float:
    first, last = (datetime.strptime(f"2000{stamp}", "%Y%m%d %H:%M:%S.%f") for stamp in (start, end))
    return (last - first).total_seconds()


@pytest.mark.parametrize("name", CASES["tables"])
def test_tables(name: str, log: Callable[[str], str]) -> None:
    """Our log parses to the recorded tables, but for the seconds; so does Caffe's, with them."""
    expected = CASES["tables"][name]
    assert tables((FOLDER / f"{name}.log").read_text()) == expected
    ours = tables(log(name))
    for kind, rows in expected.items():
        assert len(ours[kind]) == len(rows) > 1
        for our, their in zip(ours[kind], rows):
            assert 0 <= our.pop("Seconds") < 60
            assert our == pytest.approx({key: value for key, value in their.items() if key != "Seconds"}, rel=1e-4)


# -- where Caffe aborts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, run in RUNS.items() if run["aborted"]])
def test_aborted_commands(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    """A line that says what is wrong and status 1, where Caffe dumps core."""
    with pytest.raises(SystemExit) as stop:
        raise SystemExit(cli.main(RUNS[name]["arguments"]))
    assert stop.value.code == 1
    err = capfd.readouterr().err
    assert "Traceback" not in err
    (line,) = [line for line in err.splitlines() if "error: " in line]
    if name == "unknown_action":
        assert all(re.search(rf"\b{command}\b", line) for command in ("dance", "device_query", "test", "time", "train"))
    else:
        assert {"train_without_solver": "--solver", "train_snapshot_and_weights": "but not both"}[name] in line
