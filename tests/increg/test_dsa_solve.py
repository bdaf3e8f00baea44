"""DSA's probabilities and their gradient, against the authors' code and in closed cases."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from increg.methods import dsa_solve

GOLDEN = Path(__file__).parents[1] / "golden" / "methods" / "dsa"


@cache
def recorded() -> tuple[dict, dict[str, np.ndarray]]:
    with np.load(GOLDEN / "solve.npz") as file:
        return json.loads((GOLDEN / "cases.json").read_text()), dict(file)


def names() -> list[str]:
    return sorted({case["vector"] for case in json.loads((GOLDEN / "cases.json").read_text())["solve"]["cases"]})


def table(rows: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of different lengths, aligned to the right, and what is not padding."""
    width = max(map(len, rows))
    values, real = torch.zeros(len(rows), width), torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        values[i, width - len(row):], real[i, width - len(row):] = row, True
    return values, real


def test_as_recorded(device: torch.device) -> None:
    """All cases of one beta2 at once, as a net's groups are."""
    cases, data = recorded()
    by_beta: dict[float, list[dict]] = {}
    for case in cases["solve"]["cases"]:
        by_beta.setdefault(case["beta2"], []).append(case)
    assert len(by_beta) == 4
    for beta2, group in by_beta.items():
        values, real = (t.to(device) for t in table([torch.from_numpy(data[f"{case['vector']}/importance"]) for case in group]))
        keep = torch.tensor([case["keep_ratio"] for case in group], device=device, requires_grad=True)
        p = dsa_solve.KeepProbability.apply(keep, values, beta2, real)
        c = table([torch.from_numpy(data[f"{case['vector']}/c"]) for case in group])[0].to(device)
        (gradient,) = torch.autograd.grad((p * c).sum(), keep)
        log_beta1 = dsa_solve.solve(values, keep.detach(), beta2, real).cpu()
        for i, case in enumerate(group):
            name = f"{case['vector']}/a{case['keep_ratio']}_b{beta2}"
            found, wanted = p[i][real[i]].detach().cpu().numpy(), case["tight"]
            assert found.mean() == pytest.approx(wanted["mean_p"], abs=1e-5), name
            # where p hardly depends on beta1 it is not determined, as between two far groups of filters
            slope = dsa_solve.slopes(values, log_beta1.to(device), beta2, real)[i].detach()
            steep = abs(dsa_solve.probabilities((values[i] + 1e-8).log(), log_beta1[i] + 1e-3, beta2)[real[i]].mean().item()
                        - found.mean()) > 1e-5
            assert torch.isfinite(slope).all()
            if not steep:
                continue
            assert log_beta1[i].item() == pytest.approx(wanted["log_beta1"], abs=1e-4), name
            np.testing.assert_allclose(found, data[f"{name}/p_tight"], rtol=0, atol=1e-4 * max(1, beta2 / 10), err_msg=name)
            scale = len(found) * float(np.abs(data[f"{case['vector']}/c"]).max())
            if len(found) > 1:
                assert gradient[i].item() == pytest.approx(wanted["d_loss_d_keep_ratio"], abs=1e-3 * scale), name
            else:  # an error in the authors' code: a vector of one value loses its axis
                assert gradient[i].item() == pytest.approx(data[f"{case['vector']}/c"].item()), name


def test_most_cases_are_compared_in_full() -> None:
    """The exception for flat places must stay an exception."""
    cases, data = recorded()
    flat = 0
    for case in cases["solve"]["cases"]:
        importance = torch.from_numpy(data[f"{case['vector']}/importance"])[None]
        at = (dsa_solve.probabilities((importance + 1e-8).log(), torch.tensor(case["tight"]["log_beta1"] + step),
                                      case["beta2"]).mean() for step in (0.0, 1e-3))
        flat += abs(next(at) - next(at)).item() <= 1e-5
    assert flat <= len(cases["solve"]["cases"]) // 5


def test_edges() -> None:
    """Ratios that cannot be reached give the nearest p, where the authors' search stops with an error."""
    cases, data = recorded()
    edges = cases["solve"]["edges"]
    importance = torch.from_numpy(data[edges["importance"]])[None]
    real = torch.ones_like(importance, dtype=torch.bool)
    for case in edges["cases"]:
        keep = torch.tensor([case["keep_ratio"]], requires_grad=True)
        p = dsa_solve.KeepProbability.apply(keep, importance, edges["beta2"], real)
        (gradient,) = torch.autograd.grad(p.sum(), keep)
        assert gradient.item() == pytest.approx(importance.shape[1], rel=1e-5)
        expected = min(max(case["keep_ratio"], 0.01), 1.0)
        assert p.mean().item() == pytest.approx(expected, abs=1e-5 + (1e-4 if expected > 0.99 else 0))


@pytest.mark.parametrize("importance", [[0.0, 0, 0, 0], [2.0, 2, 2, 2], [3.0], [0.0], [1e-30, 1e30], [0.0, 0, 0, 1]])
@pytest.mark.parametrize("beta2", [0.05, 1.0, 50.0, 1000.0])
@pytest.mark.parametrize("keep", [0.0, 0.3, 0.5, 1.0])
def test_degenerate_groups(importance: list[float], beta2: float, keep: float) -> None:
    values, real = table([torch.tensor(importance), torch.tensor([1.0, 2.0, 3.0, 4.0])])
    ratio = torch.tensor([keep, 0.5], requires_grad=True)
    p = dsa_solve.KeepProbability.apply(ratio, values, beta2, real)
    (gradient,) = torch.autograd.grad(p.sum(), ratio)
    assert torch.isfinite(p).all()
    assert gradient.tolist() == pytest.approx([len(importance), 4], rel=1e-4)  # d mean(p) / d ratio = 1
    assert p[0][~real[0]].tolist() == [0] * (4 - len(importance))
    if len(set(importance)) == 1 and keep:
        assert p[0][real[0]].tolist() == pytest.approx([keep] * len(importance), abs=1e-4 * max(1, beta2 / 10))


def test_gradient_of_the_bare_condition() -> None:
    """Where neither 0.01 nor cap matters, it is the derivative of p along mean(p) = keep ratio; here of p less 0.01."""
    importance = torch.tensor([[0.8, 1.0, 1.3, 2.0]], dtype=torch.float64)
    real = torch.ones_like(importance, dtype=torch.bool)
    before, at, after = (dsa_solve.solve(importance, torch.tensor([keep], dtype=torch.float64), 3.0, real)
                         for keep in (0.499, 0.5, 0.501))
    least, most = (dsa_solve.probabilities((importance + 1e-8).log(), beta1[:, None], 3.0) for beta1 in (before, after))
    wanted = (most - least) / 0.002
    np.testing.assert_allclose(dsa_solve.slopes(importance, at, 3.0, real), wanted, rtol=1e-3)
