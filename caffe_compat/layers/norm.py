"""Layers that normalize, scale and shift: LRN, BatchNorm, MVN, Scale and Bias."""

from __future__ import annotations

from collections.abc import Sequence
from math import nan

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .base import Layer, Shape, format_shape, layer

#: Stands for an eps of 0, which torch does not always take: lost in rounding beside any float32 variance but 0.
NO_EPS = torch.finfo(torch.float32).tiny


@layer("LRN", param="lrn_param")
class LRN(Layer):
    """y = x * scale^-beta, scale growing with the squares around x (LRNParameter; Krizhevsky et al. 2012, 3.3).

    ACROSS_CHANNELS: scale = k + alpha / n * sum over n = local_size channels. WITHIN_CHANNEL: over the n^2 positions
    around x in its channel, divided by n^2, and with 1 in place of k. Beyond the borders the sum counts zeros.
    """

    def setup(self, shapes: Sequence[Shape]) -> None:
        if self.param.local_size % 2 != 1:
            raise self.error(f"local_size is {self.param.local_size}; it must be odd")

    def reshape(self, shapes: Sequence[Shape]) -> list[Shape]:
        if len(shapes[0]) != 4:
            raise self.error(f"LRN takes a bottom of four axes, N x C x H x W, found {format_shape(shapes[0])}")
        return [shapes[0]]

    def forward(self, x: Tensor) -> Tensor:
        param, size = self.param, self.param.local_size
        if param.norm_region == param.ACROSS_CHANNELS:
            return LocalResponse.apply(x, (1,), size, param.alpha / size, param.beta, param.k)
        return LocalResponse.apply(x, (2, 3), size, param.alpha / size ** 2, param.beta, 1.0)


class LocalResponse(torch.autograd.Function):
    """y = x * (k + a * box(x^2))^-beta, box being the sum over `size` neighbours along each of `axes`.

    Written out, with its gradient, because LRN is limited by memory traffic: a fifth of the time of torch's own.
    """

    @staticmethod
    def forward(ctx, x: Tensor, axes: tuple[int, ...], size: int, a: float, beta: float, k: float) -> Tensor:
        scale = _box(x * x, axes, size).mul_(a).add_(k)
        factor = _negative_power(scale, beta)
        if not ctx.needs_input_grad[0]:
            return factor.mul_(x)
        ctx.save_for_backward(x, scale, factor)
        ctx.settings = axes, size, -2 * a * beta
        return x * factor

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, factor = ctx.saved_tensors
        axes, size, coefficient = ctx.settings
        direct = grad * factor
        ratio = (direct * x).div_(scale)
        return direct.addcmul_(x, _box(ratio, axes, size), value=coefficient), None, None, None, None, None


def _box(x: Tensor, axes: tuple[int, ...], size: int) -> Tensor:
    """The sum over `size` neighbours (odd, zeros beyond the borders) along each of `axes`."""
    for axis in axes:
        total, length = x.clone(), x.shape[axis]
        for shift in range(1, min(size // 2, length - 1) + 1):
            rest = length - shift
            total.narrow(axis, shift, rest).add_(x.narrow(axis, 0, rest))
            total.narrow(axis, 0, rest).add_(x.narrow(axis, shift, rest))
        x = total
    return x


def _negative_power(base: Tensor, exponent: float) -> Tensor:
    """base^-exponent; 0.75, everybody's beta, from two square roots, which are faster."""
    if exponent != 0.75:
        return base.pow(-exponent)
    root = base.rsqrt()
    return root.mul_(root.sqrt())


@layer("BatchNorm", param="batch_norm_param")
class BatchNorm(Layer):
    """y = (x - mean) / sqrt(variance + eps) for each channel, axis 1 (BatchNormParameter; Ioffe and Szegedy 2015).

    In the TRAIN phase (or with `use_global_stats: false`) by the statistics of the batch, and every forward pass adds
    them to the blobs, which are sums, not means: mean, variance (with m / (m - 1) for m values) and their common
    divisor, each multiplied by `moving_average_fraction` first. Otherwise by the blobs; a divisor of 0 counts as
    infinite, so a fresh layer gives x / sqrt(eps). There is no learned scale and shift: that is a Scale layer, whose
    work this layer can take over (`fuse`).
    """

    learns = False
    overwritable = True
    scale: Scale | None = None

    def setup(self, shapes: Sequence[Shape]) -> None:
        if len(shapes[0]) < 2:
            raise self.error(f"BatchNorm takes a bottom of at least two axes, N x C, found {format_shape(shapes[0])}")
        if not self.param.eps >= 0:
            raise self.error(f"eps is {self.param.eps:g}; expected 0 or more")
        self.channels = shapes[0][1]
        for shape in ((self.channels,), (self.channels,), (1,)):
            self.add_param(shape)
        specs = self.spec.param
        for index, spec in enumerate(specs):
            if spec.lr_mult != 0:
                raise self.error(f"param {index} has lr_mult {spec.lr_mult:g}; the blobs of BatchNorm are statistics, "
                                 "not learned: set lr_mult: 0 (it is 1 by default) or leave out the param")
        while len(specs) < 3:
            specs.add(lr_mult=0)

    def reshape(self, shapes: Sequence[Shape]) -> list[Shape]:
        if len(shapes[0]) < 2 or shapes[0][1] != self.channels:
            raise self.error(f"the statistics are of {self.channels} channels, the bottom is {format_shape(shapes[0])}")
        return [shapes[0]]

    def forward(self, x: Tensor) -> Tensor:
        mean_sum, variance_sum, divisor = (blob.tensor for blob in self.blobs)
        scale, shift = self.scale.learned if self.scale else (None, None)
        eps = max(self.param.eps, NO_EPS)
        if not self.by_batch:
            mean, variance = self._statistics(mean_sum, variance_sum, divisor)
            return F.batch_norm(x, mean, variance, scale, shift, False, 0.0, eps)
        mean, variance = torch.zeros_like(mean_sum), torch.zeros_like(variance_sum)
        if x.numel() == self.channels:  # m = 1: torch has no variance for it, Caffe's is 0
            mean = x.detach().flatten()
            y = F.batch_norm(x - x, torch.zeros_like(mean), variance, scale, shift, False, 0.0, eps)
        else:  # with a momentum of 1, torch's running statistics are just those of this batch
            y = F.batch_norm(x, mean, variance, scale, shift, True, 1.0, eps)
        fraction = self.param.moving_average_fraction
        with torch.no_grad():
            mean_sum.mul_(fraction).add_(mean)
            variance_sum.mul_(fraction).add_(variance)
            divisor.mul_(fraction).add_(1)
        return y

    @property
    def by_batch(self) -> bool:
        """Whether it normalizes by the statistics of the batch, and not by its blobs."""
        return not self.param.use_global_stats if self.param.HasField("use_global_stats") else self.training

    @staticmethod
    @torch.no_grad()
    def _statistics(mean_sum: Tensor, variance_sum: Tensor, divisor: Tensor) -> tuple[Tensor, Tensor]:
        """The mean and variance that the blobs hold; as they are where the divisor is 1, as in most published models, if
        to know that costs no wait for a device."""
        if divisor.device.type == "cpu" and divisor.item() == 1:
            return mean_sum, variance_sum
        weight = divisor.reciprocal().nan_to_num_(nan=nan, posinf=0.0)
        return mean_sum * weight, variance_sum * weight

    def fuse(self, scale: Scale | None) -> bool:
        """From now on does the work of the Scale layer that follows, which passes on what it gets; None ends that.

        torch normalizes and scales at once for the price of normalizing. Nothing is seen of it if the two run one after
        the other and nobody else reads the blob between them. Returns whether `scale` is one that can be taken over.
        """
        if scale is not None and not scale.per_channel:
            return False
        if self.scale is not None:
            self.scale.fused = False
        self.scale = scale
        if scale is not None:
            scale.fused = True
        return True


@layer("MVN", param="mvn_param")
class MVN(Layer):
    """(x - mean) / (standard deviation + eps) of each channel of each sample (MVNParameter).

    With `across_channels` of each sample, without `normalize_variance` only x - mean. The top always has four axes.
    Caffe's gradient is followed, which takes eps for 0 except in the last division (cases MVN_eps, MVN_across_eps).
    """

    def reshape(self, shapes: Sequence[Shape]) -> list[Shape]:
        if not 1 <= len(shapes[0]) <= 4:
            raise self.error(f"MVN takes a bottom of one to four axes, found {format_shape(shapes[0])}")
        return [(*shapes[0], 1, 1, 1)[:4]]

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(self.reshape([tuple(x.shape)])[0])
        axes = (1, 2, 3) if self.param.across_channels else (2, 3)
        if self.param.normalize_variance:
            return MeanVariance.apply(x, axes, self.param.eps)
        return x - x.mean(axes, keepdim=True)


class MeanVariance(torch.autograd.Function):
    """y = (x - mean) / (deviation + eps) over `axes`.

    The gradient is (g - mean(g) - y * mean(g * y)) / (deviation + eps).
    """

    @staticmethod
    def forward(ctx, x: Tensor, axes: tuple[int, ...], eps: float) -> Tensor:
        centred = x - x.mean(axes, keepdim=True)
        divisor = centred.square().mean(axes, keepdim=True).sqrt_().add_(eps)
        y = centred.div_(divisor)
        ctx.save_for_backward(y, divisor)
        ctx.axes = axes
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        y, divisor = ctx.saved_tensors
        along = (grad * y).mean(ctx.axes, keepdim=True)
        centred = grad - grad.mean(ctx.axes, keepdim=True)
        return centred.addcmul_(y, along, value=-1).div_(divisor), None, None


class Broadcast(Layer):
    """What Scale and Bias share: an operand, bottom 1 or a learned blob, for the axes of x from `axis` on."""

    def operand_shape(self, shape: Shape) -> Shape:
        """The shape of the learned operand: `num_axes` axes of the bottom from `axis` on, -1 for all that follow."""
        axis, count = self.canonical_axis(self.param.axis, shape), self.param.num_axes
        if count < -1 or axis + count > len(shape):
            raise self.error(f"num_axes is {count} from axis {axis} on, but the bottom is {format_shape(shape)}; give "
                             "-1 for all axes that follow, or as many as there are")
        return shape[axis:] if count == -1 else shape[axis:axis + count]

    def aligned(self, shape: Shape, operand: Shape) -> Shape:
        """The operand's shape with ones appended, so that it broadcasts over a bottom of `shape`."""
        if not operand:
            return ()
        axis = self.canonical_axis(self.param.axis, shape)
        if shape[axis:axis + len(operand)] != tuple(operand):
            raise self.error(f"the {self.type.lower()} is {format_shape(operand)} and applies from axis {axis} on, but "
                             f"the bottom there is {format_shape(shape[axis:axis + len(operand)])}")
        return (*operand, *[1] * (len(shape) - axis - len(operand)))

    def reshape(self, shapes: Sequence[Shape]) -> list[Shape]:
        operand = shapes[1] if len(shapes) > 1 else self.blobs[0].shape
        self.operand_view = self.aligned(shapes[0], operand)
        return [shapes[0]]


@layer("Bias", param="bias_param", bottoms=(1, 2))
class Bias(Broadcast):
    """y = x + b, b broadcast from `axis` on: bottom 1, or a learned blob of `num_axes` axes (BiasParameter)."""

    def setup(self, shapes: Sequence[Shape]) -> None:
        if len(shapes) == 1:
            self.add_param(self.operand_shape(shapes[0]), self.param.filler)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        bias = self.blobs[0].tensor if bias is None else bias
        return x + bias.reshape(self.operand_view)


@layer("Scale", param="scale_param", bottoms=(1, 2))
class Scale(Broadcast):
    """y = s * x (+ b), s broadcast from `axis` on: bottom 1, or a learned blob of `num_axes` axes (ScaleParameter).

    Blobs: s, unless it is a bottom, then b with `bias_term`, shaped as s. The default of s is 1, but a `filler {}`
    without a type fills it with 0, as in Caffe.
    """

    overwritable = True
    fused = False  # whether the BatchNorm layer before this one does the work

    def setup(self, shapes: Sequence[Shape]) -> None:
        learned = len(shapes) == 1
        shape = self.operand_shape(shapes[0]) if learned else shapes[1]
        if learned:
            scale = self.add_param(shape, self.param.filler)
            if not self.param.HasField("filler"):
                scale.tensor.fill_(1)
        if self.param.bias_term:
            self.add_param(shape, self.param.bias_filler)
        self.per_channel = learned and shape == shapes[0][1:2] and self.canonical_axis(self.param.axis, shapes[0]) == 1

    @property
    def learned(self) -> tuple[Tensor, Tensor | None]:
        """The learned scale and, with `bias_term`, shift."""
        return self.blobs[0].tensor, self.blobs[1].tensor if self.param.bias_term else None

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        if self.fused:
            return x
        if scale is None:
            scale, bias = self.learned
        else:
            bias = self.blobs[0].tensor if self.param.bias_term else None
        if self.per_channel:
            # a batch normalization by mean 0 and variance 1 is torch's fastest scale and shift, above all backward
            return F.batch_norm(x, torch.zeros_like(scale), torch.ones_like(scale), scale, bias, False, 0.0, NO_EPS)
        scale = scale.reshape(self.operand_view)
        return x * scale if bias is None else torch.addcmul(bias.reshape(self.operand_view), x, scale)
