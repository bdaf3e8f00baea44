"""The experiments in prototxt/: their files are read, fit together, and hold the values they claim to hold."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import pytest

from caffe_compat import Solver, proto
from caffe_compat.db import create_database, make_datum
from caffe_compat.net import Net
from increg import PruneHook, datasets, experiments
from increg.budget import measure
from increg.methods import METHODS, method_names
from increg.plugin import attach
from increg.quick import hurry_net
from increg.ratios import foresee
from prototxt.architectures import EXPERIMENTS

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


# -- all experiments --------------------------------------------------------------------------------------------------

LARGE = "alexnet", "vgg16", "resnet50", "resnet34"
SMALL = "convnet", "resnet56", "vgg19"


@pytest.mark.parametrize("name", EXPERIMENTS.names())
def test_files_are_what_the_generators_write(name: str) -> None:
    """After a change run `python -m prototxt.architectures`."""
    folder = experiments.folder(name)
    files = EXPERIMENTS.get(name)()
    for file, text in files.items():
        assert (folder / file).read_text() == text, file
    solvers = {path.name for path in folder.glob("solver*.prototxt")}
    assert solvers == {file for file in files if file.startswith("solver")}


@pytest.mark.parametrize("name", experiments.names())
def test_every_experiment_is_complete(name: str) -> None:
    experiment = experiments.load(name)
    assert experiment.data in datasets.DATASETS
    assert experiment.trains or experiment.weights
    assert set(entry.method for entry in experiment.published) <= set(experiment.methods())
    for method, path in experiment.methods().items():
        param = proto.read_text(path, "SolverParameter").message
        assert method.startswith(param.prune_method) or path.name == f"solver_{param.regularization_type}.prototxt"
        assert param.prune_method in method_names(), path
        assert (experiment.folder / param.net).is_file()
    readme = (experiment.folder / "README.md").read_text()
    assert f"increg reproduce {name}" in readme or name == "digits"
    for entry in experiment.published:  # the README has the numbers that the command shows
        for value in (entry.before, entry.after):
            assert value in readme, value


@pytest.fixture(scope="session")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small databases of the names that the experiments on images in colour read."""
    pytest.importorskip("sklearn")
    folder = tmp_path_factory.mktemp("stand_ins")
    for name in ("cifar10", "cifar10_pad4", "cifar100_pad4", "ilsvrc12"):
        datasets.stand_in(name, folder, 4)
    return folder


@pytest.mark.parametrize("name", SMALL + LARGE)
def test_nets_of_the_experiments_fit_each_other(name: str, stand_ins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The net that is trained has the deploy net's parameters; every layer that a solver names is there."""
    monkeypatch.chdir(stand_ins)
    experiment = experiments.load(name)
    deploy = Net(experiment.folder / "deploy.prototxt", keep_blobs=False)
    param = proto.read_text(experiment.folder / "solver.prototxt", "SolverParameter").message
    document = proto.read_text(experiment.folder / param.net, "NetParameter")
    hurry_net(document.message, experiments.Quick(batch=(1, 1)), new=False)
    net = Net(document, "TRAIN", keep_blobs=False)
    assert {layer: [blob.shape for blob in blobs] for layer, blobs in net.params.items()} == {
        layer: [blob.shape for blob in blobs] for layer, blobs in deploy.params.items()}
    names = set(net.params)
    for path in experiment.methods().values():
        for rule in proto.read_text(path, "SolverParameter").message.prune_ratios:
            assert any(fnmatchcase(layer, rule.layer) for layer in names), f"{path}: {rule.layer}"


#: What the ratios come to, by the authors' own count (they count the multiply-adds of all layers).
GREG_SPEEDUPS = {("resnet56", "GReg1_Row"): 2.55, ("vgg19", "GReg1_Row"): 8.84, ("resnet34", "GReg1_Row"): 1.32,
                 ("resnet50", "GReg1_Row_1.49x"): 1.49, ("resnet50", "GReg1_Row_2.31x"): 2.31,
                 ("resnet50", "GReg1_Row_2.56x"): 2.56, ("resnet50", "GReg1_Row_3.06x"): 3.06}


def hook_of(path: Path, folder: Path) -> PruneHook:
    """What prunes by a solver file, its net with batches of one image."""
    document = proto.read_text(path, "SolverParameter")
    net = proto.read_text(path.parent / document.message.net, "NetParameter")
    proto.write_text(folder / "net.prototxt", hurry_net(net.message, experiments.Quick(batch=(1, 1)), new=False))
    document.message.net = str(folder / "net.prototxt")
    return attach(Solver(document, device="cpu", keep_blobs=False))


@pytest.mark.parametrize(("name", "method"), GREG_SPEEDUPS)
def test_ratios_come_to_the_published_speedups(
        name: str, method: str, stand_ins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(stand_ins)
    hook = hook_of(experiments.load(name).solver(method), tmp_path)
    after, _ = foresee(hook.layers, hook.config, hook.pruner.coupling, hook.pruner.ties)
    budget = measure(after, speedup_counts_fc=True)
    assert budget.speedup == pytest.approx(GREG_SPEEDUPS[name, method], rel=0.02)


def test_the_convnet_has_every_method() -> None:
    """In a unit at least, so that they can be compared; those that need BatchNorm's Scale are in vgg19."""
    cores = {name: {method.rpartition("_")[0] for method in experiments.load(name).methods()} for name in ("convnet", "vgg19")}
    assert cores["convnet"] == set(METHODS.names()) - {"BNScale", "Taylor"}
    assert cores["vgg19"] >= {"BNScale", "Taylor", "OrthoReg"}


def test_the_convnet_s_methods_accept_their_settings(
        stand_ins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each solver makes a hook that prunes to the speedup it names, or, by a ranking of the whole net, begins there."""
    monkeypatch.chdir(stand_ins)
    for method, path in experiments.load("convnet").methods().items():
        hook = hook_of(path, tmp_path)
        _, budget = foresee(hook.layers, hook.config, hook.pruner.coupling, hook.pruner.ties)
        assert hook.config.name == method
        assert 4 <= budget.speedup < (4.5 if method != "RegSpa_Col" else 8), method  # one of 25 positions is much


def test_resnet50_has_the_reference_s_settings() -> None:
    net = proto.read_text(experiments.folder("resnet50") / "train_val.prototxt", "NetParameter").message
    settings = {layer.name: layer.prune_param for layer in net.layer if layer.HasField("prune_param")}
    assert len(settings) == 53 and all(param.prune_ratio == np.float32(0.9) for param in settings.values())
    assert settings["res4a_branch2b"].prune_ratio_step == pytest.approx(0.5025)
    follow = {name for name, param in settings.items() if param.IF_update_row_col}
    assert follow == {name for name in settings if name.endswith(("branch2a", "branch2b"))}


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
