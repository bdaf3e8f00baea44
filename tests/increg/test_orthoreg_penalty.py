"""OrthoReg's regularizer and its gradient, against the authors' code and against torch's own gradient."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from increg.methods import orthoreg_penalty
from increg.methods.orthoreg_penalty import Term

GOLDEN = Path(__file__).parents[1] / "golden" / "methods" / "orthoreg"
CASES = json.loads((GOLDEN / "cases.json").read_text())["regularizer"]["cases"]


@cache
def recorded() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "regularizer.npz") as file:
        return dict(file)


def parameters(case: str, layer: str) -> tuple[list[torch.Tensor], list[np.ndarray]]:
    """Weight, and bias if there is one, with their recorded gradients."""
    data = recorded()
    names = [f"{layer}.{kind}" for kind in ("weight", "bias") if f"{case}/{layer}.{kind}" in data]
    return [torch.from_numpy(data[f"{case}/{name}"]) for name in names], [data[f"{case}/grad/{name}"] for name in names]


def terms(case: dict) -> list[Term]:
    """As the net would tell: the first convolution, depthwise ones, and shortcuts, which go with their block's first."""
    layers = case["layers"]
    found = []
    for i, layer in enumerate(layers):
        block_first = layer.replace("shortcut.0", "conv1")
        found.append(orthoreg_penalty.term(
            case["weights"][layer], i == 0, depthwise=case["kind"] == "mobile" and layer.endswith("conv1") and i > 0,
            like=layers.index(block_first) if block_first != layer else None))
    return found


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_as_recorded(case: dict, channels_last: bool, device: torch.device) -> None:
    layer_terms = terms(case)
    shares = orthoreg_penalty.coefficients(layer_terms)
    total = 0.0
    wanted_all = [grad for layer in case["layers"] for grad in parameters(case["name"], layer)[1]]
    largest = max(np.abs(grad).max() for grad in wanted_all)
    for layer, one, share, values, gram in zip(case["layers"], layer_terms, shares, case["sum_of_abs_in_order"],
                                               case["gram_sizes_in_order"]):
        own, wanted = parameters(case["name"], layer)
        own = [tensor.to(device) for tensor in own]
        if channels_last:
            own[0] = own[0].contiguous(memory_format=torch.channels_last)
        weight, bias = own[0], own[1] if len(own) > 1 else None
        matrix = orthoreg_penalty.stored_matrix(weight, bias)
        assert list(orthoreg_penalty.deviation(matrix, one.by_filters).shape) == gram
        value = orthoreg_penalty.value(weight, bias, one.by_filters).item()
        assert value == pytest.approx(values, rel=1e-5)
        total += case["factor_in_the_loss"] * share * value
        grads = [torch.ones_like(tensor) for tensor in own]
        orthoreg_penalty.add_gradient(weight, bias, one.by_filters, case["factor_in_the_loss"] * share, grads[0],
                                      grads[1] if bias is not None else None)
        for grad, expected in zip(grads, wanted):
            # 1 was there before; what the addition to it rounds away is 6e-8
            np.testing.assert_allclose(grad.cpu() - 1, expected, rtol=0, atol=1e-5 * largest + 1.2e-7, err_msg=layer)
    assert total == pytest.approx(case["loss_term"], rel=1e-5)


@pytest.mark.parametrize("by_filters", [True, False])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 3, 3, 3), (4, 9, 1, 1), (6, 7), (1, 1, 1, 1), (7, 1, 3, 3)])
def test_gradient_is_torchs(shape: tuple[int, ...], with_bias: bool, by_filters: bool) -> None:
    rng = torch.Generator().manual_seed(1)
    weight = torch.randn(shape, generator=rng, dtype=torch.float64).requires_grad_()
    bias = torch.randn(shape[0], generator=rng, dtype=torch.float64).requires_grad_() if with_bias else None
    inputs = [weight] if bias is None else [weight, bias]
    wanted = torch.autograd.grad(0.3 * orthoreg_penalty.value(weight, bias, by_filters), inputs)
    grads = [torch.zeros_like(tensor, requires_grad=False) for tensor in inputs]
    with torch.no_grad():
        orthoreg_penalty.add_gradient(weight, bias, by_filters, 0.3, grads[0], grads[1] if with_bias else None)
    for found, expected in zip(grads, wanted):
        torch.testing.assert_close(found, expected)


def test_orthonormal_filters_cost_nothing() -> None:
    weight = torch.eye(4)[:3].reshape(3, 4, 1, 1)
    assert orthoreg_penalty.value(weight, None, True).item() == 0
    grad = torch.zeros_like(weight)
    orthoreg_penalty.add_gradient(weight, None, True, 1.0, grad, None)
    assert not grad.any()  # sign(0) is 0


def test_zero_weights() -> None:
    """|0 - I|: a value of the number of filters, no gradient."""
    weight, grad = torch.zeros(3, 2, 1, 1), torch.zeros(3, 2, 1, 1)
    assert orthoreg_penalty.value(weight, None, True).item() == 3
    orthoreg_penalty.add_gradient(weight, None, True, 1.0, grad, None)
    assert not grad.any()


def test_coefficients_sum_to_one() -> None:
    layers = [Term(False, 64), Term(True, 128), Term(True, 9), Term(False, 100, like=1)]
    shares = orthoreg_penalty.coefficients(layers)
    roots = [8, 128 ** 0.5, 3, 10]
    assert shares[:3] == pytest.approx([root / sum(roots) for root in roots[:3]])
    assert shares[3] == shares[1]
