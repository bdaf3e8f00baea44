"""Speedup and compression of the recorded runs, from their pruned ratios."""

from __future__ import annotations

import math

import pytest
from pruning import lenet5

from increg.budget import measure


def pruned(rows: tuple[int, ...], columns: tuple[float, ...]) -> list:
    layers = lenet5(0.9, 0.9)
    for layer, row, column in zip(layers, rows, columns):
        layer.num_rows, layer.num_columns = row, column
        layer.update_ratios()
    return layers


@pytest.mark.parametrize(("rows", "columns", "speedup"), [
    ((9, 0), (23, 450), "10.934"), ((2, 0), (15, 350), "3.23465"), ((10, 25), (0, 250), "3.47059"),
    ((0, 0), (13, 260), "2.08333")])
def test_recorded_speedups(rows: tuple[int, ...], columns: tuple[float, ...], speedup: str) -> None:
    assert f"{measure(pruned(rows, columns)).speedup:g}" == speedup


def test_what_is_counted() -> None:
    layers = pruned((9, 0, 250), (23, 450, 0))
    budget = measure(layers)
    assert (budget.operations, budget.weights) == (500 * 576 + 25000 * 64, 400000 + 5000)
    assert budget.compression == pytest.approx(405000 / 205000)
    everything = measure(layers, speedup_counts_fc=True, compression_counts_conv=True)
    assert (everything.operations, everything.weights) == (500 * 576 + 25000 * 64 + 405000, 25500 + 405000)
    assert everything.weights_left == pytest.approx(500 * 0.044 + 25000 * 0.1 + 205000, rel=1e-6)


def test_nothing_counted_and_nothing_left() -> None:
    assert measure([]).speedup == measure([]).compression == 1
    assert measure(pruned((20, 50), (0, 0))).speedup == math.inf


def test_ratios_are_float32() -> None:
    """15 of 25 columns reach a ratio of 0.6, which they do not in double precision."""
    layer = pruned((0, 0), (15, 0))[0]
    layer.ratio_now = type(layer.ratio)(0.6)
    assert layer.compared_ratio(by_rows=False) >= layer.ratio_now
    assert float(layer.ratio_now) > 15 / 25
