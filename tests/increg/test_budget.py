"""Speedup and compression of the recorded runs, from their pruned ratios."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from pruning import lenet5

from caffe_compat import proto
from caffe_compat.net import Net
from increg.budget import RULES, budget, layer_budgets, measure
from increg.cli import main

PROTOTXT = Path(__file__).parents[2] / "prototxt"


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


NET = """
layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 dim: 6 dim: 6 } } }
layer { name: "a" type: "Convolution" bottom: "x" top: "a" convolution_param { num_output: 4 kernel_size: 3 } }
layer { name: "r" type: "ReLU" bottom: "a" top: "a" }
layer { name: "f" type: "InnerProduct" bottom: "a" top: "f" inner_product_param { num_output: 5 bias_term: false } }
"""


@pytest.mark.parametrize(("rule", "operations", "weights"), [
    ("conv", 4 * 27 * 16, 4 * 27), ("matrix", 4 * 27 * 16 + 5 * 64, 4 * 27 + 5 * 64), ("reference", 4 * 27 * 16, 5 * 64),
    ("all", 4 * 27 * 16 + 5 * 64 + 64 + 64, 4 * 27 + 4 + 5 * 64)])
def test_rules(rule: str, operations: int, weights: int) -> None:
    """For one sample; after pruning a row of four and of 27 columns nine, what is left of the convolution is 3/4 * 2/3."""
    net = Net(proto.parse_text(NET, "NetParameter"), "TEST")
    for blobs in net.params.values():
        blobs[0].tensor.data.fill_(1)
    total = budget(layer_budgets(net), RULES.get(rule))
    assert (total.operations, total.weights) == (operations, weights)
    assert (total.operations_left, total.weights_left) == (operations, weights)
    weight = net.params["a"][0].tensor.data
    weight[1] = weight[:, 2] = 0
    pruned = budget(layer_budgets(net), RULES.get(rule))
    assert pruned.operations_left == pytest.approx(operations - 4 * 27 * 16 / 2)
    assert pruned.weights_left == pytest.approx(weights - (0 if rule == "reference" else 4 * 27 / 2))


def test_every_rule_is_tested() -> None:
    marks = test_rules.pytestmark[0]
    assert sorted(case[0] for case in marks.args[1]) == RULES.names()


def test_the_rule_reference_is_what_pruning_measures() -> None:
    """The same numbers from a net's zeros and from the layers' masks."""
    net = Net(PROTOTXT / "lenet5" / "deploy.prototxt", "TEST", seed=1)
    layers = pruned((9, 0, 250), (15, 450, 0))
    for layer, blobs in zip(layers, net.params.values()):
        matrix = torch.ones(blobs[0].shape).flatten(1)
        matrix[:layer.num_rows] = 0
        matrix[:, :int(layer.num_columns)] = 0
        blobs[0].data[...] = matrix.reshape(blobs[0].shape)
    whole, masks = budget(layer_budgets(net), RULES.get("reference")), measure(layers)
    assert whole.speedup == pytest.approx(masks.speedup, rel=1e-6)
    assert whole.compression == pytest.approx(masks.compression, rel=1e-2)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every number comes with its rule."""
    (tmp_path / "net.prototxt").write_text(NET)
    assert main(["budget", str(tmp_path / "net.prototxt"), "--rule", "conv"]) == 0
    said = capsys.readouterr().out
    assert all(RULES.get(name).text in said for name in RULES.names())
    assert "(rule conv: multiply-adds and weights of Convolution layers" in said
    assert "1,728" in said
    assert "nothing counts as pruned" in said
