"""DSA as a method: it finds ratios within its budget, prunes coupled layers alike, and leaves weights whole in between."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from digits import Digits, accuracy, rows_left
from pruning import config

from caffe_compat.errors import SolverError
from caffe_compat.solver import Solver
from increg import PruneHook
from increg.methods import dsa_budget, dsa_solve

CONVOLUTIONS = 'prune_ratios { layer: "*" prune_ratio: 0.5 } prune_ratios { layer: "ip" prune_ratio: 0 } '


@pytest.fixture
def digits(residual_digits: Digits) -> Digits:
    return residual_digits


def make(digits: Digits, settings: str, prefix: str = "s", device: str | None = None) -> tuple[Solver, PruneHook]:
    solver, hook = digits.make(f'prune_method: "DSA_Row" {settings}', prefix, device)
    solver.load_weights(digits.weights)
    return solver, hook


@pytest.mark.parametrize(("importance", "floor"), [("CONV", 0.9), ("BN", 0.75)])
def test_it_meets_the_speedup_and_keeps_accuracy(importance: str, floor: float, digits: Digits) -> None:
    """The scales of this net were not trained to tell filters apart, so less is left when they decide."""
    solver, hook = make(digits, "prune_target { speedup: 3 } dsa_param { iterations: 80 importance: " + importance + " }")
    method = hook.method
    assert method.budget == pytest.approx(1 / 3)
    solver.step(80)
    assert hook.stages.now.state == "prune"
    assert method.keep.tolist() == pytest.approx(method.copy.tolist(), abs=0.05)
    assert float(method.form(method.copy)) <= 1 / 3 + 1e-3
    solver.step(1)
    assert 3 <= hook.budget().speedup <= 3.6
    left = rows_left(hook)
    assert left["stem"] == left["outer"]
    assert left["ip"] == 10
    assert torch.equal(hook.layers[0].masks.rows, hook.layers[2].masks.rows)
    solver.set_rate(0.01)
    solver.step(80)
    assert rows_left(hook) == left
    assert accuracy(solver) >= floor


def test_the_budget_of_ratios(digits: Digits) -> None:
    """Without a target, what the layers' ratios would save; which layers it is saved in is for the loss to say."""
    solver, hook = make(digits, CONVOLUTIONS + "dsa_param { iterations: 60 }")
    # all halved: the stem costs a half, the others, which also read half, a quarter
    operations = {layer.name: layer.layout.rows * layer.layout.columns * layer.outputs for layer in hook.layers}
    whole = sum(operations[name] for name in ("stem", "inner", "outer", "last"))
    assert hook.method.budget == pytest.approx((whole + operations["stem"]) / 4 / whole, rel=1e-5)
    solver.step(61)
    assert hook.budget().speedup >= 1 / hook.method.budget - 1e-6


def test_weights_are_whole_between_iterations(digits: Digits) -> None:
    """Tests and snapshots see unmasked weights, and a filter that was masked in the pass has not lost its scale."""
    solver, _ = make(digits, CONVOLUTIONS + "dsa_param { iterations: 100 first_ratio: 0.5 budget_falls: 0 } base_lr: 0")
    before = {name: [blob.tensor.detach().clone() for blob in blobs] for name, blobs in solver.net.params.items()
              if not name.endswith("_bn")}
    solver.step(3)
    for name, tensors in before.items():
        for blob, tensor in zip(solver.net.params[name], tensors):
            assert torch.equal(blob.tensor, tensor), name


def test_masked_filters_get_no_gradient(digits: Digits) -> None:
    """The others do; the mask's own gradient reaches the ratio."""
    solver, hook = make(digits, CONVOLUTIONS + "dsa_param { iterations: 100 first_ratio: 0.5 }")
    method, drawn = hook.method, []
    put = method._masks.put
    method._masks.put = lambda masks: (drawn.append(masks.clone()), put(masks))[1]
    ready = method.gradients_ready

    def look(iteration: int) -> None:
        ready(iteration)
        parts = dict(zip((layer.name for layer in method._layers), drawn[-1].split(method._masks.sizes)))
        for name in ("inner", "last"):
            grad = solver.net.params[f"{name}_scale"][0].grad
            assert (grad[parts[name] == 0] == 0).all()
            assert (grad[parts[name] == 1] != 0).any()
        assert torch.equal(parts["stem"], parts["outer"])

    method.gradients_ready = look
    solver.step(2)
    assert 0 < drawn[0].mean() < 1
    assert not torch.equal(drawn[0], drawn[1])
    assert method._moments[0].abs().min() > 0


def test_straight_through_masked_filters_learn(digits: Digits) -> None:
    """With the option they get the gradient of an unmasked output, which a ReLU right behind makes 0 all the same."""
    text = CONVOLUTIONS + "coupled_rows: ALONE dsa_param { iterations: 100 first_ratio: 0.5 straight_through: true }"
    solver, hook = make(digits, text)
    drawn = []
    put = hook.method._masks.put
    hook.method._masks.put = lambda masks: (drawn.append(masks.clone()), put(masks))[1]
    before = [learnable.blob.tensor.detach().clone() for learnable in solver.learnable]
    solver.step(1)
    place = {layer.name: part for layer, part in zip(hook.method._layers, drawn[0].split(hook.method._masks.sizes))}
    for name, learns in (("inner", False), ("outer", True)):
        masked = solver.net.params[f"{name}_scale"][0].grad[place[name] == 0]
        assert len(masked) and bool((masked != 0).any()) is learns
    assert hook.method._moments[0].abs().min() > 0
    assert not any("forward" in vars(layer) for layer in solver.net.layers)
    assert not all(torch.equal(old, learnable.blob.tensor) for old, learnable in zip(before, solver.learnable))


def test_the_gradient_by_the_ratios(digits: Digits) -> None:
    """From the masks' gradients on, torch's own through `KeepProbability`; layers of a group add up."""
    solver, hook = make(digits, CONVOLUTIONS + "dsa_param { iterations: 100 first_ratio: 0.6 } base_lr: 0")
    method, seen = hook.method, {}
    take = method._masks.take
    method._masks.take = lambda: seen.setdefault("by_filter", take())
    keep = method.keep.clone().requires_grad_()
    solver.step(1)
    p = dsa_solve.KeepProbability.apply(keep, method._importance, method.param.beta2_first, method.real)
    flat = p.view(-1)[method._index]
    (wanted,) = torch.autograd.grad((flat * seen["by_filter"]).sum(), keep)
    np.testing.assert_allclose(method._moments[0] / (1 - 0.9), wanted, rtol=1e-4)


def test_beta2_and_budget_over_time(digits: Digits) -> None:
    _, hook = make(digits, "prune_target { speedup: 4 } dsa_param { iterations: 101 }")
    method = hook.method
    seen = []
    for method.steps in (0, 25, 50, 100):
        seen.append((method.beta2, method.budget_now))
    assert [beta2 for beta2, _ in seen] == pytest.approx([1, 50 ** 0.25, 50 ** 0.5, 50])
    first = method._first_cost
    assert seen[0][1] == first
    assert first > seen[1][1] > seen[2][1] > method.budget * 0.999
    assert seen[3][1] == pytest.approx(0.25)
    method.param.beta2_schedule = method.param.LINEAR
    method.steps = 50
    assert method.beta2 == pytest.approx(25.5)


def test_equal_filters(digits: Digits) -> None:
    """All weights equal, then all zero: equal probabilities, finite steps, and filters are pruned all the same."""
    for value in (0.01, 0.0):
        solver, hook = make(digits, CONVOLUTIONS + "dsa_param { iterations: 4 } base_lr: 0", "equal")
        with torch.no_grad():
            for layer in hook.layers[:4]:
                layer.weight.tensor.fill_(value)
        hook.pruner.start_over()
        solver.step(5)
        assert torch.isfinite(hook.method.keep).all()
        assert hook.stages.now.state != "prune"
        assert min(rows_left(hook).values()) >= 1
        assert hook.budget().speedup >= 1 / hook.method.budget - 1e-6


def test_one_filter_is_kept(digits: Digits) -> None:
    """The most probable of a group is never masked, so that no layer is cut off in a pass."""
    solver, hook = make(digits, CONVOLUTIONS + "dsa_param { iterations: 50 least_ratio: 0.02 first_ratio: 0.03 "
                        "beta2_first: 50 }")
    drawn = []
    put = hook.method._masks.put
    hook.method._masks.put = lambda masks: (drawn.append(masks.clone()), put(masks))[1]
    solver.step(5)
    assert all(part.any() for masks in drawn for part in masks.split(hook.method._masks.sizes))


@pytest.mark.gpu
def test_a_gpu_goes_the_same_way(digits: Digits) -> None:
    """The same masks are drawn, and the ratios stay together, while rounding has not grown."""
    found = {}
    for device in ("cpu", "cuda"):
        solver, hook = make(digits, CONVOLUTIONS + "dsa_param { iterations: 40 }", device, device)
        solver.step(10)
        found[device] = hook.method
    torch.testing.assert_close(found["cpu"].keep, found["cuda"].keep.cpu(), rtol=0, atol=1e-3)
    torch.testing.assert_close(found["cpu"].copy, found["cuda"].copy.cpu(), rtol=0, atol=1e-3)


@pytest.mark.parametrize(("settings", "message"), [
    ("dsa_param { rho: 0 }", "rho is 0"),
    ("dsa_param { beta2_first: -1 }", "beta2_first is -1"),
    ("dsa_param { project_every: 0 }", "project_every is 0"),
    ("dsa_param { least_ratio: 0.01 }", "least_ratio is 0.01, expected a share above 0.01"),
    ("dsa_param { first_ratio: 0.04 }", "first_ratio is 0.04, expected more than least_ratio"),
    ("dsa_param { keep_lr: -0.1 }", "keep_lr is -0.1"),
    ("", "iterations is 0, and so is half of max_iter"),
    ("prune_target { compression: 3 }", "budget is of multiply-adds"),
])
def test_settings_that_cannot_be(settings: str, message: str) -> None:
    with pytest.raises(SolverError, match=message):
        config(f'prune_method: "DSA_Row" {"max_iter: 100" if settings else ""} {settings}')


def test_a_budget_out_of_reach(digits: Digits) -> None:
    with pytest.raises(SolverError, match=r"prune_target asks for a speedup of 20, and DSA_Row can reach 2\.\d+ with least_r"):
        make(digits, "prune_target { speedup: 20 } dsa_param { iterations: 10 least_ratio: 0.6 }")
    with pytest.raises(SolverError, match=r"the prune_ratios ask for a speedup of 3\.\d+, and DSA_Row can reach"):
        make(digits, CONVOLUTIONS + "dsa_param { iterations: 10 least_ratio: 0.6 }")


def test_no_scale_to_go_by(digits: Digits) -> None:
    text = (digits.folder / "net.prototxt").read_text()
    bare = text.replace('type: "BatchNorm"', 'type: "Power"').replace('layer { name: "inner_scale" type: "Scale"',
                                                                       'layer { name: "inner_scale" type: "Bias"')
    (digits.folder / "bare_net.prototxt").write_text(bare.replace("scale_param { bias_term: true }", ""))
    with pytest.raises(SolverError, match=r"asks for the importance BN, and this layer has no BatchNorm"):
        digits.make(f'prune_method: "DSA_Row" net: "{digits.folder}/bare_net.prototxt" {CONVOLUTIONS} '
                    "dsa_param { iterations: 10 importance: BN }", "bare")


def test_steps_of_adam() -> None:
    """A steady gradient moves a ratio by keep_lr an iteration, whatever its size."""
    keep, copy = torch.tensor([0.5, 0.5]), torch.tensor([0.5, 0.5])
    moved = dsa_budget.move(keep, torch.tensor([0.1, -0.1]), copy, torch.zeros(2), 1.0, torch.full((2,), 0.05))
    assert moved.tolist() == pytest.approx([0.45, 0.55])
    assert dsa_budget.move(keep, torch.tensor([9.0, -9.0]), copy, torch.zeros(2), 1.0, torch.full((2,), 0.05)).tolist() == \
        pytest.approx([0.05, 1])
