"""Soft filter pruning: SFP against the authors' code, its selections, counts and whole runs; the schedules of its kin."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from authors import arrays, cases, make, parameter, part
from pruning import Tiny

from caffe_compat.errors import SolverError
from caffe_compat.solver import Solver, SolverHook
from increg.groups import Layout
from increg.methods import SFP, least
from increg.methods.soft import DECAYS, asymptotic
from increg.units import UNITS

NET = [
    {"type": "conv", "name": "conv1", "out": 8, "kernel": 3, "stride": 1, "pad": 1, "bias": False},
    {"type": "bn", "name": "bn1"}, {"type": "relu", "name": "relu1"},
    {"type": "conv", "name": "conv2", "out": 10, "kernel": 3, "stride": 2, "pad": 1, "bias": False},
    {"type": "bn", "name": "bn2"}, {"type": "relu", "name": "relu2"},
    {"type": "conv", "name": "conv3", "out": 6, "kernel": 3, "stride": 2, "pad": 1, "bias": False},
    {"type": "bn", "name": "bn3"}, {"type": "relu", "name": "relu3"},
    {"type": "mean", "name": "mean"}, {"type": "linear", "name": "fc", "out": 5},
]


@pytest.fixture
def tiny(tmp_path: Path) -> Tiny:
    return Tiny(tmp_path)


# -- SFP as recorded --------------------------------------------------------------------------------------------------

def test_counts_are_the_authors() -> None:
    counts = cases("sfp")["counts"]
    for rate, zeroed in zip(counts["rates"], counts["zeroed"], strict=True):
        ratio = np.float32(f"{1 - rate:.7g}")
        assert [SFP.count(n, ratio) for n in counts["filters"]] == zeroed, rate


def test_counts_without_truncation() -> None:
    class Exact:
        truncate = False

    assert [SFP.count(n, np.float32(0.2), Exact) for n in (4, 5, 10, 20, 29, 30)] == [0, 1, 2, 4, 5, 6]


@pytest.mark.parametrize("case", cases("sfp")["selection"], ids=lambda case: case["case"])
def test_selections_are_the_authors(case: dict[str, Any]) -> None:
    """Of equal norms any may be chosen; a rate is a share kept."""
    recorded = part(arrays("sfp"), f"select/{case['case']}")
    if len(case["shape"]) != 4:
        return  # an InnerProduct, which their script leaves alone, and ours only if it has no prune_ratio
    norms = UNITS["Row"].sums(Layout(tuple(case["shape"])), torch.from_numpy(recorded["weight"]).square()).sqrt()
    np.testing.assert_allclose(norms.numpy(), recorded["norm2"], rtol=1e-6)
    if case["rate"] <= 0:
        return  # all filters, which no layer here ever loses
    count = SFP.count(len(norms), np.float32(f"{1 - case['rate']:.7g}"))
    assert count == case["n_zeroed"]
    chosen = least(norms, count).nonzero().flatten().tolist()
    if case["tie_at_the_border"]:
        np.testing.assert_array_equal(np.sort(norms[chosen]), np.sort(norms[case["zeroed"]]))
    else:
        assert chosen == case["zeroed"]


class Schedule(SolverHook):
    """The authors' learning rates, and their momentum, which holds gradients where Caffe's holds rate times gradients."""

    name = "schedule"

    def __init__(self, rates: list[float], batches: int) -> None:
        self.rates, self.batches = rates, batches

    def on_start(self, solver: Solver) -> None:
        epoch, batch = divmod(solver.iter, self.batches)
        if batch == 0:
            if epoch:
                for history in solver.history:
                    torch._foreach_mul_(history, self.rates[epoch] / self.rates[epoch - 1])
            solver.set_rate(self.rates[epoch])


@pytest.mark.parametrize("case", cases("sfp")["sequences"], ids=lambda case: case["name"])
def test_runs_are_the_authors(case: dict[str, Any], tmp_path: Path) -> None:
    hyper, batches, recorded = case["hyper_parameters"], case["batches"], part(arrays("sfp"), case["name"])
    log = {entry["when"]: entry for entry in case["log"]}
    rates = [log[f"after_epoch_{e}_trained"]["lr"] for e in range(hyper["epochs"])]
    names = [f"conv{k + 1}" for k in range(3) if 3 * k <= hyper["layer_end"]]
    ratios = " ".join(f'prune_ratios {{ layer: "{name}" prune_ratio: {1 - hyper["rate"]:.7g} }}' for name in names)
    solver, hook = make(NET, recorded, f'prune_method: "SFP_Row" type: "Nesterov" base_lr: 1 momentum: {hyper["momentum"]} '
                        f"weight_decay: {hyper['decay']} {ratios} soft_prune_param {{ epoch: {batches} "
                        f"epochs: {hyper['epochs']} epoch_prune: {hyper['epoch_prune']} }}", tmp_path / "s")
    solver.hooks.insert(0, Schedule(rates, batches))
    spread = case["sensitivity_max_abs"]
    losses = []

    def compare(place: str, tolerance: float) -> None:
        for name, expected in part(recorded, place).items():
            np.testing.assert_allclose(parameter(solver, name), expected, rtol=0, atol=1e-5 + 10 * tolerance,
                                       err_msg=f"{place} {name}")

    compare("before_training/before", 0)
    solver.step(0)  # which begins
    assert zeroed(hook) == {f"{name}.weight": log["before_training"]["zeroed"][f"{name}.weight"] for name in names}
    for epoch in range(hyper["epochs"]):
        place = f"after_epoch_{epoch}"
        before = Before()
        solver.hooks.insert(1, before)
        for _ in range(batches):
            solver.step(1)
            losses.append(float(solver.net.loss))
        solver.hooks.remove(before)
        if place in log:
            for name, expected in part(recorded, f"{place}/before").items():
                np.testing.assert_allclose(before.values[name], expected, rtol=0, atol=1e-5 + 10 * spread[place],
                                           err_msg=f"{place} {name}")
            assert zeroed(hook) == {f"{name}.weight": log[place]["zeroed"][f"{name}.weight"] for name in names}
        for name, expected in part(recorded, f"{place}/momentum").items():
            index = next(i for i, p in enumerate(solver.learnable) if f"{p.layer_name}.weight" == name)
            np.testing.assert_allclose(solver.history[index][0].numpy() / rates[epoch], expected, rtol=0, atol=2e-5,
                                       err_msg=f"{place} {name}")
    compare("final", spread["final"])
    assert hook.pruner.settled
    np.testing.assert_allclose(losses, recorded["loss"], atol=1e-4)


class Before(SolverHook):
    """The weights before the epoch's end does anything to them."""

    name = "before"

    values: dict[str, np.ndarray]

    def on_updated(self, solver: Solver) -> None:
        self.values = {f"{name}.{kind}": blob.data.copy() for name, blobs in solver.net.params.items()
                       for kind, blob in zip(("weight", "bias"), blobs)}


def zeroed(hook: Any) -> dict[str, list[int]]:
    return {f"{layer.name}.weight": (layer.weight.tensor == 0).flatten(1).all(1).nonzero().flatten().tolist()
            for layer in hook.pruner.pruned}


# -- schedules --------------------------------------------------------------------------------------------------------

def test_asymptotic_passes_through_the_papers_points() -> None:
    """(0, 0), (1/8, 3/4), (1, 1) on b (1 - exp(-k t)): the points fix b and k."""
    assert [asymptotic(t) for t in (0, 1 / 8, 1)] == pytest.approx([0, 0.75, 1], abs=1e-12)
    steps = np.diff([asymptotic(t / 10) for t in range(11)])
    assert steps[1:] / steps[:-1] == pytest.approx(steps[1] / steps[0])  # an exponential


@pytest.mark.parametrize("decay", DECAYS)
def test_factors_fall_from_one_to_zero(decay: str) -> None:
    values = [DECAYS[decay](t / 20) for t in range(21)]
    assert values[0] == pytest.approx(1) and values[-1] == pytest.approx(0, abs=1e-12)
    assert all(later < sooner for sooner, later in pairwise(values))


@pytest.mark.parametrize("name", ["ASFP_Row", "SRFP_Row", "ASRFP_Row"])
def test_an_epochs_end(name: str, tiny: Tiny) -> None:
    """How many rows are touched, and what is left of them."""
    solver, hook = tiny.make(f'prune_method: "{name}" soft_prune_param {{ epochs: 8 decay: LINEAR decay_begin: 0.5 }}')
    method, layer = hook.method, hook.pruner.pruned[1]
    assert method.epoch == 5  # 40 images, 8 a batch
    solver.step(1)
    for done in (1, 3, 6):
        before = layer.weight.tensor.clone()
        norms = before.flatten(1).norm(dim=1)
        with torch.no_grad():
            method._soften(done)
        count = min(4, math.floor(0.6 * 8 * asymptotic(done / 8))) if name.startswith("A") else 4  # of 8 rows at 0.6: 4.8
        factor = 0.5 * (1 - done / 8) if "R" in name.split("_")[0][1:3] else 0.0
        expected = before.clone()
        expected[norms.argsort()[:count]] *= factor
        torch.testing.assert_close(layer.weight.tensor, expected, rtol=1e-6, atol=0)
        assert not hook.pruner.unit.pruned(layer.masks).any()


def test_what_is_zeroed_may_come_back(tiny: Tiny) -> None:
    solver, hook = tiny.make('prune_method: "SFP_Row" base_lr: 0.1 soft_prune_param { epochs: 4 }')
    solver.step(5)
    layer = hook.pruner.pruned[1]
    first = (layer.weight.tensor == 0).flatten(1).all(1)
    assert first.sum() == 4
    solver.step(1)
    assert not (layer.weight.tensor == 0).flatten(1).all(1)[first].all()
    solver.step(14)
    last = (layer.weight.tensor == 0).flatten(1).all(1)
    assert torch.equal(last, hook.pruner.unit.pruned(layer.masks)) and last.sum() == 4
    solver.step(3)
    assert torch.equal((layer.weight.tensor == 0).flatten(1).all(1), last)


@pytest.mark.parametrize(("setting", "said"), [("epochs: 0", "epochs is 0"), ("epoch_prune: 0", "epoch_prune is 0"),
                                               ("decay_begin: 2", "decay_begin is 2")])
def test_settings_that_cannot_be(setting: str, said: str, tiny: Tiny) -> None:
    with pytest.raises(SolverError, match=said):
        tiny.make(f'prune_method: "SRFP_Row" soft_prune_param {{ {setting} }}')


def test_an_epoch_that_nobody_knows(tmp_path: Path) -> None:
    recorded = part(arrays("sfp"), "every_epoch")
    solver, _ = make(NET, recorded, 'prune_method: "SFP_Row" base_lr: 1 prune_ratios { layer: "conv*" prune_ratio: 0.5 }',
                     tmp_path / "s")
    with pytest.raises(SolverError, match="needs epoch"):
        solver.step(1)
