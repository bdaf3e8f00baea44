"""Groups of weights, in both memory formats, grouped and transposed, against loops in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from increg.groups import Layout, Masks
from increg.units import Column, Position, Row, sum_of_rows

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
    np.testing.assert_array_equal(sum_of_rows(matrix)[0].numpy(), total)
