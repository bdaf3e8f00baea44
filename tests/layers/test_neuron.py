"""The elementwise layers beyond the recorded cases."""

from __future__ import annotations

import pytest
import torch
from building import gradient, make, randn

from caffe_compat.errors import NetError


@pytest.mark.parametrize("slope", [0.0, 0.25, -0.5, 3.0])
def test_relu_gradient_at_zero_is_the_slope(slope):
    x = torch.tensor([-2.0, 0.0, 2.0], requires_grad=True)
    y = make("ReLU", (3,), param=f"relu_param {{ negative_slope: {slope} }}").forward(x)
    assert y.tolist() == [-2 * slope, 0, 2]
    assert gradient(y, x)[0].tolist() == [slope, slope, 1]


class TestPReLU:
    def test_slopes_before_training(self):
        assert make("PReLU", (2, 3)).blobs[0].tensor.tolist() == [0.25] * 3
        assert make("PReLU", (2, 3), param="prelu_param { filler {} }").blobs[0].tensor.tolist() == [0] * 3
        assert make("PReLU", (2, 3), param="prelu_param { channel_shared: true }").blobs[0].shape == ()

    def test_needs_two_axes(self):
        with pytest.raises(NetError, match=r"needs at least 2 axes, found 3 \(3\)"):
            make("PReLU", (3,))

    def test_channels_cannot_change(self):
        with pytest.raises(NetError, match="there are 3 slopes, but the bottom is 2 4"):
            make("PReLU", (2, 3)).reshape([(2, 4)])


def test_bnll_keeps_its_precision_for_large_values():
    x = torch.tensor([-40.0, 0.0, 21.0, 49.0, 51.0, 1000.0], dtype=torch.float64)
    expected = torch.where(x > 0, x + torch.log1p(torch.exp(-x.abs())), torch.log1p(torch.exp(x.clamp(max=0))))
    torch.testing.assert_close(make("BNLL", (6,)).forward(x), expected, rtol=1e-14, atol=0)


def test_swish_of_beta_one_is_no_special_case():
    x = randn(20)
    torch.testing.assert_close(make("Swish", (20,)).forward(x), x * torch.sigmoid(x))


class TestPower:
    @pytest.mark.parametrize(("power", "slope"), [(3, 0), (2, 0), (1.5, 0), (1, 1)])
    def test_gradient_at_zero_is_the_derivative(self, power, slope):
        """Caffe divides 0 by 0 there for powers other than 1 and 2."""
        x = torch.zeros(1, requires_grad=True)
        assert gradient(make("Power", (1,), param=f"power_param {{ power: {power} }}").forward(x), x)[0].item() == slope

    @pytest.mark.parametrize(("param", "value"), [
        ("power: 0", 1.0), ("scale: 0 shift: 3 power: 2", 9.0), ("scale: 0 shift: 0 power: 2", 0.0),
        ("scale: 0 shift: -2 power: 3", -8.0), ("scale: 0 shift: 0 power: -1", float("inf")),
        ("scale: 0 shift: 0 power: 0", 1.0),
    ])
    def test_constant(self, param, value):
        x = torch.tensor([0.0, float("inf")])
        assert make("Power", (2,), param=f"power_param {{ {param} }}").forward(x).tolist() == [value, value]

    def test_root_of_a_negative_constant(self):
        layer = make("Power", (1,), param="power_param { scale: 0 shift: -1 power: 0.5 }")
        assert layer.forward(torch.zeros(1)).isnan().all()


class TestExpAndLog:
    @pytest.mark.parametrize("base", ["", "base: 2", "base: 10", "base: 0.5"])
    def test_log_undoes_exp(self, base):
        exp = make("Exp", (20,), param=f"exp_param {{ {base} scale: 0.5 shift: 1 }}")
        log = make("Log", (20,), param=f"log_param {{ {base} }}")
        x = randn(20)
        torch.testing.assert_close(log.forward(exp.forward(x)), 0.5 * x + 1)

    @pytest.mark.parametrize("type", ["Exp", "Log"])
    @pytest.mark.parametrize("base", ["0", "-2", "inf"])
    def test_bases_that_cannot_be(self, type, base):
        with pytest.raises(NetError, match=rf"base is {base}; give a positive number, or -1 for e"):
            make(type, (1,), param=f"{type.lower()}_param {{ base: {base} }}")

    def test_base_one(self):
        assert make("Exp", (1,), param="exp_param { base: 1 }").forward(torch.tensor([3.0])).item() == 1
        with pytest.raises(NetError, match="to which there are no logarithms"):
            make("Log", (1,), param="log_param { base: 1 }")


def test_threshold_is_strict_and_keeps_the_type():
    layer = make("Threshold", (3,), param="threshold_param { threshold: 0.5 }")
    y = layer.forward(torch.tensor([0.4, 0.5, 0.6], dtype=torch.float64))
    assert y.tolist() == [0, 0, 1]
    assert y.dtype == torch.float64


def test_clip_limits_in_the_wrong_order():
    with pytest.raises(NetError, match=r"clip_param.min is 2, above its max of 1"):
        make("Clip", (1,), param="clip_param { min: 2 max: 1 }")


class TestDropout:
    def make(self, ratio, training=True, seed=0):
        param = f"dropout_param {{ dropout_ratio: {ratio} }}"
        return make("Dropout", (100, 100), param=param, training=training, seed=seed)

    def test_changes_nothing_in_the_test_phase(self):
        x = torch.ones(100, 100)
        assert self.make(0.3, training=False).forward(x) is x

    @pytest.mark.parametrize("ratio", [0.1, 0.5, 0.8])
    def test_drops_its_part_and_scales_the_rest(self, ratio):
        x = randn(100, 100)
        y = self.make(ratio).forward(x)
        kept = y != 0
        assert torch.allclose(y[kept], x[kept] / (1 - ratio), rtol=1e-6)
        # 10000 draws: within 5 standard deviations
        assert abs(kept.double().mean().item() - (1 - ratio)) < 5 * (ratio * (1 - ratio) / 10000) ** 0.5
        (grad,) = gradient(y, x)
        assert torch.allclose(grad, kept.double() / (1 - ratio), rtol=1e-6)

    def test_each_pass_draws_anew_and_a_seed_repeats_them(self):
        x = torch.ones(100, 100)
        first, again, other = (self.make(0.5, seed=seed) for seed in (1, 1, 2))
        passes = [first.forward(x) for _ in range(2)]
        assert not torch.equal(*passes)
        assert all(torch.equal(again.forward(x), expected) for expected in passes)
        assert not torch.equal(other.forward(x), passes[0])

    @pytest.mark.parametrize("ratio", [1, -0.1])
    def test_ratios_that_cannot_be(self, ratio):
        with pytest.raises(NetError, match=f"dropout_ratio is {ratio}; it is the part to drop"):
            self.make(ratio)
