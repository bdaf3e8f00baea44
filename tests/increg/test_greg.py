"""GReg-1 and GReg-2 against whole runs of the authors' code, its counts and its picks; and closed cases of their formulas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from authors import arrays, cases, make, part

from caffe_compat.errors import SolverError
from caffe_compat.solver import Solver, SolverHook
from increg import PruneHook
from increg.methods import GReg1, least

UNITS = {"filter": "Row", "channel": "Channel", "weight": "Weight"}
OPTIONS = ("lr_prune", "update_reg_interval", "reg_upper_limit", "reg_upper_limit_pick", "reg_granularity_pick",
           "reg_granularity_prune", "reg_granularity_recover", "mag_ratio_limit", "stabilize_reg_interval", "block_loss_grad")
RUNS = [case for case in cases("greg")["cases"] if case["name"] != "greg2_nothing_to_prune"]


def settings(case: dict[str, Any]) -> str:
    hyper = case["hyper_parameters"]
    fields = " ".join(f"{name}: {str(hyper[name]).lower()}" for name in OPTIONS)
    ratios = " ".join(f'prune_ratios {{ layer: "{name}" prune_ratio: {x} }}' for name, x in hyper["prune_ratio"].items())
    method = f"{hyper['method'].replace('-', '')}_{UNITS[hyper['wg']]}"
    return (f'prune_method: "{method}" base_lr: 7 momentum: {hyper["momentum"]} weight_decay: {hyper["weight_decay"]} '
            f"greg_param {{ pick_pruned: {hyper['pick_pruned'].upper()} {fields} }} {ratios}")


class Watch(SolverHook):
    """Keeps the penalties, ratios and weights of every iteration, before what is pruned is removed."""

    name = "watch"

    def __init__(self, hook: PruneHook, at: list[int]) -> None:
        self.hook, self.at = hook, at
        self.reg: dict[str, list[np.ndarray]] = {layer.name: [] for layer in hook.pruner.pruned}
        self.ratio: dict[str, list[float]] = {layer.name: [] for layer in hook.pruner.pruned}
        self.chosen: dict[str, list[list[int] | None]] = {layer.name: [] for layer in hook.pruner.pruned}
        self.loss: list[float] = []
        self.param: dict[int, dict[str, np.ndarray]] = {}

    def on_updated(self, solver: Solver) -> None:
        method = self.hook.method
        for layer in self.hook.pruner.pruned:
            chosen = method.chosen[layer.table_index]
            self.reg[layer.name].append(method.penalty(layer).numpy().copy())
            self.ratio[layer.name].append(method.ratio[layer.table_index])
            self.chosen[layer.name].append(None if chosen is None else chosen.nonzero().flatten().tolist())
        self.loss.append(float(solver.net.loss))
        if solver.iter + 1 in self.at:
            self.param[solver.iter + 1] = {
                f"{name}.{kind}": blob.data.copy() for name, blobs in solver.net.params.items() if "normalize" not in name
                for kind, blob in zip(("weight", "bias"), blobs)}


@pytest.mark.parametrize("case", RUNS, ids=lambda case: case["name"])
def test_as_recorded(case: dict[str, Any], tmp_path: Path) -> None:
    """Penalties to the last bit, phases and picks exactly, ratios and weights within what the recording allows."""
    data = arrays("greg")
    recorded, net = part(data, case["name"]), cases("greg")["nets"][case["net"]]
    solver, hook = make(net["layers"], part(data, f"net_{case['net']}"), settings(case), tmp_path / "s")
    if case["hyper_parameters"]["pick_pruned"] == "rand":  # theirs are other random numbers
        take_choice(hook, recorded)
    watch = Watch(hook, case["param_iterations"])
    solver.hooks.insert(1, watch)
    solver.step(1)
    assert solver.rate == np.float32(case["hyper_parameters"]["lr_prune"])
    removed = case["removed_after_iteration"]
    solver.step(removed - 1)
    assert (hook.stages.now.state, hook.pruner.settled, solver.iter) == ("prune", removed == 0, removed)
    solver.step(1)
    assert hook.pruner.settled
    assert hook.method.stabilize_from == case["stabilize_from"]
    compare(case, recorded, watch, hook)
    for layer in hook.pruner.pruned:
        pruned = hook.pruner.unit.pruned(layer.masks).nonzero().flatten().tolist()
        assert pruned == sorted(recorded[f"pruned/{layer.name}"].tolist())
        assert len(pruned) == case["n_pruned"][layer.name]
        assert int((layer.weight.tensor == 0).sum()) == len(pruned) * hook.pruner.unit.weights(layer.layout)


def take_choice(hook: PruneHook, recorded: dict[str, np.ndarray]) -> None:
    def begin() -> None:
        for layer in hook.pruner.pruned:
            chosen = torch.zeros(hook.pruner.unit.size(layer.layout), dtype=torch.bool)
            chosen[recorded[f"pruned/{layer.name}"].astype(int)] = True
            hook.method.chosen[layer.table_index] = chosen

    hook.method.begin = begin


def compare(case: dict[str, Any], recorded: dict[str, np.ndarray], watch: Watch, hook: PruneHook) -> None:
    sensitivity = case["sensitivity"]
    by_weight = case["hyper_parameters"]["wg"] == "weight"
    for layer in hook.pruner.pruned:
        name = layer.name
        reg = np.array([watch.reg[name][i] for i in (0, 6, -1)] if by_weight else watch.reg[name])
        np.testing.assert_array_equal(reg, recorded[f"reg/{name}"], err_msg=name)
        if by_weight:
            assert set(watch.ratio[name]) == {None}
        else:
            # Once a layer has finished, its last value stays.
            expected = recorded[f"hist_mag_ratio/{name}"]
            last = np.maximum.accumulate(np.where(np.isnan(expected), 0, np.arange(len(expected))))
            np.testing.assert_allclose(watch.ratio[name], expected[last], rtol=1e-4, err_msg=name)
        picked = case["finished_picking_at"].get(name, 0)
        finished = case["finished_pushing_at"][name]
        assert [chosen is not None for chosen in watch.chosen[name]] == [t >= picked for t in range(case["iterations"])]
        assert finished == last_change(watch.reg[name])
    for t, values in watch.param.items():
        spread = sensitivity["param_max_abs_by_iteration"][str(t)]
        for name, value in values.items():
            np.testing.assert_allclose(value, recorded[f"param/{t}/{name}"], rtol=0, atol=1e-5 + 10 * spread, err_msg=name)
    np.testing.assert_allclose(watch.loss, recorded["loss"], rtol=0, atol=1e-5 + 10 * sensitivity["loss_max_abs"])


def last_change(reg: list[np.ndarray]) -> int:
    """The iteration of the last update of the penalties."""
    return max(t for t in range(len(reg)) if t == 0 or not np.array_equal(reg[t], reg[t - 1]))


def test_counts_are_the_authors() -> None:
    """min(ceil(ratio n), n - 1) in double precision, though a prototxt's ratio is float32."""
    counts = cases("greg")["counts"]
    for ratio, pruned in zip(counts["ratios"], counts["pruned"], strict=True):
        if ratio < 1:
            assert [GReg1.count(n, np.float32(ratio)) for n in counts["groups"]] == pruned, ratio


def test_picks_are_the_authors() -> None:
    for case in cases("greg")["order"]:
        scores = torch.tensor(case["scores"])
        count = GReg1.count(len(scores), np.float32(case["ratio"]))
        for kind, sign in (("min", 1), ("max", -1)):
            chosen = least(sign * scores, count)
            if len(scores) > 1:  # their "max" loses the only group there is
                np.testing.assert_array_equal(scores[chosen].sort()[0].numpy(), scores[case[kind]].sort()[0].numpy())


@pytest.mark.parametrize("option", cases("greg")["default_options"], ids=lambda option: option["method"])
def test_defaults(option: dict[str, Any], tmp_path: Path) -> None:
    """With the schema's own settings a layer is pushed after as many updates as the authors' is."""
    data, net = arrays("greg"), cases("greg")["nets"]["a"]
    name = option["method"].replace("-", "")
    _, hook = make(net["layers"], part(data, "net_a"), f'prune_method: "{name}_Row" base_lr: 1 '
                   'prune_ratios { layer: "conv2" prune_ratio: 0.4 }', tmp_path / "s")
    method, layer = hook.method, hook.pruner.pruned[0]
    assert method.param.update_reg_interval == 5 and method.rate == np.float32(1e-3)
    assert method.param.stabilize_reg_interval == 40000
    score = torch.arange(8.0)
    if option["picked_in_iteration"] is None:
        method.chosen[0] = least(score, 4)
    updates = 0
    while not method._is_finished(layer):
        if method.chosen[0] is None:
            assert updates <= option["picked_in_iteration"]
        method._grow(layer, score, updates)
        updates += 1
    assert updates == option["updates_of_reg_until_finished"]
    assert method.pushed[0] == np.float32(option["final_reg_of_pruned"])
    assert method.held[0] == np.float32(option["final_reg_of_kept"])


def test_nothing_to_prune_is_an_error(tmp_path: Path) -> None:
    data, net = arrays("greg"), cases("greg")["nets"]["a"]
    case = next(case for case in cases("greg")["cases"] if case["name"] == "greg2_nothing_to_prune")
    with pytest.raises(SolverError, match="no layer of the net has a prune_ratio"):
        make(net["layers"], part(data, "net_a"), settings(case), tmp_path / "s")


@pytest.mark.parametrize(("setting", "said"), [
    ("update_reg_interval: 0", "update_reg_interval is 0"), ("reg_granularity_prune: 0", "reg_granularity_prune is 0"),
    ("lr_prune: -1", "lr_prune is -1"),
])
def test_settings_that_cannot_be(setting: str, said: str, tmp_path: Path) -> None:
    data, net = arrays("greg"), cases("greg")["nets"]["a"]
    with pytest.raises(SolverError, match=said):
        make(net["layers"], part(data, "net_a"), f'prune_method: "GReg1_Row" base_lr: 1 greg_param {{ {setting} }}',
             tmp_path / "s")
