"""`increg demo` and `increg reproduce`: the main job from end to end, in seconds; what it writes, how it goes on, and what it
refuses."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from caffe_compat import proto
from caffe_compat.errors import CaffeError
from caffe_compat.net import Net
from increg import datasets, experiments, runfolder
from increg.cli import main
from increg.experiment_run import Run, check_loss
from increg.progress import Progress
from increg.record import read_record
from increg.reproduce import Plan

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a finished quick run, and what it printed, as a user runs it: in a process of its own."""
    folder = tmp_path_factory.mktemp("demo")
    result = increg("demo", "--quick", "--seed", "3", cwd=folder)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return folder / "runs" / "demo", result.stdout


def increg(*arguments: str, cwd: Path, **options: object) -> subprocess.CompletedProcess:
    """Runs the command, its output no terminal."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-m", "increg.cli", *arguments], cwd=cwd, env=environment,
                          capture_output=True, text=True, timeout=600, **options)


def test_it_prunes(finished: tuple[Path, str]) -> None:
    folder, output = finished
    result = json.loads((folder / "run.json").read_text())["result"]
    assert result["speedup"] >= 4
    assert result["compression"] >= 4
    assert result["accuracy_before"] > 0.8  # 120 iterations of 16 images
    assert result["accuracy_after"] > result["accuracy_before"] - 0.05
    assert {layer["name"]: layer["columns_pruned"] for layer in result["layers"]} == {"conv1": 20, "conv2": 400}
    assert f"{result['speedup']:.3f}x fewer" in output
    assert f"{100 * result['accuracy_after']:.2f} %" in output


def test_the_pruned_weights_fit_the_deploy_net(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    net = Net(folder / "deploy.prototxt")
    net.copy_from(folder / "pruned.caffemodel")
    for name, columns in (("conv1", 20), ("conv2", 400)):
        weights = net.params[name][0].data
        assert (weights.reshape(len(weights), -1) == 0).all(0).sum() == columns
    net.blobs["data"].data[...] = 0.5
    assert net.forward()["prob"].sum() == pytest.approx(1)


def test_output_is_plain_lines(finished: tuple[Path, str]) -> None:
    folder, output = finished
    assert all(character.isprintable() or character == "\n" for character in output)
    assert "conv1 is pruned" in output and "Retraining begins" in output
    log = (folder / "log.txt").read_text()
    assert "conv1 prune finished!  step: " in log  # the reference's own lines
    assert "Iteration 0, lr = 0.01" in log


def test_record(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    rows = read_record(folder / "record.jsonl")
    samples = [row for row in rows if row["what"] == "sample"]
    steps = [row["step"] for row in rows]
    assert steps == sorted(steps) and len(samples) > 10
    first, *_, last = [row["layers"]["conv2"] for row in samples if "punish" in row["layers"]["conv2"]]
    assert len(first["punish"]) == len(first["rank"]) == 500 and None not in first["punish"]
    assert last["punish"].count(None) == last["rank"].count(None) == last["columns"] == 400
    assert all(0 <= row["accuracy"] <= 1 and row["loss"] >= 0 for row in rows if row["what"] == "test")
    training = read_record(folder / "training.jsonl")
    assert {row["what"] for row in training} == {"sample", "test"} and not any("layers" in row for row in training)
    assert training[0]["step"] == 0 and training[-1]["step"] == 120  # tested before and after


def test_history(finished: tuple[Path, str]) -> None:
    events = runfolder.read_history(finished[0] / "history.jsonl")
    assert [event["what"] for event in events] == ["training begins", "training stops", "pruning begins", "pruning stops"]
    assert events[0]["torch"] == torch.__version__ and events[1]["iter"] == 120


def test_a_finished_run_is_not_overwritten(finished: tuple[Path, str], capsys: pytest.CaptureFixture) -> None:
    folder, _ = finished
    plan = json.loads((folder / "run.json").read_text())["plan"]
    assert main(["demo", "--quick", "--seed", "3", "--out", str(folder)]) == 1
    assert "holds a finished run" in capsys.readouterr().err
    os.chdir(folder.parents[1])
    try:
        assert runfolder.open_folder(None, plan, "demo") == Path("runs/demo-2")
        assert runfolder.open_folder(None, plan, "demo") == Path("runs/demo-2")  # begun and not finished: it goes on
        assert runfolder.open_folder(None, {**plan, "seed": 4}, "demo") == Path("runs/demo-3")
        assert runfolder.open_folder(None, plan, "digits") == Path("runs/digits")
    finally:
        os.chdir(ROOT)


def test_an_interrupted_run_goes_on(tmp_path: Path, finished: tuple[Path, str]) -> None:
    """Stopped by SIGINT while pruning; the same command finishes it, with the result of a run that was not stopped."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "increg.cli", "demo", "--quick", "--seed", "3", "--out", "run"]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as process:
        watchdog = threading.Timer(500, process.kill)
        watchdog.start()
        for line in process.stdout:
            if "conv1 is pruned" in line:
                process.send_signal(signal.SIGINT)
                break
        rest = process.stdout.read()
        watchdog.cancel()
    assert process.returncode == 130
    assert "Give the same command again to go on" in rest
    again = increg("demo", "--quick", "--seed", "3", "--out", "run", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "Going on from" in again.stdout and "Trained for" not in again.stdout
    assert (tmp_path / "run" / "pruned.caffemodel").read_bytes() == (finished[0] / "pruned.caffemodel").read_bytes()
    records = [read_record(folder / "record.jsonl") for folder in (tmp_path / "run", finished[0])]
    assert records[0] == records[1]


def test_weights_replace_training(finished: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    weights = finished[0] / "baseline.caffemodel"
    plan = Plan("digits", "Reg_Col", weights=str(weights), quick=True)
    run = Run(experiments.load("digits"), asdict(plan), torch.device("cpu"), tmp_path, sys.stdout)
    run.prepare()
    run.train()
    assert (tmp_path / "baseline.caffemodel").read_bytes() == weights.read_bytes()
    assert run.accuracies("baseline.caffemodel")["accuracy"] > 0.8


@pytest.mark.parametrize("kind", ["empty", "foreign", "another net's"])
def test_bad_weights(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "bad.caffemodel"
    path.write_bytes(b"" if kind == "empty" else b"no weights at all")
    if kind == "another net's":
        text = (ROOT / "prototxt" / "digits" / "deploy.prototxt").read_text()
        Net(proto.parse_text(text.replace("num_output: 50", "num_output: 51"), "NetParameter")).save(path)
    assert main(["demo", "--weights", str(path), "--out", "run"]) == 1
    error = capsys.readouterr().err
    assert "bad.caffemodel" in error and error.count("\n") == 1
    assert not (tmp_path / "run" / "baseline.caffemodel").exists()


def test_a_loss_that_is_not_a_number(finished: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                     capsys: pytest.CaptureFixture) -> None:
    """It does not end as a run of 100 %, which Caffe's Accuracy makes of such outputs."""
    monkeypatch.chdir(tmp_path)
    net = Net(finished[0] / "deploy.prototxt")
    net.copy_from(finished[0] / "baseline.caffemodel")
    net.params["conv2"][0].data[0] = float("nan")
    net.save(tmp_path / "diverged.caffemodel")
    assert main(["demo", "--quick", "--weights", "diverged.caffemodel"]) == 1
    error = capsys.readouterr().err
    assert "training has diverged: the loss is nan at iteration 0" in error and error.count("\n") == 1


def test_a_test_before_training_may_have_no_loss() -> None:
    check_loss({"what": "test", "iter": 0, "loss": float("nan")})
    check_loss({"what": "sample", "iter": 0, "loss": 87.3})
    with pytest.raises(CaffeError, match="diverged: the loss is inf at iteration 7"):
        check_loss({"what": "sample", "iter": 7, "loss": float("inf")})


ERRORS = [
    ("demo --mnist nowhere", "nowhere: there is no such folder or file; expected the folder with MNIST's four IDX files"),
    ("demo --mnist empty", "the folder has no file train-images-idx3-ubyte"),
    ("demo --weights nowhere.caffemodel", "nowhere.caffemodel: there is no such file"),
    ("demo --out file/run", "cannot be written"),
    ("demo --out full", "holds a finished run, one of other settings, or other files"),
    ("demo --gpu 99", "--gpu=99"),
    ("reproduce lenet", 'no experiment "lenet" (did you mean "lenet5"?); there are alexnet, convnet,'),
    ("reproduce empty", "and any folder with a file experiment.toml"),
    ("reproduce lenet5", "the data set mnist is needed: --data names the folder with MNIST's four IDX files, or a folder with"),
    ("reproduce convnet --data empty", "empty: has neither binary batches"),
    ("reproduce convnet --data file --method L1_Cal", 'no solver for the method "L1_Cal" (did you mean "L1_Col"?)'),
    ("reproduce vgg19 --data empty", "has no file train.bin; the folder must be cifar-100-binary"),
    ("reproduce vgg16 --data empty", "has no ilsvrc12_train_lmdb, no ilsvrc12_val_lmdb, no imagenet_mean.binaryproto. The exp"),
    ("reproduce resnet50 --data ready", "starts from trained weights: --weights names a trained ResNet-50"),
    ("reproduce vgg16", "the data set ilsvrc12 is needed"),
]


@pytest.mark.parametrize(("arguments", "message"), ERRORS, ids=[arguments for arguments, _ in ERRORS])
def test_bad_input(arguments: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                   capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    (tmp_path / "ready").mkdir()
    for name in datasets.ILSVRC12_FILES:
        (tmp_path / "ready" / name).touch()
    before = sorted(tmp_path.rglob("*"))
    assert main(arguments.split()) == 1
    error = capsys.readouterr().err
    assert error.startswith("increg: error: ") and message in error and error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_damaged_mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (file for files in datasets.MNIST_FILES.values() for file in files):
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(b"\0\0\x08\x03 not an image")[:-9])
    assert main(["demo", "--mnist", ".", "--out", "run"]) == 1
    assert "train-images-idx3-ubyte.gz: the compressed file is damaged" in capsys.readouterr().err
    assert not list((tmp_path / "run").glob("*lmdb*"))


def test_a_list_of_what_there_is(capsys: pytest.CaptureFixture) -> None:
    assert main(["reproduce"]) == 0
    output = capsys.readouterr().out
    assert "ResNet-50 on ImageNet; needs ilsvrc12 and trained weights" in output and "GReg2_Row_2.31x" in output


def test_unknown_command(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as end:
        main(["dmeo"])
    assert end.value.code == 1
    assert 'did you mean "demo"' in capsys.readouterr().err


def test_a_record_cut_off_by_a_crash_is_read(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    path.write_text('{"what": "test", "step": 1}\n{"what": "te')
    assert read_record(path) == [{"what": "test", "step": 1}]
    path.write_text('{"what": "te\n{"what": "test", "step": 1}\n')
    with pytest.raises(CaffeError, match=r"record.jsonl:1: "):
        read_record(path)


def test_progress_lines(capsys: pytest.CaptureFixture) -> None:
    """Without a terminal: a line every so many seconds."""

    class Running:
        iter = 0

    solver = Running()
    progress = Progress("training", 40, lambda solver: "loss 0.5", seconds=0)
    progress.on_train_begin(solver)
    for solver.iter in range(40):
        progress.on_updated(solver)
    progress.on_train_end(solver)
    captured = capsys.readouterr()
    assert [line.split(" (")[0] for line in captured.out.splitlines()] == [
        f"training: iteration {n} of 40, loss 0.5" for n in (10, 20, 30, 40)]
    assert captured.err == ""
