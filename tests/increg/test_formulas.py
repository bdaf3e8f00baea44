"""AFP and the one-shot baselines in closed cases: what their formulas say, worked out by hand or in plain Python."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from pruning import Tiny

from caffe_compat.errors import SolverError
from increg.methods.afp import balanced, lambdas


@pytest.fixture
def tiny(tmp_path: Path) -> Tiny:
    return Tiny(tmp_path)


# -- AFP --------------------------------------------------------------------------------------------------------------

def test_lambda_by_hand(device: torch.device) -> None:
    """theta is the norm of the second of four; 1 + ln(theta / M) up to it, -1 - ln(M / theta) beyond."""
    found = lambdas(torch.tensor([4.0, 1.0, 8.0, 2.0], device=device), 2).tolist()
    ln2 = math.log(2)
    assert found == pytest.approx([-1 - ln2, 1 + ln2, -1 - 2 * ln2, 1.0])


def test_penalties_cancel_out(device: torch.device) -> None:
    """The sum over all weights of penalty * w^2 is 0: what the one half loses the other gains."""
    generator = torch.Generator().manual_seed(0)
    norms, squares = (torch.rand(20, generator=generator).to(device) + 0.1 for _ in range(2))
    factor = lambdas(norms, 8)
    penalty = balanced(factor, squares, 0.01)
    assert torch.allclose(penalty[factor > 0], 0.01 * factor[factor > 0])
    assert (penalty[factor < 0] < 0).all()
    assert abs(float((penalty * squares).sum())) < 1e-6
    tau = -0.01 * float((factor * squares)[factor > 0].sum()) / float((factor * squares)[factor < 0].sum())
    assert tau > 0
    assert torch.allclose(penalty[factor < 0], tau * factor[factor < 0])


def test_a_group_of_zeros_is_no_infinity() -> None:
    found = lambdas(torch.tensor([0.0, 1.0, 2.0]), 1)
    assert torch.isfinite(found).all() and (found > 0).tolist() == [True, False, False]


@pytest.mark.parametrize("unit", ["Row", "Col"])
def test_an_iteration_of_afp(unit: str, tiny: Tiny) -> None:
    """The gradient gets penalty * w, w being the weights of the forward pass; lambda stays what it was at the start."""
    solver, hook = tiny.make(f'prune_method: "AFP_{unit}" afp_param {{ alpha: 0.02 }} weight_decay: 0 max_iter: 100')
    axes = (1, 2, 3) if unit == "Row" else (0,)
    layer = hook.pruner.pruned[1]
    solver.step(0)
    norms = layer.weight.tensor.detach().abs().sum(axes).flatten()
    count = math.ceil(0.6 * len(norms))
    assert hook.pruner.count(layer) == count
    theta = norms.sort()[0][count - 1]
    expected = torch.where(norms <= theta, 1 + (theta / norms).log(), -1 - (norms / theta).log())
    torch.testing.assert_close(hook.method.factors[1], expected)
    solver.step(3)
    weight, grads = layer.weight.tensor.detach().clone(), []
    regularize = hook.method.regularize

    def watched(iteration: int) -> None:
        grads.append(layer.weight.grad.clone())
        regularize(iteration)
        grads.append(layer.weight.grad.clone())

    hook.method.regularize = watched
    solver.step(1)
    spread = expected.reshape(-1, 1, 1, 1) if unit == "Row" else expected.reshape(1, *weight.shape[1:])
    sums = spread * weight**2
    tau = -0.02 * sums[sums > 0].sum() / sums[sums < 0].sum()
    penalty = spread * torch.where(spread > 0, 0.02, tau)
    torch.testing.assert_close(grads[1] - grads[0], penalty * weight, rtol=1e-3, atol=1e-6)


def test_afp_removes_the_least_at_half_time(tiny: Tiny) -> None:
    solver, hook = tiny.make('prune_method: "AFP_Row" max_iter: 24')
    solver.step(11)
    norms = []
    updated = hook.method.updated
    layer = hook.pruner.pruned[0]
    hook.method.updated = lambda iteration: (norms.append(layer.weight.tensor.abs().flatten(1).sum(1)), updated(iteration))
    assert not hook.pruner.settled
    solver.step(1)
    assert hook.pruner.settled and hook.stages.now.state != "prune"
    assert set(layer.masks.rows.nonzero().flatten().tolist()) == set(norms[0].argsort()[:3].tolist())


def test_alpha_must_be_positive(tiny: Tiny) -> None:
    with pytest.raises(SolverError, match="alpha, the unit of the penalties, is 0"):
        tiny.make('prune_method: "AFP_Row" afp_param { alpha: 0 }')


# -- one shot ---------------------------------------------------------------------------------------------------------

GROUPS = {"Row": lambda w: w.reshape(8, -1), "Col": lambda w: w.reshape(8, -1).T,
          "Channel": lambda w: w.transpose(1, 0, 2, 3).reshape(6, -1), "Spatial": lambda w: w.reshape(48, 9).T,
          "Weight": lambda w: w.reshape(-1, 1)}
SCORES = {"L1": lambda group: np.abs(group).sum(), "L2": lambda group: (group**2).sum(),
          "Largest": lambda group: -np.abs(group).sum()}


@pytest.mark.parametrize("unit", GROUPS)
@pytest.mark.parametrize("core", SCORES)
def test_the_least_go_at_once(core: str, unit: str, tiny: Tiny) -> None:
    solver, hook = tiny.make(f'prune_method: "{core}_{unit}" one_shot_param {{ iter: 2 }}')
    solver.step(2)
    layer = hook.pruner.pruned[1]
    assert not (layer.weight.tensor == 0).any()
    groups = GROUPS[unit](layer.weight.data.astype(np.float64))
    count = math.ceil(0.6 * len(groups))
    expected = set(np.argsort([SCORES[core](group) for group in groups])[:count].tolist())
    solver.step(1)
    assert set(hook.pruner.unit.pruned(layer.masks).nonzero().flatten().tolist()) == expected
    left = GROUPS[unit](layer.weight.data)
    assert {i for i, group in enumerate(left) if not group.any()} >= expected
    assert hook.stages.now.state == "losseval"


def test_random_follows_its_seed(tiny: Tiny) -> None:
    def chosen(settings: str) -> list[int]:
        solver, hook = tiny.make(f'prune_method: "Random_Col" {settings}')
        solver.step(1)
        return hook.pruner.pruned[1].masks.columns[0].nonzero().flatten().tolist()

    first = chosen("one_shot_param { seed: 5 }")
    assert len(first) == 33
    assert chosen("one_shot_param { seed: 5 } random_seed: 8") == first
    assert chosen("one_shot_param { seed: 6 }") != first
    assert chosen("random_seed: 8") == chosen("random_seed: 8") != chosen("random_seed: 9")
