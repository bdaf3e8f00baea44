"""The experiments in prototxt/: their files are read, fit together, and hold the values they claim to hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from caffe_compat import Solver, proto
from caffe_compat.db import create_database, make_datum
from caffe_compat.net import Net
from increg import experiments

NAMES = "lenet5", "digits"
MACS = {"conv1": 20 * 25 * 24 * 24, "conv2": 50 * 500 * 8 * 8}


@pytest.fixture(scope="session")
def databases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny databases of the names that the experiments read."""
    folder = tmp_path_factory.mktemp("databases")
    random = np.random.default_rng(0)
    for name in ("mnist_train_lmdb", "mnist_test_lmdb", "digits_train_lmdb", "digits_test_lmdb"):
        with create_database(folder / name) as writer:
            for i in range(20):
                image = random.integers(0, 256, (1, 28, 28), np.uint8)
                writer.put(b"%08d" % i, make_datum(image, i % 10).SerializeToString())
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_nets_fit_each_other(name: str, databases: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(databases)
    folder = experiments.folder(name)
    deploy = Net(folder / "deploy.prototxt")
    for phase in ("TRAIN", "TEST"):
        net = Net(folder / "train_val.prototxt", phase)
        assert {layer: [blob.shape for blob in blobs] for layer, blobs in net.params.items()} == {
            layer: [blob.shape for blob in blobs] for layer, blobs in deploy.params.items()}
    assert net.outputs == ["accuracy", "loss"]
    assert deploy.blobs["prob"].shape == (1, 10)
    assert {layer: deploy.params[layer][0].count * np.prod(deploy.blobs[layer].shape[2:]) for layer in MACS} == MACS


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("solver", ["solver.prototxt", "solver_baseline.prototxt"])
def test_solvers_can_be_built_beside_their_databases(
        name: str, solver: str, databases: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(databases)
    from increg import plugin

    built = Solver(experiments.folder(name) / solver, device="cpu")
    plugin.attach(built, as_reference=False)
    built.step(1)
    assert len(built.hooks) == (solver == "solver.prototxt")


def test_lenet5_has_the_reference_s_values() -> None:
    """Those of the recorded run (tests/golden/increg), which are those of the reference's experiment."""
    folder = experiments.folder("lenet5")
    param = proto.read_text(folder / "solver.prototxt", "SolverParameter").message
    expected = {
        "base_lr": 0.0005, "lr_policy": "fixed", "momentum": 0.9, "weight_decay": 0.00025, "prune_method": "Reg_Col",
        "AA": 0.00025, "target_reg": 0.05, "iter_size_prune": 1, "iter_size_losseval": 2, "iter_size_retrain": 2,
        "iter_size_final_retrain": 8, "acc_borderline": -1, "losseval_interval": 1000, "retrain_test_interval": 500,
    }
    assert {name: getattr(param, name) for name in expected} == {
        name: pytest.approx(value, rel=1e-6) if isinstance(value, float) else value for name, value in expected.items()}
    net = proto.read_text(folder / "train_val.prototxt", "NetParameter").message
    ratios = {layer.name: layer.prune_param.prune_ratio for layer in net.layer if layer.HasField("prune_param")}
    assert ratios == {"conv1": pytest.approx(0.9), "conv2": pytest.approx(0.9)}
    assert [layer.data_param.batch_size for layer in net.layer if layer.type == "Data"] == [16, 100]


def test_digits_are_the_same_every_time(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    experiments.make_digits(tmp_path)
    experiments.make_digits(tmp_path)  # leaves what is there alone
    net_text = '''layer {
      name: "d" type: "Data" top: "data" top: "label" data_param { source: "%s" batch_size: 100 backend: LMDB }
    }'''
    counts = []
    for name, batches in (("digits_train_lmdb", 13), ("digits_test_lmdb", 4)):
        net = Net(proto.parse_text(net_text % (tmp_path / name), "NetParameter"), "TEST")
        labels = []
        for _ in range(batches):
            net.forward()
            labels += net.blobs["label"].data.tolist()
        counts.append(np.bincount(np.array(labels, int), minlength=10))
        assert net.blobs["data"].shape == (100, 1, 28, 28)
        assert 200 < net.blobs["data"].data.max() <= 255
    assert counts[1].sum() == 400 and counts[1].min() >= 38 and counts[1].max() <= 42  # each digit in equal shares
