"""InnerProduct, Embed, Eltwise, Concat, Slice, Split, Flatten, Reshape, Softmax beyond the recorded cases."""

from __future__ import annotations

import pytest
import torch
from building import gradient, make, randn, refill
from hypothesis import given, settings
from hypothesis import strategies as st

from caffe_compat.errors import NetError


class TestInnerProduct:
    def test_reads_channels_last_activations_in_caffes_order(self):
        layer = make("InnerProduct", (2, 3, 4, 5), param="inner_product_param { num_output: 6 }")
        refill(layer)
        x = randn(2, 3, 4, 5)
        torch.testing.assert_close(layer.forward(x.contiguous(memory_format=torch.channels_last)), layer.forward(x))

    def test_transpose_only_stores_differently(self):
        plain = make("InnerProduct", (2, 3), param="inner_product_param { num_output: 4 }")
        transposed = make("InnerProduct", (2, 3), param="inner_product_param { num_output: 4 transpose: true }")
        weight, bias = refill(plain)
        transposed.blobs[0].tensor, transposed.blobs[1].tensor = weight.t(), bias
        x = randn(2, 3, seed=9)
        torch.testing.assert_close(transposed.forward(x), plain.forward(x))

    def test_batch_may_change_but_not_the_inputs(self):
        layer = make("InnerProduct", (2, 3, 4), param="inner_product_param { num_output: 5 }")
        assert layer.reshape([(7, 3, 4)]) == [(7, 5)]
        with pytest.raises(NetError, match=r"it \(net.prototxt:1\): the weights are for 12 inputs.* has 9 from axis 1"):
            layer.reshape([(2, 9)])

    def test_needs_num_output(self):
        with pytest.raises(NetError, match="num_output is 0; give it a positive number"):
            make("InnerProduct", (2, 3))

    @pytest.mark.parametrize("axis", [2, -3])
    def test_axis_out_of_range(self, axis):
        with pytest.raises(NetError, match=f"axis is {axis}, but the bottom has 2 axes"):
            make("InnerProduct", (2, 3), param=f"inner_product_param {{ num_output: 1 axis: {axis} }}")


class TestEmbed:
    def make(self):
        return make("Embed", (3,), param="embed_param { num_output: 2 input_dim: 4 }")

    @pytest.mark.parametrize("bad", [-1.0, 4.0])
    def test_index_out_of_range(self, bad):
        with pytest.raises(NetError, match=f'"b0" holds {bad:.0f}, which must lie between 0 and 3') as caught:
            self.make().forward(torch.tensor([0.0, bad, 1.0]))
        assert caught.value.blob == "b0"

    def test_fractions_are_cut_off(self):
        layer = self.make()
        weight, bias = refill(layer)
        torch.testing.assert_close(layer.forward(torch.tensor([0.9, 3.0, 1.5])), weight[[0, 3, 1]] + bias)

    @pytest.mark.parametrize("field", ["num_output", "input_dim"])
    def test_needs_sizes(self, field):
        other = {"num_output": "input_dim", "input_dim": "num_output"}[field]
        with pytest.raises(NetError, match=f"embed_param.{field} is 0"):
            make("Embed", (3,), param=f"embed_param {{ {other}: 2 }}")


class TestEltwise:
    @pytest.mark.parametrize(("param", "message"), [
        ("operation: PROD coeff: 1 coeff: 2", "coeff is for operation SUM"),
        ("coeff: 1", "found 1 coeff for 2 bottoms"),
    ])
    def test_coefficients_that_do_not_fit(self, param, message):
        with pytest.raises(NetError, match=message):
            make("Eltwise", (2, 3), (2, 3), param=f"eltwise_param {{ {param} }}")

    def test_shapes_that_differ(self):
        with pytest.raises(NetError, match=r'"b0" is 2 3 \(6\) and "b1" is 3 2 \(6\)'):
            make("Eltwise", (2, 3), (3, 2))

    @given(st.integers(2, 4), st.integers(0, 1000))
    @settings(max_examples=25, deadline=None)
    def test_max_gives_each_gradient_to_one_bottom(self, count, seed):
        """Of few values, so that there are ties: bottom 1 before 0, then the first of the largest."""
        generator = torch.Generator().manual_seed(seed)
        bottoms = [torch.randint(-1, 2, (40,), generator=generator).double().requires_grad_() for _ in range(count)]
        top = make("Eltwise", *[(40,)] * count, param="eltwise_param { operation: MAX }").forward(*bottoms)
        assert torch.equal(top, torch.stack(bottoms).max(0).values)
        grads = torch.stack(gradient(top, *bottoms))
        assert torch.equal(grads.sum(0), torch.ones(40, dtype=torch.float64))
        for place in range(40):
            values = [bottom[place].item() for bottom in bottoms]
            winner = max([1, 0, *range(2, count)], key=lambda i: values[i])  # max() keeps the first of equals
            assert grads[winner, place] == 1

    def test_product_has_a_gradient_at_zeros_also_when_asked_for_the_unstable_one(self):
        layer = make("Eltwise", (2,), (2,), param="eltwise_param { operation: PROD stable_prod_grad: false }")
        a, b = torch.tensor([0.0, 2.0], requires_grad=True), torch.tensor([3.0, 0.0], requires_grad=True)
        grads = gradient(layer.forward(a, b), a, b)
        assert [grad.tolist() for grad in grads] == [[3.0, 0.0], [0.0, 2.0]]

    def test_in_place_sum_keeps_the_first_bottom(self):
        a, b = randn(3), randn(3, seed=1)
        layer = make("Eltwise", (3,), (3,), param="eltwise_param { coeff: 2 coeff: 1 }")
        torch.testing.assert_close(layer.forward(a, b), 2 * a + b)


class TestConcatAndSlice:
    @given(st.integers(1, 4), st.lists(st.integers(1, 3), min_size=1, max_size=4), st.data())
    @settings(max_examples=25, deadline=None)
    def test_slice_undoes_concat(self, axes, sizes, data):
        axis = data.draw(st.integers(-axes, axes - 1))
        shapes = [[2] * axes for _ in sizes]
        for shape, size in zip(shapes, sizes):
            shape[axis] = size
        concat = make("Concat", *map(tuple, shapes), param=f"concat_param {{ axis: {axis} }}")
        points = "".join(f" slice_point: {sum(sizes[:i])}" for i in range(1, len(sizes)))
        cut = make("Slice", *concat.top_shapes, tops=len(sizes), param=f"slice_param {{ axis: {axis}{points} }}")
        bottoms = [randn(*shape, seed=i) for i, shape in enumerate(shapes)]
        joined = concat.forward(*bottoms)
        assert tuple(joined.shape) == concat.top_shapes[0]
        for bottom, top, shape in zip(bottoms, cut.forward(joined), cut.top_shapes):
            assert torch.equal(bottom, top)
            assert tuple(top.shape) == shape

    @pytest.mark.parametrize(("type", "param"), [
        ("Concat", "concat_param { axis: 1 concat_dim: 1 }"), ("Slice", "slice_param { axis: 1 slice_dim: 1 }"),
    ])
    def test_two_names_for_the_axis(self, type, param):
        with pytest.raises(NetError, match=r"both axis and (concat|slice)_dim are given"):
            make(type, (2, 3), param=param)

    @pytest.mark.parametrize(("type", "param"), [
        ("Concat", "concat_param { concat_dim: 2 }"), ("Slice", "slice_param { slice_dim: 2 }"),
    ])
    def test_axis_out_of_range_is_named_as_in_the_file(self, type, param):
        with pytest.raises(NetError, match=r"(concat|slice)_dim is 2, but the bottom has 2 axes"):
            make(type, (2, 3), param=param)

    @pytest.mark.parametrize("other", [(2, 3, 1), (3, 3), (2,)])
    def test_concat_of_shapes_that_do_not_fit(self, other):
        with pytest.raises(NetError, match=r'all bottoms must have one shape but for axis 1; .* "b1" is') as caught:
            make("Concat", (2, 3), other)
        assert caught.value.blob == "b1"

    @pytest.mark.parametrize(("param", "message"), [
        ("", "axis 1 of length 5 cannot be cut evenly into 2 tops"),
        ("slice_param { slice_point: 1 slice_point: 2 }", "found 2 slice_point for 2 tops"),
        ("slice_param { slice_point: 0 }", "must rise from above 0 to below 5"),
        ("slice_param { slice_point: 5 }", "must rise from above 0 to below 5"),
    ])
    def test_slices_that_cannot_be(self, param, message):
        with pytest.raises(NetError, match=message):
            make("Slice", (2, 5), tops=2, param=param)


def test_split_shares_values_but_not_gradients():
    x = randn(2, 3)
    a, b = make("Split", (2, 3), tops=2).forward(x)
    assert a.data_ptr() == b.data_ptr() == x.data_ptr()
    total = (2 * a + 3 * b).sum()
    grads = torch.autograd.grad(total, (a, b, x))
    assert [float(grad[0, 0]) for grad in grads] == [2, 3, 5]


class TestFlattenAndReshape:
    @pytest.mark.parametrize("type", ["Flatten", "Reshape"])
    def test_refuse_to_work_in_place(self, type):
        from caffe_compat import proto
        from caffe_compat.net import Net
        text = ('layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 } } }\n'
                f'layer {{ name: "it" type: "{type}" bottom: "x" top: "x" }}')
        with pytest.raises(NetError, match=rf"it .*a {type} layer cannot work in place"):
            Net(proto.parse_text(text, "NetParameter"))

    def test_flatten_of_no_axes_adds_one(self):
        """`axis` one past `end_axis` is an empty range, as in Caffe."""
        layer = make("Flatten", (2, 3, 4), param="flatten_param { axis: 2 end_axis: 1 }")
        assert layer.top_shapes == [(2, 3, 1, 4)]

    def test_flatten_of_axes_in_the_wrong_order(self):
        with pytest.raises(NetError, match="axis 2 lies after end_axis 0"):
            make("Flatten", (2, 3, 4), param="flatten_param { axis: 2 end_axis: 0 }")

    def test_reshape_follows_the_batch(self):
        layer = make("Reshape", (2, 6), param="reshape_param { shape { dim: 0 dim: -1 dim: 3 } }")
        assert layer.top_shapes == [(2, 2, 3)]
        assert layer.reshape([(5, 6)]) == [(5, 2, 3)]
        assert layer.forward(randn(5, 6)).shape == (5, 2, 3)

    @pytest.mark.parametrize(("param", "message"), [
        ("shape { dim: -1 dim: -1 }", "at most one -1"),
        ("shape { dim: -2 }", "at most one -1"),
        ("shape { dim: 5 }", "the bottom's 12 values do not fit the new shape 5"),
        ("shape { dim: 5 dim: -1 }", "the bottom's 12 values do not fit the new shape 5 -1"),
        ("shape { dim: 2 dim: 6 dim: 0 }", "copies axis 2 of the bottom, but that has only 2 axes"),
        ("shape { dim: 1 } axis: 3", "axis 3 and num_axes -1 do not lie within the bottom's 2 axes"),
        ("shape { dim: 1 } axis: -4", "axis -4 and num_axes -1"),
        ("shape { dim: 12 } num_axes: 3", "axis 0 and num_axes 3"),
        ("shape { dim: 12 } num_axes: -2", "axis 0 and num_axes -2"),
    ])
    def test_reshapes_that_cannot_be(self, param, message):
        with pytest.raises(NetError, match=message):
            make("Reshape", (2, 6), param=f"reshape_param {{ {param} }}")


@given(st.integers(1, 3), st.floats(-50, 50), st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_softmax_is_a_distribution_that_a_shift_does_not_change(axis, shift, seed):
    layer = make("Softmax", (2, 3, 4, 5), param=f"softmax_param {{ axis: {axis} }}")
    x = randn(2, 3, 4, 5, seed=seed)
    y = layer.forward(x)
    torch.testing.assert_close(y.sum(axis), torch.ones_like(y.sum(axis)))
    torch.testing.assert_close(layer.forward(x + shift), y)
