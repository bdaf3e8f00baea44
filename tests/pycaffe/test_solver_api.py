"""pycaffe's solvers: which type trains, steps by hand, callbacks, held arrays, snapshots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import caffe_compat as caffe
from caffe_compat.errors import CaffeError, SolverError
from caffe_compat.solver import SolverHook

NET = """
name: "line"
layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 3 dim: 2 } } }
layer { name: "y" type: "Input" top: "y" input_param { shape { dim: 3 dim: 1 } } }
layer { name: "fc" type: "InnerProduct" bottom: "x" top: "fc" inner_product_param { num_output: 1
  weight_filler { type: "gaussian" std: 1 } } }
layer { name: "loss" type: "EuclideanLoss" bottom: "fc" bottom: "y" top: "loss" }
"""
SOLVER = """
net: "{folder}/net.prototxt" test_iter: 2 test_interval: 1000 test_initialization: false
base_lr: 0.1 lr_policy: "multistep" stepvalue: 2 gamma: 0.5 max_iter: 3 snapshot_prefix: "{folder}/snap"
snapshot_after_train: false random_seed: 1 {more}
"""
X, Y = np.array([[1, 2], [3, -1], [0, 1]], np.float32), np.array([[1], [0], [2]], np.float32)


def solver_file(folder: Path, more: str = "") -> str:
    (folder / "net.prototxt").write_text(NET)
    path = folder / "solver.prototxt"
    path.write_text(SOLVER.format(folder=folder, more=more))
    return str(path)


def ready(solver: Any) -> Any:
    """The solver with data in its net."""
    solver.net.blobs["x"].data[...] = X
    solver.net.blobs["y"].data[...] = Y
    return solver


def gradient(weight: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    error = (X @ weight.T + bias - Y) / 3
    return error.T @ X, error.sum(0)


@pytest.mark.parametrize("name", ["SGD", "Nesterov", "AdaGrad", "RMSProp", "AdaDelta", "Adam"])
def test_the_class_names_the_rule(name: str, tmp_path: Path) -> None:
    momentum = "momentum: 0.9" if name in ("SGD", "Nesterov", "Adam", "AdaDelta") else ""
    more = momentum + (" rms_decay: 0.9" if name == "RMSProp" else "")
    by_file = ready(caffe.get_solver(solver_file(tmp_path, f'{more} type: "{name}"')))
    by_class = ready(getattr(caffe, f"{name}Solver")(solver_file(tmp_path, more)))
    assert type(by_file) is type(by_class) and isinstance(by_class, caffe.SGDSolver)
    assert by_file.param.type == by_class.param.type == name
    for solver in (by_file, by_class):
        before = solver.net.params["fc"][0].data.copy()
        solver.step(3)
        assert not np.array_equal(before, solver.net.params["fc"][0].data)
    np.testing.assert_array_equal(by_file.net.params["fc"][0].data, by_class.net.params["fc"][0].data)


def test_steps(tmp_path: Path) -> None:
    solver = ready(caffe.SGDSolver(solver_file(tmp_path)))
    assert isinstance(solver.net, caffe.Net) and [type(net) for net in solver.test_nets] == [caffe.Net]
    assert (solver.iter, solver.param.max_iter, solver.param.layer_wise_reduce) == (0, 3, True)
    weight, bias = (blob.data for blob in solver.net.params["fc"])  # held all along
    expected = [weight.copy(), bias.copy()]
    for iteration in range(4):
        rate = 0.1 * 0.5 ** (iteration >= 2)
        assert solver.lr == pytest.approx(rate)
        loss = 0.5 * ((X @ expected[0].T + expected[1] - Y) ** 2).sum() / 3
        expected = [value - rate * grad for value, grad in zip(expected, gradient(*expected), strict=True)]
        solver.step(1)
        np.testing.assert_allclose(weight, expected[0], rtol=1e-5)
        np.testing.assert_allclose(bias, expected[1], rtol=1e-5, atol=1e-7)
        assert solver.net.blobs["loss"].data == pytest.approx(loss, rel=1e-5)
    assert solver.iter == 4
    assert solver.net.blobs["fc"].diff.any()  # diffs of all blobs, as in Caffe


def test_an_update_by_hand(tmp_path: Path) -> None:
    solver = caffe.SGDSolver(solver_file(tmp_path))
    weight = solver.net.params["fc"][0].data
    weight[...] = 0
    solver.net.params["fc"][0].diff[...] = [[1, 2]]
    solver.apply_update()
    np.testing.assert_allclose(weight, [[-0.1, -0.2]], rtol=1e-6)
    solver.param.base_lr = 1
    solver.net.params["fc"][0].diff[...] = [[1, 2]]
    solver.apply_update()
    np.testing.assert_allclose(weight, [[-1.1, -2.2]], rtol=1e-6)


def test_solve_and_resume(tmp_path: Path) -> None:
    solver = ready(caffe.get_solver(solver_file(tmp_path, "momentum: 0.9 snapshot: 2")))
    solver.solve()
    assert solver.iter == 3
    resumed = ready(caffe.get_solver(solver_file(tmp_path, "momentum: 0.9")))
    held = resumed.net.params["fc"][0].data
    resumed.solve(str(tmp_path / "snap_iter_2.solverstate"))
    assert resumed.iter == 3
    np.testing.assert_array_equal(held, solver.net.params["fc"][0].data)
    resumed.restore(tmp_path / "snap_iter_2.solverstate")
    assert resumed.iter == 2
    assert not np.array_equal(held, solver.net.params["fc"][0].data)
    resumed.step(1)
    np.testing.assert_array_equal(held, solver.net.params["fc"][0].data)
    resumed.snapshot()
    assert (tmp_path / "snap_iter_3.caffemodel").is_file() and (tmp_path / "snap_iter_3.solverstate").is_file()


def test_callbacks(tmp_path: Path) -> None:
    solver = ready(caffe.SGDSolver(solver_file(tmp_path)))
    weight, diff = solver.net.params["fc"][0].data, solver.net.params["fc"][0].diff
    seen = []

    def halve() -> None:
        seen.append(("ready", solver.iter, diff.copy()))
        diff[...] /= 2

    solver.add_callback(lambda: seen.append(("start", solver.iter, weight.copy())), halve)
    before = weight.copy()
    grad = gradient(before, np.zeros(1))[0]
    solver.step(2)
    assert [event[:2] for event in seen] == [("start", 0), ("ready", 0), ("start", 1), ("ready", 1)]
    np.testing.assert_allclose(seen[1][2], grad, rtol=1e-5)
    np.testing.assert_allclose(seen[2][2], before - 0.1 * grad / 2, rtol=1e-5)
    with pytest.raises(CaffeError, match="takes two functions"):
        solver.add_callback(print, None)


def test_test_nets_and_sharing(tmp_path: Path) -> None:
    solver = ready(caffe.SGDSolver(solver_file(tmp_path)))
    test_net = solver.test_nets[0]
    test_net.blobs["x"].data[...] = X
    test_net.blobs["y"].data[...] = Y
    solver.step(1)
    assert not np.array_equal(test_net.params["fc"][1].data, solver.net.params["fc"][1].data)
    loss = 0.5 * ((X @ solver.net.params["fc"][0].data.T + solver.net.params["fc"][1].data - Y) ** 2).sum() / 3
    ((scores),) = solver.test_all()
    assert scores.scores == [("loss", pytest.approx(loss, rel=1e-5))]
    assert test_net.params["fc"][0] is solver.net.params["fc"][0]
    other = caffe.Net(str(tmp_path / "net.prototxt"), caffe.TEST)
    solver.share_weights(other)
    assert other.params["fc"][0] is solver.net.params["fc"][0]


def test_levels_of_the_solver_count(tmp_path: Path) -> None:
    path = solver_file(tmp_path, "train_state { level: 2 } test_state { level: 1 }")
    twice = 'layer { name: "twice" type: "Power" bottom: "fc" top: "twice" include { min_level: 2 } }'
    (tmp_path / "net.prototxt").write_text(NET + twice)
    solver = caffe.SGDSolver(path)
    assert "twice" in solver.net.blobs and "twice" not in solver.test_nets[0].blobs


def test_nets_outlive_their_solver(tmp_path: Path) -> None:
    solver = ready(caffe.SGDSolver(solver_file(tmp_path)))
    net = solver.net
    del solver
    assert net.forward()["loss"] > 0


def test_plug_ins_are_attached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attached = []
    attach = lambda *args, **options: attached.append((args, options))  # noqa: E731
    monkeypatch.setattr("caffe_compat.plugins.load", lambda: (attach,))
    for make in (caffe.SGDSolver, caffe.get_solver):
        solver = make(solver_file(tmp_path), as_reference=True)
        assert attached.pop() == ((solver,), {"as_reference": True}) and not attached


@pytest.mark.parametrize("more, message", [
    ('type: "Sgd"', 'unknown solver type "Sgd" .*did you mean "SGD"'), ("test_state {} test_state {}", "test_state")])
def test_solvers_that_cannot_be(more: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(CaffeError, match=message):
        caffe.get_solver(solver_file(tmp_path, more))


def test_a_missing_file() -> None:
    with pytest.raises(CaffeError, match="gone.prototxt"):
        caffe.SGDSolver("gone.prototxt")


@pytest.mark.gpu
def test_a_solver_follows_the_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from caffe_compat.pycaffe import mode

    monkeypatch.setattr(mode, "_mode", mode.Mode())
    solvers = [ready(caffe.SGDSolver(solver_file(tmp_path, "momentum: 0.9"))) for _ in range(3)]
    held = [solver.net.params["fc"][0].data for solver in solvers]
    solvers[0].step(4)
    solvers[1].step(2)
    solvers[2].add_hook(SolverHook())
    caffe.set_mode_gpu()
    solvers[1].step(2)
    assert solvers[1].net.params["fc"][0].tensor.is_cuda and solvers[1].history[0][0].is_cuda
    np.testing.assert_allclose(held[1], held[0], rtol=1e-4)
    with pytest.raises(SolverError, match="choose the mode before the solver is made"):
        solvers[2].step(1)
    on_gpu = ready(caffe.SGDSolver(solver_file(tmp_path, "momentum: 0.9")))
    weight = on_gpu.net.params["fc"][0].data
    on_gpu.step(2)
    weight[...] *= 2
    changed = weight.copy()
    grad = gradient(changed, on_gpu.net.params["fc"][1].data)[0]
    history = on_gpu.history[0][0].cpu().numpy()
    on_gpu.step(1)
    np.testing.assert_allclose(weight, changed - (0.9 * history + 0.05 * grad), rtol=1e-4)
