"""Whole training runs, equal to the ones recorded from Caffe: six rules, seven policies, decay, clipping, resuming."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from caffe_compat import Solver, SolverHook
from caffe_compat.errors import CaffeError

FOLDER = Path(__file__).parents[1] / "golden" / "solvers"
CASES = json.loads((FOLDER / "cases.json").read_text())["cases"]
REFUSED = json.loads((FOLDER / "refused.json").read_text())["cases"]


class Recorder(SolverHook):
    """Keeps the rate and the loss of every iteration."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.losses: list[float] = []

    def on_gradients_ready(self, solver: Solver) -> None:
        self.losses.append(float(solver.smoothed_loss))

    def on_updated(self, solver: Solver) -> None:
        self.rates.append(solver.rate)


def check_run(solver: Solver, recorder: Recorder, recorded: dict[str, np.ndarray], sensitivity: dict, first: int) -> None:
    iterations = sorted(int(key) for key in sensitivity if key != "loss")
    for iteration in iterations:
        solver.step(iteration - solver.iter)
        tolerance = 1e-5 + 10 * sensitivity[str(iteration)]
        for layer, blobs in solver.net.params.items():
            for index, blob in enumerate(blobs):
                np.testing.assert_allclose(blob.data, recorded[f"it{iteration:03d}/{layer}/{index}"], rtol=0,
                                           atol=tolerance, err_msg=f"iteration {iteration}, {layer}/{index}")
    np.testing.assert_allclose(recorder.rates, recorded["lr"], rtol=1e-5)
    np.testing.assert_allclose(recorder.losses, recorded["loss"], rtol=1e-4)


def make(case: dict, monkeypatch: pytest.MonkeyPatch) -> tuple[Solver, Recorder]:
    monkeypatch.chdir(FOLDER)
    solver = Solver(case["solver"])
    solver.param.ClearField("snapshot")
    recorder = Recorder()
    solver.add_hook(recorder)
    return solver, recorder


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_trajectory(case: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    solver, recorder = make(case, monkeypatch)
    if not case["loads_init_through_weights_field"]:
        solver.load_weights(case["init"])
    recorded = dict(np.load(case["trajectory"]))
    if "resume" in case:
        recorded = {key.removeprefix("full/"): value for key, value in recorded.items() if key.startswith("full/")}
    check_run(solver, recorder, recorded, case["sensitivity_max_abs"], 0)


@pytest.mark.parametrize("case", [case for case in CASES if "resume" in case], ids=lambda case: case["name"])
def test_resuming_a_snapshot_of_caffe(case: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    solver, recorder = make(case, monkeypatch)
    solver.restore(case["resume"]["state"])
    assert solver.iter == case["resume"]["at"]
    recorded = {key.removeprefix("resumed/"): value for key, value in np.load(case["trajectory"]).items()
                if key.startswith("resumed/")}
    check_run(solver, recorder, recorded, case["resume"]["sensitivity_max_abs"], solver.iter)


#: Caffe accepts these and trains on a rate of 0 or NaN; we refuse them at construction, as the message says.
STRICTER = {"exp_without_gamma", "inv_without_gamma", "multistep_without_gamma", "no_base_lr", "poly_past_max_iter",
            "iter_size_zero", "unknown_regularization_without_decay"}


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case["name"])
def test_settings_that_caffe_refuses(case: dict, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(FOLDER)
    path = tmp_path / "solver.prototxt"
    path.write_text(case["solver_text"])

    def run() -> None:
        solver = Solver(path)
        solver.load_weights("init_net_a.caffemodel")
        solver.step(case.get("accepted", {}).get("steps", 2))
        return solver

    if "refused" in case or case["name"] in STRICTER:
        with pytest.raises(CaffeError):
            run()
        return
    solver = run()
    total = sum(np.abs(blob.data).sum(dtype=np.float64) for blobs in solver.net.params.values() for blob in blobs)
    assert total == pytest.approx(case["accepted"]["sum_of_absolute_parameters"], rel=1e-4)
