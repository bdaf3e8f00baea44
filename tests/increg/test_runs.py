"""The recorded runs of the reference, on MNIST, through the solver: LeNet-5, step for step.

They need MNIST's IDX files and the reference's weights, which are too large to keep here; skipped where they are not.
`test_methods` runs the same recordings from stored norms.
"""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from pruning import COMMON, RECORDED, recorded_arrays

from caffe_compat.db import create_database, make_datum
from caffe_compat.plugins import create_solver
from caffe_compat.solver import Solver
from increg import PruneHook

SHARED = Path(__file__).parents[3] / "shared"
IMAGES = SHARED / "data" / "mnist"
WEIGHTS = SHARED / "data" / "lenet5" / "baseline_lenet5.caffemodel"
STATE = SHARED / "golden" / "increg" / "col_demo" / "reference_iter_1000.solverstate"

#: How many training images the longest of these runs reads while it prunes.
READ = 7200

NET = """
name: "LeNet"
layer {{ name: "mnist" type: "Data" top: "data" top: "label"
  transform_param {{ scale: 0.00390625 }} data_param {{ source: "{folder}/train" batch_size: 16 backend: LMDB }} }}
layer {{ name: "conv1" type: "Convolution" bottom: "data" top: "conv1" param {{ lr_mult: 1 }} param {{ lr_mult: 2 }}
  prune_param {{ prune_ratio: {ratio1} prune_ratio_step: 0.75 }} convolution_param {{ num_output: 20 kernel_size: 5 }} }}
layer {{ name: "pool1" type: "Pooling" bottom: "conv1" top: "pool1" pooling_param {{ pool: MAX kernel_size: 2 stride: 2 }} }}
layer {{ name: "conv2" type: "Convolution" bottom: "pool1" top: "conv2" param {{ lr_mult: 1 }} param {{ lr_mult: 2 }}
  prune_param {{ prune_ratio: {ratio2} prune_ratio_step: 0.75 }} convolution_param {{ num_output: 50 kernel_size: 5 }} }}
layer {{ name: "pool2" type: "Pooling" bottom: "conv2" top: "pool2" pooling_param {{ pool: MAX kernel_size: 2 stride: 2 }} }}
layer {{ name: "ip1" type: "InnerProduct" bottom: "pool2" top: "ip1" param {{ lr_mult: 1 }} param {{ lr_mult: 2 }}
  inner_product_param {{ num_output: 500 }} }}
layer {{ name: "relu1" type: "ReLU" bottom: "ip1" top: "ip1" }}
layer {{ name: "ip2" type: "InnerProduct" bottom: "ip1" top: "ip2" param {{ lr_mult: 1 }} param {{ lr_mult: 2 }}
  inner_product_param {{ num_output: 10 }} }}
layer {{ name: "accuracy" type: "Accuracy" bottom: "ip2" bottom: "label" top: "accuracy" include {{ phase: TEST }} }}
layer {{ name: "loss" type: "SoftmaxWithLoss" bottom: "ip2" bottom: "label" top: "loss" }}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the first training images as a database."""
    for path in (IMAGES / "train-images-idx3-ubyte.gz", IMAGES / "train-labels-idx1-ubyte.gz", WEIGHTS):
        if not path.exists():
            pytest.skip(f"needs {path.name}, which is not in {path.parent}")
    with gzip.open(IMAGES / "train-images-idx3-ubyte.gz") as file:
        images = np.frombuffer(file.read(16 + READ * 784)[16:], np.uint8).reshape(READ, 1, 28, 28)
    with gzip.open(IMAGES / "train-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(8 + READ)[8:], np.uint8)
    folder = tmp_path_factory.mktemp("lenet5")
    with create_database(folder / "train") as writer:
        for i, (image, label) in enumerate(zip(images, labels)):
            writer.put(b"%08d" % i, make_datum(image, int(label)).SerializeToString())
    return folder


def make(run: str, folder: Path, *, as_reference: bool) -> tuple[Solver, PruneHook]:
    text, ratio1, ratio2 = RECORDED[run]
    (folder / "net.prototxt").write_text(NET.format(folder=folder, ratio1=ratio1, ratio2=ratio2))
    (folder / "solver.prototxt").write_text(COMMON.replace('"s"', f'"{folder}/s"') + text)
    solver = create_solver(folder / "solver.prototxt", as_reference=as_reference, device="cpu", keep_blobs=False)
    return solver, solver.hooks[0]


def compare(hook: PruneHook, run: str, step: int, tolerance: float) -> None:
    """Punishments to `tolerance` of the ceiling, what is zero exactly."""
    data, table = recorded_arrays(), hook.method.table
    for layer in hook.layers[:2]:
        place = f"{run}/{step}/{layer.name}"
        punish = table.row(table.punish, layer.table_index).numpy()
        allowed = tolerance * hook.stages.now.ceiling
        np.testing.assert_allclose(punish, data[f"{place}/punish"], rtol=0, atol=allowed, err_msg=place)
        weight = layer.layout.matrix(layer.weight.tensor.detach()).numpy()
        np.testing.assert_array_equal((weight == 0).all(1), data[f"{place}/zero_rows"], err_msg=place)
        np.testing.assert_array_equal((weight == 0).all(0), data[f"{place}/zero_columns"], err_msg=place)


def finish_steps(printed: str) -> dict[str, int]:
    lines = [line.split() for line in printed.splitlines() if "prune finished!" in line]
    return {words[0]: int(words[words.index("step:") + 1]) for words in lines}


@pytest.mark.parametrize(("run", "steps", "expected", "stage"), [
    ("col_demo", 400, {"ip1": 1, "ip2": 1}, ("prune", 2147483647)),
    ("col_scheme2", 400, {"ip1": 1, "ip2": 1, "conv1": 316, "conv2": 356}, ("losseval", 355)),
    ("row", 450, {"ip1": 1, "ip2": 1, "conv1": 339, "conv2": 423}, ("losseval", 422)),
    ("spatial", 400, {"ip1": 1, "ip2": 1, "conv1": 370, "conv2": 370}, ("losseval", 369)),
])
def test_as_recorded(run: str, steps: int, expected: dict[str, int], stage: tuple[str, int], folder: Path,
                     capsys: pytest.CaptureFixture[str]) -> None:
    """Bit for bit but for ties (col_demo) and one rounding (col_scheme2): see test_methods. Other processors round
    products differently, hence the tolerance, that of the specification for the first 500 iterations."""
    solver, hook = make(run, folder, as_reference=True)
    solver.load_weights(str(WEIGHTS))
    recorded = sorted({int(key.split("/")[1]) for key in recorded_arrays() if key.startswith(f"{run}/") and "norms" not in key})
    for step in [step for step in recorded if step <= steps]:
        solver.step(step - solver.iter)
        compare(hook, run, step, 1e-5)
    assert solver.iter >= 350
    solver.step(steps - solver.iter)
    assert finish_steps(capsys.readouterr().out) == expected
    assert (hook.stages.now.state, hook.stages.now.finished_iter) == stage


def test_columns_are_as_recorded_without_the_switch_too(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the faster convolutions of the default, too."""
    solver, hook = make("col_scheme2", folder, as_reference=False)
    solver.load_weights(str(WEIGHTS))
    for step in (100, 200, 300, 350):
        solver.step(step - solver.iter)
        compare(hook, "col_scheme2", step, 1e-3)
    solver.step(10)
    assert finish_steps(capsys.readouterr().out) == {"ip1": 1, "ip2": 1, "conv1": 316, "conv2": 356}


def test_a_state_that_the_reference_wrote(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its masks, scores and punishments are those recorded at that iteration; see `test_as_recorded` for what follows."""
    if not STATE.exists():
        pytest.skip(f"needs {STATE.name}, which is not in {STATE.parent}")
    with np.load(STATE.parent / "trajectory.npz") as recorded:
        solver, hook = make("col_demo", folder, as_reference=True)
        solver.restore(STATE)
        assert solver.iter == 1000
        assert (hook.stages.now.state, hook.stages.now.stage, hook.stages.now.finished_iter) == ("prune", 1, 2147483647)
        table = hook.method.table
        for layer in hook.layers[:2]:
            for name, tensor in (("score", table.score), ("punish", table.punish)):
                found = table.row(tensor, layer.table_index).numpy()
                np.testing.assert_array_equal(found, recorded[f"1000/{layer.name}/{name}"])
            np.testing.assert_array_equal(layer.masks.columns[0].numpy(), recorded[f"1000/{layer.name}/score"] < 0)
            np.testing.assert_array_equal(solver.history[layer.learnable][0].numpy(), recorded[f"1000/{layer.name}/momentum"])
    solver.step(1)
    assert solver.iter == 1001
    assert finish_steps(capsys.readouterr().out) == {"ip1": 1001, "ip2": 1001}
