"""`increg compare`: a real, tiny comparison from end to end; its table; what it refuses; what it makes of an experiment."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from caffe_compat import proto
from caffe_compat.net import Net
from increg import compare, datasets, experiments
from increg.cli import main
from increg.compare import Task, summary, table
from increg.compare_setup import make_data, make_experiment

pytest.importorskip("sklearn")
ARGUMENTS = ["compare", "digits", "--iterations", "60", "--jobs", "2", "--methods", "Reg_Col", "--out", "run"]


def test_a_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """Two seeds, one method, stopped at once and continued; then nothing is left to do."""
    monkeypatch.chdir(tmp_path)
    arguments = [*ARGUMENTS, "--speedups", "3", "--seeds", "1", "2"]
    assert main([*arguments, "--minutes", "0.001"]) == 0
    assert "Reg_Col" not in (tmp_path / "run" / "compare.txt").read_text()
    assert main(arguments) == 0
    assert "4/4" in capsys.readouterr().out
    found = json.loads((tmp_path / "run" / "compare.json").read_text())
    (row,) = found["rows"]
    assert row["method"] == "Reg_Col" and row["seeds"] == 2 and row["speedup"] == pytest.approx(3, rel=0.15)
    assert row["before"] > 50 and row["after"] > 50 and row["after_sd"] is not None
    runs, baselines = found["runs"], [tmp_path / "run" / f"baseline_seed{k}" / "baseline.caffemodel" for k in (1, 2)]
    assert runs["baseline_seed1"]["accuracy_before"] == runs["Reg_Col_3x_seed1"]["accuracy_before"]
    assert baselines[0].read_bytes() != baselines[1].read_bytes()
    assert not list((tmp_path / "run").glob("*/snapshots"))
    assert main(arguments) == 0
    output = capsys.readouterr().out
    assert "4/4" not in output and "Reg_Col" in output
    assert main([*arguments, "--iterations", "61"]) == 1
    assert "holds a comparison of other settings" in capsys.readouterr().err


def test_a_failed_run_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """A speedup that cannot be reached: what can be run is run, the table is printed, the status is 1."""
    monkeypatch.chdir(tmp_path)
    assert main([*ARGUMENTS, "--speedups", "1000000", "--seeds", "1"]) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "1 runs failed: Reg_Col_1e+06x_seed1" in message
    error = (tmp_path / "run" / "Reg_Col_1e+06x_seed1" / "error.txt").read_text()
    assert "speedup" in error and "Traceback" not in error


def test_no_run_outlives_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told to end, by SIGTERM, it ends its runs first, as by Ctrl-C."""
    started = []

    def start(context: Any, *_: Any) -> tuple[Any, Any]:
        process, listens = context.Process(target=time.sleep, args=(60,)), context.Event()
        process.start()
        started.append(process)
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
        return process, listens

    monkeypatch.setattr(compare, "_start", start)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        compare.Runner([Task(1)], tmp_path, tmp_path, "cpu", 1, None).run()
    assert [process.is_alive() for process in started] == [False]
    assert signal.getsignal(signal.SIGTERM) == before


def test_the_data_are_what_the_net_would_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    experiment = experiments.load("digits")
    make_data(experiment, None, tmp_path / "data")
    datasets.provide("digits", None, tmp_path)
    net = Net(experiment.folder / "train_val.prototxt", "TEST")
    net.forward()
    images, labels = net.blobs["data"].data, net.blobs["label"].data
    with h5py.File(tmp_path / "data" / "test.h5") as file:
        assert len(file["data"]) == 400
        np.testing.assert_array_equal(file["data"][:100], images)
        np.testing.assert_array_equal(file["label"][:100], labels)
    make_experiment(experiment, tmp_path / "data", tmp_path / "made", 100, [2.0, 4.0])
    derived = experiments.load(tmp_path / "made")
    assert sorted(derived.methods()) == ["Reg_Col", "Reg_Col_2x", "Reg_Col_4x"]
    param = proto.read_text(derived.solver("Reg_Col_4x"), "SolverParameter").message
    assert param.prune_target.speedup == pytest.approx(4) and list(param.test_iter) == [1]
    found = param.AA, param.target_reg  # the baseline's 1200 iterations became 100
    assert found == pytest.approx((0.001 * 12 * 12, 0.05 * 12))
    again = Net(tmp_path / "made" / "train_val.prototxt", "TEST")
    again.forward()
    np.testing.assert_array_equal(again.blobs["data"].data[:100], images)


def test_fewer_images_judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While pruning, tests read 80 of the 400 images, of all classes; the net as others build it reads all of them."""
    monkeypatch.chdir(tmp_path)
    experiment = experiments.load("digits")
    monkeypatch.setattr("increg.compare_setup.TEST_BATCH", 100)
    make_data(experiment, None, tmp_path / "data")
    make_experiment(experiment, tmp_path / "data", tmp_path / "made", 100, [2.0], shorten=5, judges=80)
    derived = experiments.load(tmp_path / "made")
    param = proto.read_text(derived.solver("Reg_Col_2x"), "SolverParameter").message
    assert (list(param.test_iter), round(param.AA, 6)) == ([4], 0.025)
    assert list(param.test_state[0].stage) == ["judge"]
    labels = _labels(Net(derived.folder / "train_val.prototxt", "TEST", stages=param.test_state[0].stage))
    with h5py.File(tmp_path / "data" / "test.h5") as file:
        everything = file["label"][()]
    assert len(labels) == 80 and set(labels) == set(range(10))
    assert labels == everything[np.linspace(0, 399, 80).astype(int)].tolist()
    assert _labels(Net(derived.folder / "train_val.prototxt", "TEST")) == everything.tolist()


def _labels(net: Net) -> list[float]:
    found = []
    for _ in range(4):
        net.forward()
        found += net.blobs["label"].data.tolist()
    return found


def test_means_are_removed(tmp_path: Path) -> None:
    """As the convnet's mean_file has it: the mean of the training images."""
    pixels = {phase: np.random.default_rng(k).integers(0, 256, (12, 3, 32, 32), np.uint8)
              for k, phase in enumerate(("train", "test"))}
    for phase, images in pixels.items():
        names = [f"data_batch_{k}.bin" for k in range(1, 6)] if phase == "train" else ["test_batch.bin"]
        for name, part in zip(names, np.array_split(images, len(names))):
            records = np.concatenate([np.full((len(part), 1), 7, np.uint8), part.reshape(len(part), -1)], 1)
            records.tofile(tmp_path / name)
    make_data(experiments.load("convnet"), str(tmp_path), tmp_path / "data")
    for phase, images in pixels.items():
        with h5py.File(tmp_path / "data" / f"{phase}.h5") as file:
            np.testing.assert_allclose(file["data"][()], images - pixels["train"].mean(0), atol=1e-4)
            assert set(file["label"][()]) == {7}


def test_the_table(tmp_path: Path) -> None:
    tasks = [Task(seed, method, 2.0) for method in ("A", "B") for seed in (1, 2)] + [Task(1, "C", 2.0)]
    for task, after in zip(tasks, (0.7, 0.8, 0.9, 0.9)):
        (tmp_path / task.name).mkdir()
        (tmp_path / task.name / "run.json").write_text(json.dumps({"result": {
            "accuracy_before": 0.85, "accuracy_after": after, "speedup": 2.0, "seconds": {"pruning": 10}}}))
    rows = summary(tmp_path, tasks)
    assert [(row["method"], row["after"], row["after_sd"]) for row in rows] == [
        ("A", 75.0, pytest.approx(7.071, abs=1e-3)), ("B", 90.0, 0.0)]  # C has no finished run
    lines = table(rows).splitlines()
    assert lines[1].split()[:2] == ["2x", "B"] and "90.00 +- 0.00" in lines[1] and "-10.00 +- 7.07" in lines[2]


@pytest.mark.parametrize(("arguments", "message"), [
    ("convnet --data nowhere", "nowhere: there is no such folder or file; expected the folder of CIFAR-10's binary version"),
    ("convnet --methods L3_Col", 'no solver for the method "L3_Col"'),
    ("vgg16 --methods Reg_Col", "does not train its weights itself"),
    ("resnet56 --data . --methods Reg_Col", "not one that is kept in memory"),
    ("digits --methods Reg_Col --jobs 0", "--jobs is 0, expected 1 or more"),
    ("digits --methods Reg_Col --judges 0", "--judges is 0, expected 1 or more"),
    ("digits --methods Reg_Col --device warp", "--device warp: "),
])
def test_bad_input(arguments: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                   capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["compare", *arguments.split(), "--out", "run"]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert compare.TABLE not in os.listdir(tmp_path)
