"""Groups that share a keep ratio, and what a net costs as a function of these, against the authors' code; the steps that
hold ratios to a budget, in closed cases."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from dsa_nets import NETS
from pruning import layer_state

from caffe_compat import Net, proto
from increg import coupling
from increg.coupling import Coupling
from increg.methods import dsa_budget
from increg.methods.dsa_budget import Cost
from increg.state import LayerState
from increg.ties import find_ties, together

CASES = json.loads((Path(__file__).parents[1] / "golden" / "methods" / "dsa" / "cases.json").read_text())["flops"]


@cache
def traced(model: str) -> tuple[list[LayerState], Coupling]:
    """A net's layers and coupling."""
    net = Net(proto.parse_text(NETS[model](), "NetParameter"), "TRAIN")
    layers = []
    for layer in net.layers:
        if layer.type in ("Convolution", "InnerProduct"):
            shape, group = layer.blobs[0].shape, layer.param.group if layer.type == "Convolution" else 1
            pixels = net.blobs[net.top_names[layer.name][0]].shape[2:]
            layers.append(layer_state(layer.name, shape, len(layers), group=group, outputs=int(np.prod(pixels))))
            layers[-1].kind = layer.type
    return layers, coupling.from_net(net, layers, torch.device("cpu"))


def groups_of(layers: list[LayerState], links: Coupling) -> list[list[LayerState]]:
    """The groups that share a keep ratio, without the classifier."""
    return together([layer for layer in layers if layer.is_conv],
                    [meeting.layers for meeting in find_ties(layers, links, depthwise=True)])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["model"])
def test_groups_as_recorded(case: dict) -> None:
    layers, links = traced(case["model"])
    found = groups_of(layers, links)
    wanted = [sorted(name.removesuffix(".conv") for name in group["layers"]) for group in case["groups"]]
    assert [sorted(layer.name for layer in group) for group in found] == wanted
    for group, recorded in zip(found, case["groups"]):
        assert group[0].layout.rows == recorded["channels"]
    for meeting in find_ties(layers, links, depthwise=True):  # one mask fits all, or they are not pruned at all
        (recorded,) = [group for group in case["groups"] if f"{meeting.layers[0].name}.conv" in group["layers"]]
        assert meeting.aligned is (len(set(recorded["channels_of_all"])) == 1)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["model"])
def test_costs_as_recorded(case: dict) -> None:
    """Theirs count 2 for a multiply-add, and no classifier."""
    layers, links = traced(case["model"])
    groups = groups_of(layers, links)
    form = dsa_budget.cost(layers, links, groups)
    quadratic = np.zeros((len(groups), len(groups)))
    for entry in case["quadratic"]:
        quadratic[entry["of"], entry["into"]] += entry["value"]
    np.testing.assert_allclose(2 * form.quadratic, quadratic, rtol=1e-12)
    np.testing.assert_allclose(2 * form.linear, case["linear"], rtol=1e-12)
    assert form.constant == 0
    for vector in case["flops"]:
        keep = torch.tensor(vector["keep_ratios"], dtype=torch.float64)
        assert 2 * form(keep).item() == pytest.approx(vector["flops"], rel=1e-6)
        np.testing.assert_allclose(2 * form.gradient(keep), vector["gradient"], rtol=1e-6)
    assert form.relative()(torch.ones(len(groups), dtype=torch.float64)).item() == pytest.approx(1)


def test_layers_outside_the_groups_cost_by_what_they_read() -> None:
    layers, links = traced("vgg16_masked")
    form = dsa_budget.cost(layers, links, [layers[:1]], counts_fc=True)
    operations = [layer.outputs * layer.layout.rows * layer.layout.columns for layer in layers]
    assert form.linear.tolist() == [operations[0] + operations[1]]
    assert form.constant.item() == sum(operations[2:])


FORM = Cost(torch.tensor([[0.0, 0.2, 0.0], [0.1, 0.0, 0.3], [0.0, 0.0, 0.0]]), torch.tensor([0.2, 0.0, 0.1]), torch.tensor(0.1))


@pytest.mark.parametrize("budget", [0.9, 0.6, 0.4, 0.2])
def test_projection(budget: float, device: torch.device) -> None:
    """On the budget, and about as near as anything on a grid."""
    form, least = FORM.to(device), torch.full((3,), 0.05, device=device)
    point = torch.tensor([0.9, 0.8, 1.0], device=device)
    found = dsa_budget.project(point, form, budget, least)
    assert form(found).item() <= budget + 1e-4
    if form(point) <= budget:
        assert torch.equal(found, point)
        return
    axis = torch.linspace(0.05, 1, 60)
    grid = torch.cartesian_prod(axis, axis, axis).to(device)
    costs = (grid @ form.quadratic * grid).sum(1) + grid @ form.linear + form.constant
    best = (grid[costs <= budget] - point).norm(dim=1).min()
    assert (found - point).norm() <= 1.02 * best + 1e-3  # F is not convex: another point may be a little nearer


def test_a_budget_below_what_is_possible() -> None:
    least = torch.full((3,), 0.5)
    found = dsa_budget.project(torch.ones(3), FORM, 0.01, least)
    assert found.tolist() == [0.5, 0.5, 0.5]
    assert dsa_budget.whole_filters(found, [4, 4, 4], FORM, 0.01) == [1, 1, 1]


@pytest.mark.parametrize("rho", [0.3, 3.0])
@pytest.mark.parametrize("wants", [(0.5, 0.1, 0.02), (0.0, 0.0, 0.0)])
def test_admm_reaches_the_budget(wants: tuple[float, ...], rho: float) -> None:
    """A loss that falls with all ratios: they follow the falling budget to its end, and the more one is worth by its cost,
    the more of it is kept. Where nothing is wanted they may end a little below."""
    pulls, least = torch.tensor(wants), torch.full((3,), 0.02)
    keep, multiplier, copy = torch.full((3,), 0.99), torch.zeros(3), torch.full((3,), 0.99)
    for i in range(200):
        budget = max(0.5, 0.97 * 0.5 ** (i / 100))
        keep = dsa_budget.move(keep, -0.05 * pulls, copy, multiplier, rho, least)
        copy = dsa_budget.project(keep + multiplier, FORM, budget, least)
        multiplier += keep - copy
        assert abs(FORM(keep).item() - FORM(copy).item()) < 0.06  # never far apart
    assert FORM(keep).item() == pytest.approx(0.5, abs=2e-3 if any(wants) else 1e-2)
    assert (keep - copy).abs().max() < 1e-2
    if any(wants):
        worth = (pulls / FORM.gradient(keep)).argsort()
        assert keep[worth[0]] < keep[worth[2]]


def test_whole_filters() -> None:
    form = Cost(torch.zeros(2, 2), torch.tensor([0.5, 0.5]), torch.tensor(0.0))
    assert dsa_budget.whole_filters(torch.tensor([0.5, 0.5]), [8, 8], form, 0.5) == [4, 4]
    assert dsa_budget.whole_filters(torch.tensor([0.55, 0.58]), [10, 10], form, 0.565) == [5, 6]  # 6 and 6 cost 0.6
    assert dsa_budget.whole_filters(torch.tensor([0.9, 0.9]), [10, 10], form, 0.5) in ([1, 9], [5, 5], [9, 1])
    assert dsa_budget.whole_filters(torch.tensor([0.0, 1.0]), [3, 1], form, 1.0) == [1, 1]
