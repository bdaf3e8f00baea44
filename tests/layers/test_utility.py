"""Silence, Parameter, Filter, BatchReindex, Tile, ArgMax, Reduction beyond the recorded cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from building import gradient, make, randn
from hypothesis import given, settings
from hypothesis import strategies as st

from caffe_compat import proto
from caffe_compat.errors import NetError
from caffe_compat.net import Net


def net(text: str) -> Net:
    return Net(proto.parse_text(text, "NetParameter"), "TRAIN")


def test_silence_takes_blobs_from_the_outputs():
    layers = ('layer { name: "in" type: "Input" top: "x" top: "y" input_param { shape { dim: 2 } } }'
              'layer { name: "it" type: "Silence" bottom: "x" }')
    quiet = net(layers)
    assert list(quiet.forward()) == ["y"]
    quiet.backward()
    assert not quiet.blobs["x"].diff.any()


def test_parameter_learns_from_the_gradient_of_its_top():
    """loss = sum of (w - t)^2 / 2 over one item: its gradient is w - t."""
    learner = net('layer { name: "in" type: "Input" top: "t" input_param { shape { dim: 1 dim: 3 } } }'
                  'layer { name: "it" type: "Parameter" top: "w" parameter_param { shape { dim: 1 dim: 3 } } }'
                  'layer { name: "loss" type: "EuclideanLoss" bottom: "w" bottom: "t" }')
    learner.blobs["t"].data[...] = [1, 2, 3]
    learner.forward_backward()
    assert learner.params["it"][0].diff.tolist() == [[-1, -2, -3]]


class TestFilter:
    LAYERS = ('layer { name: "in" type: "Input" top: "x" top: "s" '
              '        input_param { shape { dim: 4 dim: 2 } shape { dim: 4 } } }'
              'layer { name: "it" type: "Filter" bottom: "x" bottom: "s" top: "y" }'
              'layer { name: "after" type: "Reshape" bottom: "y" top: "z" '
              '        reshape_param { shape { dim: 0 dim: 1 dim: 2 } } }')

    @pytest.mark.parametrize("selector", [[1, 0, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1], [0, -2, 0.5, 0]])
    def test_layers_after_it_follow_the_number_of_items(self, selector):
        filtered = net(self.LAYERS)
        filtered.blobs["x"].data[...] = np.arange(8).reshape(4, 2)
        filtered.blobs["s"].data[...] = selector
        chosen = [i for i, value in enumerate(selector) if value]
        assert filtered.forward()["z"].shape == (len(chosen), 1, 2)
        assert filtered.blobs["y"].data.tolist() == [[2 * i, 2 * i + 1] for i in chosen]

    @pytest.mark.parametrize(("shapes", "tops", "message"), [
        ([(4, 2), (4,)], 2, "one top less than bottoms.*found 2 bottoms, 2 tops"),
        ([(4, 2), (4, 2)], 1, r"axes after the first must be 1; found 4 2 \(8\)"),
        ([(4, 2), (3, 2), (4, 1)], 2, r'"b1" must have 4 items, as the selector has; found 3 2 \(6\)'),
    ])
    def test_blobs_that_do_not_fit(self, shapes, tops, message):
        with pytest.raises(NetError, match=message):
            make("Filter", *shapes, tops=tops)


class TestBatchReindex:
    @pytest.mark.parametrize("bad", [-1, 3])
    def test_index_out_of_range(self, bad):
        with pytest.raises(NetError, match=f'"b1" holds {bad}, which must lie between 0 and 2'):
            make("BatchReindex", (3, 2), (2,)).forward(torch.zeros(3, 2), torch.tensor([0.0, bad]))

    def test_indices_have_one_axis(self):
        with pytest.raises(NetError, match=r"the indices must have one axis, found 2 1 \(2\)"):
            make("BatchReindex", (3, 2), (2, 1))

    def test_items_have_an_axis(self):
        with pytest.raises(NetError, match="no items to choose from"):
            make("BatchReindex", (), (2,))


class TestTile:
    def test_gradients_of_the_copies_add_up(self):
        x = randn(2, 3)
        y = make("Tile", (2, 3), param="tile_param { tiles: 4 }").forward(x)
        assert torch.equal(y, torch.cat([x] * 4, 1))
        assert torch.equal(gradient(y, x)[0], torch.full_like(x, 4))

    @pytest.mark.parametrize("param", ["", "tile_param { tiles: 0 }", "tile_param { tiles: -1 }"])
    def test_needs_tiles(self, param):
        with pytest.raises(NetError, match="give it a positive number"):
            make("Tile", (2, 3), param=param)


class TestArgMax:
    @given(st.integers(1, 4), st.booleans(), st.integers(0, 2), st.integers(0, 1000))
    @settings(max_examples=40, deadline=None)
    def test_largest_first_and_of_equals_the_last(self, top_k, values, axis, seed):
        """Against numpy, of so few values that there are ties."""
        x = torch.randint(0, 3, (4, 5, 6), generator=torch.Generator().manual_seed(seed)).float()
        param = f"argmax_param {{ axis: {axis} top_k: {top_k} out_max_val: {str(values).lower()} }}"
        layer = make("ArgMax", x.shape, param=param)
        found = layer.forward(x).numpy()
        rows = np.moveaxis(x.numpy(), axis, -1)
        order = np.flip(np.argsort(rows, -1, kind="stable"), -1)[..., :top_k]
        expected = np.take_along_axis(rows, order, -1) if values else order
        np.testing.assert_array_equal(found, np.moveaxis(expected, -1, axis))

    @pytest.mark.parametrize(("param", "message"), [
        ("top_k: 0", "argmax_param.top_k is 0"), ("top_k: 7", "only 6 values to choose from"),
        ("axis: 1 top_k: 4", "only 3 values to choose from"), ("axis: 3", "axis is 3"),
    ])
    def test_settings_that_do_not_fit(self, param, message):
        with pytest.raises(NetError, match=message):
            make("ArgMax", (4, 3, 2), param=f"argmax_param {{ {param} }}")

    def test_one_axis(self):
        layer = make("ArgMax", (3,))
        assert layer.top_shapes == [(3, 1, 1)]
        assert layer.forward(torch.ones(3)).tolist() == [[[0]]] * 3


class TestReduction:
    @pytest.mark.parametrize(("operation", "expected"), [
        ("SUM", lambda x: x), ("ASUM", lambda x: x.abs()), ("SUMSQ", lambda x: x ** 2), ("MEAN", lambda x: x / 12),
    ])
    def test_is_the_sum_of(self, operation, expected):
        x = randn(2, 3, 4)
        layer = make("Reduction", (2, 3, 4), param=f"reduction_param {{ operation: {operation} axis: -2 coeff: -2 }}")
        torch.testing.assert_close(layer.forward(x), -2 * expected(x).sum((1, 2)))

    def test_mean_of_nothing(self):
        layer = make("Reduction", (0, 3), param="reduction_param { operation: MEAN }")
        assert math.isnan(layer.forward(torch.zeros(0, 3)))
