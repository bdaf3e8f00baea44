"""Layers that act on every value by itself: activations, powers, thresholds, dropout.

Where a recorded case in place is marked as a defect of Caffe (its backward pass reads the output in place of the
input: BNLL_inplace, Clip_inplace, Log_inplace, Power_scale_shift_inplace, Power_power2_inplace and
ReLU_negative_negative_slope_inplace), the gradients here are those of the layer that is not in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import Layer, Shape, format_shape, layer, may_overwrite


@layer("ReLU", param="relu_param")
class ReLU(Layer):
    """y = max(x, 0) + negative_slope * min(x, 0); the gradient at 0 is `negative_slope` (ReLUParameter)."""

    overwrites = False  # whether it may write into its bottom, which the net decides (`economy`)

    def setup(self, shapes: Sequence[Shape]) -> None:
        self._slope = self.param.negative_slope

    def forward(self, x: Tensor) -> Tensor:
        if self._slope:
            return F.leaky_relu(x, self._slope)
        return torch.relu_(x) if self.overwrites and may_overwrite(x) else torch.relu(x)


@layer("PReLU", param="prelu_param")
class PReLU(Layer):
    """y = max(x, 0) + a * min(x, 0) with a learned slope a for each channel (PReLUParameter; He et al. 2015).

    Blob: a, of shape (channels), or () with `channel_shared`; 0.25 at first without a `filler`.
    """

    def setup(self, shapes: Sequence[Shape]) -> None:
        if len(shapes[0]) < 2:
            raise self.error(f"the bottom needs at least 2 axes, found {format_shape(shapes[0])}")
        blob = self.add_param(() if self.param.channel_shared else shapes[0][1:2],
                              self.param.filler if self.param.HasField("filler") else None)
        if not self.param.HasField("filler"):
            blob.tensor.fill_(0.25)

    def reshape(self, shapes: Sequence[Shape]) -> list[Shape]:
        if not self.param.channel_shared and self.blobs[0].shape != shapes[0][1:2]:
            raise self.error(f"there are {self.blobs[0].count} slopes, but the bottom is {format_shape(shapes[0])}")
        return [shapes[0]]

    def forward(self, x: Tensor) -> Tensor:
        return F.prelu(x, self.blobs[0].tensor)


@layer("ELU", param="elu_param")
class ELU(Layer):
    """y = x above 0, alpha * (exp(x) - 1) else (ELUParameter; Clevert et al. 2015)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.elu(x, self.param.alpha)


@layer("Sigmoid")
class Sigmoid(Layer):
    """y = 1 / (1 + exp(-x))."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x)


@layer("TanH")
class TanH(Layer):
    """y = tanh(x)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x)


@layer("AbsVal")
class AbsVal(Layer):
    """y = |x|; the gradient at 0 is 0."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.abs(x)


@layer("BNLL")
class BNLL(Layer):
    """y = log(1 + exp(x)), the binomial normal log likelihood."""

    def forward(self, x: Tensor) -> Tensor:
        return F.softplus(x, threshold=50)  # above it the two are one, even in float64


@layer("Swish", param="swish_param")
class Swish(Layer):
    """y = x * sigmoid(beta * x) (SwishParameter; Ramachandran et al. 2017)."""

    def setup(self, shapes: Sequence[Shape]) -> None:
        self._beta = self.param.beta

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x) if self._beta == 1 else x * torch.sigmoid(x * self._beta)


@layer("Power", param="power_param")
class Power(Layer):
    """y = (shift + scale * x) ^ power (PowerParameter).

    The gradient is power * scale * (shift + scale * x) ^ (power - 1) everywhere. Caffe's is the same except at the
    zeros of shift + scale * x, where it divides 0 by 0 and gives NaN (for powers other than 0, 1 and 2).
    """

    def setup(self, shapes: Sequence[Shape]) -> None:
        p = self.param
        self._power, self._scale, self._shift = p.power, p.scale, p.shift
        self._constant: float | None = None
        if self._scale == 0 or self._power == 0:
            self._constant = torch.tensor(self._shift).pow(self._power).item()

    def forward(self, x: Tensor) -> Tensor:
        if self._constant is not None:
            return torch.full_like(x, self._constant)
        x = _affine(x, self._scale, self._shift)
        return x if self._power == 1 else x.pow(self._power)


@layer("Exp", param="exp_param")
class Exp(Layer):
    """y = base ^ (shift + scale * x), with base e for base -1 (ExpParameter)."""

    def setup(self, shapes: Sequence[Shape]) -> None:
        log_base = _log_base(self)
        self._scale, self._shift = self.param.scale * log_base, self.param.shift * log_base

    def forward(self, x: Tensor) -> Tensor:
        return torch.exp(_affine(x, self._scale, self._shift))


@layer("Log", param="log_param")
class Log(Layer):
    """y = logarithm of (shift + scale * x) to `base`, e for base -1 (LogParameter)."""

    def setup(self, shapes: Sequence[Shape]) -> None:
        log_base = _log_base(self)
        if log_base == 0:
            raise self.error("log_param.base is 1, to which there are no logarithms; give another, or -1 for e")
        self._scale, self._shift, self._outer = self.param.scale, self.param.shift, 1 / log_base

    def forward(self, x: Tensor) -> Tensor:
        y = torch.log(_affine(x, self._scale, self._shift))
        return y if self._outer == 1 else y * self._outer


def _affine(x: Tensor, scale: float, shift: float) -> Tensor:
    if scale != 1:
        x = x * scale
    return x if shift == 0 else x + shift


def _log_base(self: Layer) -> float:
    """The natural logarithm of the `base` of an Exp or Log layer."""
    base = self.param.base
    if base != -1 and not 0 < base < float("inf"):
        raise self.error(f"base is {base:g}; give a positive number, or -1 for e")
    return 1.0 if base == -1 else log(base)


@layer("Threshold", param="threshold_param", undifferentiable=(0,))
class Threshold(Layer):
    """y = 1 where x > threshold, else 0; it has no gradient (ThresholdParameter)."""

    def forward(self, x: Tensor) -> Tensor:
        return (x > self.param.threshold).to(x.dtype)


@layer("Clip", param="clip_param")
class Clip(Layer):
    """y = min(max(x, min), max); the gradient passes from min to max inclusive (ClipParameter)."""

    def setup(self, shapes: Sequence[Shape]) -> None:
        self._min, self._max = self.param.min, self.param.max
        if self._min > self._max:
            raise self.error(f"clip_param.min is {self._min:g}, above its max of {self._max:g}")

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(self._min, self._max)


@layer("Dropout", param="dropout_param")
class Dropout(Layer):
    """In TRAIN, 0 with probability `dropout_ratio`, else x / (1 - dropout_ratio); in TEST, x (DropoutParameter)."""

    def setup(self, shapes: Sequence[Shape]) -> None:
        ratio = self.param.dropout_ratio
        if not 0 <= ratio < 1:
            raise self.error(f"dropout_ratio is {ratio:g}; it is the part to drop, from 0 to below 1")
        self._keep = 1 - ratio

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self._keep == 1:
            return x
        mask = torch.empty_like(x).bernoulli_(self._keep, generator=self.context.rng)
        return x * mask.mul_(1 / self._keep)
