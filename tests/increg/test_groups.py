"""Groups of weights, in both memory formats, grouped and transposed, against loops in numpy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from increg.groups import Layout, Masks
from increg.sums import sum_of_rows
from increg.units import UNITS, Channel, Column, Position, Row, Unit, Weight

CASES = {
    "convolution": Layout((6, 4, 3, 2)),
    "channels last": Layout((6, 4, 3, 2)),
    "1x1": Layout((5, 7, 1, 1)),
    "grouped": Layout((6, 4, 3, 2), group=2),
    "inner product": Layout((5, 9)),
    "transposed": Layout((9, 5), transposed=True),
    "3-D": Layout((3, 2, 2, 2, 2)),
}


def weight_of(name: str) -> torch.Tensor:
    weight = torch.randn(CASES[name].shape, generator=torch.Generator().manual_seed(0))
    return weight.to(memory_format=torch.channels_last) if name == "channels last" else weight


def as_matrix(name: str, weight: torch.Tensor) -> np.ndarray:
    array = weight.numpy().T if CASES[name].transposed else weight.numpy()
    return array.reshape(CASES[name].rows, -1)


@pytest.mark.parametrize("name", CASES)
def test_matrix_and_back(name: str) -> None:
    layout, weight = CASES[name], weight_of(name)
    np.testing.assert_array_equal(layout.matrix(weight).numpy(), as_matrix(name, weight))
    assert torch.equal(layout.weight(layout.matrix(weight)), weight)
    assert layout.columns == layout.channels * layout.positions == as_matrix(name, weight).shape[1]


UNITS_AND_CASES = [(unit, name) for unit in (Row(), Column(), Position()) for name, layout in CASES.items()
                   if unit.size(layout) > 2]


@pytest.mark.parametrize(("unit", "name"), UNITS_AND_CASES,
                         ids=lambda value: value if isinstance(value, str) else type(value).__name__)
def test_norms_spread_and_masks(unit: Row | Column | Position, name: str) -> None:
    layout, weight = CASES[name], weight_of(name)
    matrix = as_matrix(name, weight)
    members = {"Row": lambda i: (i, slice(None)), "Column": lambda i: (slice(None), i),
               "Position": lambda i: (slice(None), slice(i, None, layout.positions))}[type(unit).__name__]
    size = unit.size(layout)
    norms = torch.empty(size)
    unit.norms(layout, weight, norms)
    np.testing.assert_allclose(norms.numpy(), [np.abs(matrix[members(i)]).sum() for i in range(size)], rtol=1e-6)

    values = torch.arange(1.0, size + 1)
    spread = as_matrix(name, unit.spread(layout, values, weight).expand(layout.shape))
    for i in range(size):
        assert (spread[members(i)] == i + 1).all()

    masks, groups = Masks(layout), torch.zeros(size, dtype=torch.bool)
    groups[[0, size - 2]] = True
    unit.prune(masks, groups, 2)
    assert torch.equal(unit.pruned(masks), groups)
    expected = matrix.copy()
    for i in (0, size - 2):
        expected[members(i)] = 0
    masked = weight.clone(memory_format=torch.preserve_format)
    masks.apply(masked)
    np.testing.assert_array_equal(as_matrix(name, masked), expected)
    assert masked.stride() == weight.stride()
    counts = masks.num_rows, masks.num_columns
    assert unit.num_pruned(layout, *counts) == 2
    masks.set(masks.rows, masks.columns)
    assert (masks.num_rows, masks.num_columns) == counts

    score = torch.zeros(layout.rows, layout.columns)
    unit.slot(layout, score).copy_(values)
    assert unit.slot(layout, layout.matrix(layout.weight(score))).tolist() == values.tolist()


def members(unit: Unit, layout: Layout, i: int) -> np.ndarray:
    """Which elements of the matrix are of group i, bool."""
    rows, columns = np.indices((layout.rows, layout.columns))
    number = {Row: rows, Column: columns, Position: columns % layout.positions, Channel: columns // layout.positions,
              Weight: rows * layout.columns + columns}[type(unit)]
    return number == i


@pytest.mark.parametrize("word", UNITS)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("function", [torch.abs, torch.square])
def test_every_unit(word: str, name: str, function: Callable, device: torch.device) -> None:
    """Sums, spread vectors and masks of all groups, group by group."""
    unit, layout, weight = UNITS[word], CASES[name], weight_of(name).to(device)
    if unit.refusal(layout):
        assert word == "Spatial" and len(layout.shape) != 4
        return
    matrix, size = as_matrix(name, function(weight.cpu())), unit.size(layout)
    order = as_matrix(name, torch.arange(size).reshape(layout.shape)).ravel() if word == "Weight" else np.arange(size)
    groups = {int(order[i]): members(unit, layout, i) for i in range(size)}
    assert unit.weights(layout) == groups[0].sum()
    totals = unit.totals(layout, weight, function)
    np.testing.assert_allclose(totals.cpu().numpy(), [matrix[groups[i]].sum() for i in range(size)], rtol=1e-5)
    np.testing.assert_allclose(unit.sums(layout, function(weight)).cpu().numpy(), totals.cpu().numpy(), rtol=1e-5)
    spread = as_matrix(name, unit.spread(layout, torch.arange(float(size), device=device), weight).expand(layout.shape).cpu())
    for i in range(size):
        assert (spread[groups[i]] == i).all()

    masks, chosen = Masks(layout, device), torch.zeros(size, dtype=torch.bool, device=device)
    chosen[:: 2] = True
    unit.prune(masks, chosen)
    assert torch.equal(unit.pruned(masks), chosen)
    masked = weight.clone(memory_format=torch.preserve_format)
    masks.apply(masked)
    expected = as_matrix(name, weight.cpu()).copy()
    for i in range(0, size, 2):
        expected[groups[i]] = 0
    np.testing.assert_array_equal(as_matrix(name, masked.cpu()), expected)
    assert torch.equal(masks.zeros(), masked == 0)


@pytest.mark.parametrize("word", UNITS)
def test_sums_of_a_large_weight_are_those_of_its_parts(word: str) -> None:
    """A weight that does not fit the cache is gone through in parts; the reference's order makes the same float32 values."""
    unit, layout = UNITS[word], Layout((300, 70, 3, 3))
    weight = torch.randn(layout.shape, generator=torch.Generator().manual_seed(0))
    out = torch.empty(unit.size(layout))
    unit.norms(layout, weight, out)
    matrix = weight.abs().flatten(1)
    if word == "Row":
        assert torch.equal(out[[0, 150, 299]], one_by_one(matrix[[0, 150, 299]].T))
    if word == "Col":
        assert torch.equal(out, one_by_one(matrix))
    last = weight.to(memory_format=torch.channels_last)
    np.testing.assert_allclose(unit.totals(layout, last, torch.abs).numpy(), out.numpy(), rtol=1e-5)


def one_by_one(rows: torch.Tensor) -> torch.Tensor:
    total = torch.zeros(rows.shape[1])
    for row in rows:
        total = total + row
    return total


def test_zeros_count_as_pruned_group_by_group() -> None:
    layout = Layout((4, 3, 1, 2), group=2)
    weight = torch.ones(layout.shape)
    weight[1] = 0
    weight.reshape(4, 6)[2:, 5] = 0
    masks = Masks(layout)
    masks.set_from_zeros(weight)
    assert masks.rows.tolist() == [False, True, False, False]
    assert masks.columns.nonzero().tolist() == [[1, 5]]
    assert (masks.num_rows, masks.num_columns) == (1, 0.5)
    assert Column().num_pruned(layout, masks.num_rows, masks.num_columns) == 0
    assert not Column().pruned(masks).any()
    diff = torch.ones(layout.shape)
    masks.apply(diff)
    assert torch.equal(diff, weight)


def test_rows_are_added_one_after_the_other() -> None:
    """The order of float32 additions decides between nearly equal groups; the reference adds row by row."""
    matrix = torch.rand(300, 40, generator=torch.Generator().manual_seed(0))
    total = np.zeros(40, np.float32)
    for row in matrix.numpy():
        total += row
    np.testing.assert_array_equal(sum_of_rows(matrix).numpy(), total)
