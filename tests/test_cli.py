"""The command line: Caffe's flags, log lines that Caffe's parsers read, errors without a traceback."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from caffe_compat import cli

FOLDER = Path(__file__).parent / "golden" / "solvers"
TEST_NET = """
layer { name: "data" type: "HDF5Data" top: "data" top: "label"
  hdf5_data_param { source: "data/train_list.txt" batch_size: 10 } }
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1" convolution_param { num_output: 6 kernel_size: 3 } }
layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
layer { name: "pool1" type: "Pooling" bottom: "conv1" top: "pool1" pooling_param { kernel_size: 2 stride: 2 } }
layer { name: "conv2" type: "Convolution" bottom: "pool1" top: "conv2" convolution_param { num_output: 8 kernel_size: 3 } }
layer { name: "ip" type: "InnerProduct" bottom: "conv2" top: "ip" inner_product_param { num_output: 10 } }
layer { name: "accuracy" type: "Accuracy" bottom: "ip" bottom: "label" top: "accuracy" }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
"""


@pytest.fixture(autouse=True)
def in_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs in the folder of the recorded solvers."""
    monkeypatch.chdir(FOLDER)


@pytest.fixture
def solver(tmp_path: Path) -> Path:
    """A solver that trains 6 iterations, shows every second, and tests every third."""
    test_net = tmp_path / "test.prototxt"
    test_net.write_text(TEST_NET)
    path = tmp_path / "solver.prototxt"
    path.write_text(f'train_net: "net_a.prototxt" test_net: "{test_net}" test_iter: 20 test_interval: 3 base_lr: 0.05 '
                    'lr_policy: "step" gamma: 0.1 stepsize: 4 max_iter: 6 display: 2 solver_mode: CPU momentum: 0.9')
    return path


def test_train_then_test(solver: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", f"--solver={solver}", "-weights", "init_net_a.caffemodel"]) == 0
    out, log = capfd.readouterr()
    assert out == ""
    lines = log.splitlines()
    prefix = r"[IWE]\d{4} \d{2}:\d{2}:\d{2}\.\d{6} +\d+ \w+\.py:\d+\] "
    shown = [re.sub(prefix, "", line, count=1) for line in lines if re.match(prefix, line)]
    rates = [match.groups() for line in shown if (match := re.fullmatch(r"Iteration (\d+), lr = (\S+)", line))]
    assert rates == [("0", "0.05"), ("2", "0.05"), ("4", "0.005")]
    losses = [int(match[1]) for line in shown
              if (match := re.fullmatch(r"Iteration (\d+) \(\S+ iter/s, \S+s/2 iters\), loss = \d\S*", line))]
    assert losses == [0, 2, 4]
    assert sum(line.startswith("    Train net output #0: loss = ") for line in shown) == 3
    assert [line for line in shown if line.endswith("Testing net (#0)")] == [
        f"Iteration {i}, Testing net (#0)" for i in (0, 3, 6)]
    accuracies = [line for line in shown if re.fullmatch(r"    Test net output #0: accuracy = [\d.]+", line)]
    assert len(accuracies) == 3
    assert re.fullmatch(r"    Test net output #1: loss = \S+ \(\* 1 = \S+ loss\)", shown[shown.index(accuracies[0]) + 1])
    assert any(line.startswith("Solving traj_a") for line in shown) and "Optimization Done." in shown
    weights = solver.with_name("solver_iter_6.caffemodel")
    assert weights.exists()

    model = str(solver.with_name("test.prototxt"))
    assert cli.main(["test", "--model", model, f"-weights={weights}", "-iterations", "20"]) == 0
    scored = capfd.readouterr().err
    final = accuracies[-1].split(" = ")[1]
    assert re.search(rf"\] accuracy = {final}$", scored, re.MULTILINE)
    assert len(re.findall(r"\] Batch \d+, accuracy = ", scored)) == 20


def test_resuming(solver: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", f"--solver={solver}", "--weights=init_net_a.caffemodel"]) == 0
    text = solver.read_text().replace("max_iter: 6", "max_iter: 8")
    solver.write_text(text)
    assert cli.main(["train", f"--solver={solver}", f"--snapshot={solver.with_name('solver_iter_6.solverstate')}"]) == 0
    assert "Iteration 8, loss = " in capfd.readouterr().err
    assert solver.with_name("solver_iter_8.solverstate").exists()


WRONG = {
    "no solver": (["train"], "--solver"),
    "unknown command": (["trian"], 'did you mean "train"'),
    "unknown flag": (["train", "--solver=x", "--wieghts=y"], "--wieghts"),
    "missing solver": (["train", "--solver=nowhere.prototxt"], "nowhere.prototxt"),
    "both": (["train", "--solver={solver}", "--weights=a", "--snapshot=b"], "but not both"),
    "missing weights": (["train", "--solver={solver}", "--weights=nowhere.caffemodel"], "nowhere.caffemodel"),
    "missing snapshot": (["train", "--solver={solver}", "--snapshot=nowhere.solverstate"], "nowhere.solverstate"),
    "text as weights": (["train", "--solver={solver}", "--weights=net_a.prototxt"], "net_a.prototxt"),
    "binary as solver": (["train", "--solver=init_net_a.caffemodel"], "init_net_a.caffemodel"),
    "net as solver": (["train", "--solver=net_a.prototxt"], "net_a.prototxt:"),
    "no batches": (["test", "--model=net_a.prototxt", "--weights=init_net_a.caffemodel", "--iterations=0"], "1 or more"),
    "bad effect": (["train", "--solver={solver}", "--sigint_effect=halt"], "stop, snapshot or none"),
    "missing images": (["convert_mnist_data", "nowhere.idx", "nolabels.idx", "{folder}/db"], "nowhere.idx"),
}


@pytest.mark.parametrize("case", WRONG, ids=str)
def test_errors_are_one_line_and_status_1(case: str, solver: Path, capfd: pytest.CaptureFixture[str]) -> None:
    argv, message = WRONG[case]
    argv = [word.format(solver=solver, folder=solver.parent) for word in argv]
    before = sorted(solver.parent.iterdir())
    try:
        status = cli.main(argv)
    except SystemExit as stop:
        status = stop.code
    assert status == 1
    err = capfd.readouterr().err
    assert "Traceback" not in err
    assert message in [line for line in err.splitlines() if "error: " in line][-1]
    assert sorted(solver.parent.iterdir()) == before


@pytest.mark.skipif("__import__('torch').cuda.is_available()", reason="there is a CUDA device")
def test_gpu_without_one(solver: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", f"--solver={solver}", "--gpu=0"]) == 1
    assert "--gpu=0: no CUDA device is available" in capfd.readouterr().err
