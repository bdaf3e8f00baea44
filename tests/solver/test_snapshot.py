"""Snapshots: exact resuming, Caffe's fields and no others in its way, and files that do not fit."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest

from caffe_compat import CaffeError, Solver, SolverHook, proto
from caffe_compat.errors import ParseError, SolverError, WeightError
from caffe_compat.solver.actions import Action, on_signals, parse_action

FOLDER = Path(__file__).parents[1] / "golden" / "solvers"
DROPOUT = 'layer { name: "drop" type: "Dropout" bottom: "ip" top: "ip" }\nlayer {\n  name: "loss"'


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Makes solvers on the recorded net, with dropout so that random states matter; snapshots go to tmp_path."""
    monkeypatch.chdir(FOLDER)
    net = tmp_path / "net.prototxt"
    text = (FOLDER / "net_a.prototxt").read_text()
    net.write_text(text.replace('layer {\n  name: "loss"', DROPOUT))

    def build(kind: str = "SGD", extra: str = "") -> Solver:
        path = tmp_path / "solver.prototxt"
        path.write_text(f'net: "{net}" type: "{kind}" base_lr: 0.01 lr_policy: "step" gamma: 0.5 stepsize: 7 max_iter: 20 '
                        f'random_seed: 3 snapshot_prefix: "{tmp_path}/run" solver_mode: CPU weight_decay: 0.001 {extra}')
        solver = Solver(path)
        solver.load_weights("init_net_a.caffemodel")
        return solver

    return build


def values(solver: Solver) -> list[np.ndarray]:
    weights = [learnable.blob.data for learnable in solver.learnable]
    return weights + [slot.numpy() for slots in solver.history for slot in slots]


@pytest.mark.parametrize("file_format", ["BINARYPROTO", "HDF5"])
@pytest.mark.parametrize("kind", ["SGD", "Nesterov", "AdaGrad", "RMSProp", "AdaDelta", "Adam"])
def test_resuming_is_exact(kind: str, file_format: str, make) -> None:
    extra = f"snapshot_format: {file_format} iter_size: 2" + ("" if kind in ("AdaGrad", "RMSProp") else " momentum: 0.9")
    whole = make(kind, extra)
    whole.step(11)
    half = make(kind, extra)
    half.step(6)
    path = half.snapshot()
    resumed = make(kind, extra)
    resumed.restore(path)
    assert resumed.iter == 6
    resumed.step(5)
    for expected, found in zip(values(whole), values(resumed), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_a_state_without_extras_starts_the_data_anew(make) -> None:
    solver = make()
    first = solver.net.forward()["loss"].item()
    solver.step(3)
    path = solver.snapshot()
    document = proto.read_binary(path, "SolverState")
    document.message.ClearField("extra")
    proto.write_binary(path, document)
    solver.restore(path)
    solver.load_weights("init_net_a.caffemodel")
    assert solver.net.layer_dict["data"].state() == make().net.layer_dict["data"].state()
    assert first > 0


def test_the_data_that_a_state_without_extras_stands_for_can_be_skipped(make, tmp_path: Path) -> None:
    solver = make(extra="iter_size: 2")
    solver.step(3)
    expected = solver.net.layer_dict["data"].state()
    path = solver.snapshot()
    document = proto.read_binary(path, "SolverState")
    document.message.ClearField("extra")
    proto.write_binary(f"{tmp_path}/caffes.solverstate", document)
    for state, skips in ((path, True), (f"{tmp_path}/caffes.solverstate", True), (f"{tmp_path}/caffes.solverstate", False)):
        resumed = make(extra="iter_size: 2")
        resumed.param.max_iter = 3
        resumed.solve(state, skip_data=skips)
        assert (resumed.net.layer_dict["data"].state() == expected) is skips


def test_snapshot_has_the_fields_that_caffe_expects(make, tmp_path: Path) -> None:
    solver = make("Adam", "momentum: 0.9")
    solver.step(8)
    path = solver.snapshot("_stage1")
    assert path == f"{tmp_path}/run_stage1_iter_8.solverstate"
    state = proto.read_binary(path, "SolverState", dialect=proto.BVLC)
    assert (state.message.iter, state.message.current_step) == (8, 1)
    assert state.message.learned_net == f"{tmp_path}/run_stage1_iter_8.caffemodel"
    assert len(state.message.history) == 2 * len(solver.learnable)
    assert [state.arrays["history", i].shape for i in range(len(solver.learnable))] == [
        learnable.blob.shape for learnable in solver.learnable]
    model = proto.read_binary(state.message.learned_net, "NetParameter")
    assert [layer.name for layer in model.message.layer] == [layer.name for layer in solver.net.layers]
    assert all(layer.HasField("phase") for layer in model.message.layer)


def test_a_state_finds_its_weights_beside_it(make, tmp_path: Path) -> None:
    solver = make()
    solver.step(1)
    state = Path(solver.snapshot())
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for suffix in (".solverstate", ".caffemodel"):
        os.rename(state.with_suffix(suffix), moved / f"run_iter_1{suffix}")
    solver.restore(moved / "run_iter_1.solverstate")
    os.unlink(moved / "run_iter_1.caffemodel")
    with pytest.raises(WeightError, match=r"weights of this state are not there; looked for .*run_iter_1.caffemodel"):
        solver.restore(moved / "run_iter_1.solverstate")


def test_files_that_do_not_fit(make, tmp_path: Path) -> None:
    solver = make()
    solver.step(1)
    path = solver.snapshot()
    with pytest.raises(WeightError, match="found 6 history blobs, this Adam solver keeps 12"):
        make("Adam", "momentum: 0.9").restore(path)
    before = [value.copy() for value in values(solver)]
    whole = Path(path).read_bytes()
    for name, content in {"empty": b"", "cut": whole[:len(whole) // 2], "png": b"\x89PNG\r\n\x1a\n" + b"\0" * 100}.items():
        broken = tmp_path / f"{name}.solverstate"
        broken.write_bytes(content)
        with pytest.raises(CaffeError, match=f"{name}.solverstate"):
            solver.restore(broken)
    with pytest.raises(CaffeError, match="missing.solverstate"):
        solver.restore(tmp_path / "missing.solverstate")
    with pytest.raises((ParseError, WeightError)):
        solver.restore(path.replace(".solverstate", ".caffemodel"))
    for expected, found in zip(before, values(solver), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_snapshots_into_a_missing_folder_are_refused_before_training(make, tmp_path: Path) -> None:
    path = tmp_path / "bad.prototxt"
    path.write_text(f'net: "net_a.prototxt" base_lr: 0.1 lr_policy: "fixed" snapshot: 5 snapshot_prefix: "{tmp_path}/no/run"')
    with pytest.raises(SolverError, match=f"{tmp_path}/no exists and is writable"):
        Solver(path)


class Interrupt(SolverHook):
    """Sends this process a signal in iteration 2."""

    def __init__(self, number: int) -> None:
        self.number = number

    def on_gradients_ready(self, solver: Solver) -> None:
        if solver.iter == 2:
            os.kill(os.getpid(), self.number)


def test_sigint_stops_with_a_snapshot(make, tmp_path: Path) -> None:
    solver = make()
    solver.add_hook(Interrupt(signal.SIGINT))
    with on_signals(solver.actions):
        solver.solve()
    assert solver.iter == 3 and solver.stopped
    assert (tmp_path / "run_iter_3.solverstate").exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_sighup_snapshots_and_goes_on(make, tmp_path: Path) -> None:
    solver = make()
    solver.add_hook(Interrupt(signal.SIGHUP))
    with on_signals(solver.actions):
        solver.solve()
    assert solver.iter == 20 and not solver.stopped
    assert (tmp_path / "run_iter_3.solverstate").exists() and (tmp_path / "run_iter_20.solverstate").exists()


def test_an_unknown_signal_effect_is_refused() -> None:
    assert parse_action("none", "--sigint_effect") is Action.NONE
    with pytest.raises(SolverError, match='--sigint_effect is "halt", expected stop, snapshot or none'):
        parse_action("halt", "--sigint_effect")
