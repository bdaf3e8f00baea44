"""Layers that normalize, scale and shift, as torch modules."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .graph import Node
from .torch_module import TORCH, Module, State, given, module, weighted


@TORCH.add("LRN")
def lrn(node: Node) -> Module:
    p = node.param
    if p.norm_region == p.ACROSS_CHANNELS:
        return module(nn.LocalResponseNorm, p.local_size, p.alpha, p.beta, p.k)
    return module(LRNWithinChannel, p.local_size, p.alpha, p.beta)


class LRNWithinChannel(nn.Module):
    """y = x * (1 + alpha / size^2 * sum of x^2 over the size x size positions around)^-beta."""

    def __init__(self, size: int, alpha: float, beta: float) -> None:
        super().__init__()
        self.size, self.alpha, self.beta = size, alpha, beta

    def forward(self, x: Tensor) -> Tensor:
        mean = F.avg_pool2d(x * x, self.size, 1, self.size // 2)
        return x * (1 + self.alpha * mean).pow(-self.beta)


@TORCH.add("BatchNorm")
def batch_norm(node: Node) -> Module:
    """torch's own where its statistics mean the same, see `BatchNorm`."""
    p, shape = node.param, node.in_shapes[0]
    mean_sum, variance_sum, divisor = node.params
    weight = np.float32(0) if divisor[0] == 0 else np.float32(1) / divisor[0]
    state = {"running_mean": mean_sum * weight, "running_var": variance_sum * weight}
    channels, fraction = len(mean_sum), p.moving_average_fraction
    always = {True: "batch", False: "stored"}[node.layer.by_batch] if p.HasField("use_global_stats") else None
    kinds = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
    if node.layer.training or always == "batch" or len(shape) not in kinds:
        made = module(BatchNorm, channels, p.eps, fraction, *[always] * (always is not None))
        made.state = {**state, "divisor": divisor.reshape(())}
        made.blobs = _sums
        return made
    options = {**given(eps=(p.eps, 1e-5), momentum=(1 - fraction, 0.1)), "affine": False}
    made = module(kinds[len(shape)], channels, **options)
    made.state = {**state, "num_batches_tracked": np.zeros((), np.int64)}
    made.blobs = lambda state: [state["running_mean"], state["running_var"], np.ones(1, np.float32)]
    return made


def _sums(state: State) -> list[np.ndarray]:
    divisor = state["divisor"].reshape(1)
    return [state["running_mean"] * divisor, state["running_var"] * divisor, divisor]


class BatchNorm(nn.Module):
    """y = (x - mean) / sqrt(variance + eps) for each channel, with statistics as Caffe keeps them.

    They are means over all batches, each batch counting `fraction` times as much as the one after it, and `divisor` is
    the sum of those counts: torch's momentum would be 1 / divisor, and becomes 1 - fraction. `always` uses those of the
    "batch", or the "stored" ones, in both modes.
    """

    def __init__(self, channels: int, eps: float, fraction: float, always: str | None = None) -> None:
        super().__init__()
        self.eps, self.fraction, self.always = eps, fraction, always
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.zeros(channels))
        self.register_buffer("divisor", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training if self.always is None else self.always == "batch"):
            return F.batch_norm(x, self.running_mean, self.running_var, eps=self.eps)
        mean, variance = torch.zeros_like(self.running_mean), torch.zeros_like(self.running_var)
        if x.numel() == mean.numel():  # a single value a channel: its variance is 0
            mean = x.detach().flatten()
            y = F.batch_norm(x - x, torch.zeros_like(mean), variance, eps=self.eps)
        else:
            y = F.batch_norm(x, mean, variance, training=True, momentum=1.0, eps=self.eps)
        with torch.no_grad():
            self.divisor.mul_(self.fraction).add_(1)
            self.running_mean.lerp_(mean, 1 / self.divisor)
            self.running_var.lerp_(variance, 1 / self.divisor)
        return y


@TORCH.add("MVN")
def mvn(node: Node) -> Module:
    p = node.param
    return module(MVN, p.across_channels, p.normalize_variance, p.eps)


class MVN(nn.Module):
    """(x - mean) / (standard deviation + eps) of each channel of each sample, or of each sample."""

    def __init__(self, across_channels: bool, normalize_variance: bool, eps: float) -> None:
        super().__init__()
        self.axes = (1, 2, 3) if across_channels else (2, 3)
        self.normalize_variance, self.eps = normalize_variance, eps

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(x.shape + (1,) * (4 - x.dim()))
        x = x - x.mean(self.axes, keepdim=True)
        if not self.normalize_variance:
            return x
        with torch.no_grad():
            deviation = x.square().mean(self.axes, keepdim=True).sqrt()
            y = x / (deviation + self.eps)
        along = (x * y).mean(self.axes, keepdim=True)  # for Caffe's gradient, which is 0 where nothing varies
        return x / (deviation + (along - along.detach()) + self.eps)


@TORCH.add("Scale")
def scale(node: Node) -> Module:
    p, shape = node.param, node.in_shapes[0]
    axis = p.axis % len(shape)
    if len(node.inputs) > 1:
        made = module(ScaleBy, axis, *[node.in_shapes[1]] * bool(node.params))
        return weighted(node, made, "bias")
    operand = node.params[0].shape
    made = module(Scale, operand, _trailing(shape, axis, operand), *[False] * (len(node.params) < 2))
    return weighted(node, made, "weight", "bias")


def _trailing(shape: tuple[int, ...], axis: int, operand: tuple[int, ...]) -> int:
    """How many axes follow those that the operand has."""
    return len(shape) - axis - len(operand) if operand else 0


class Scale(nn.Module):
    """y = weight * x + bias, the weight's axes followed by `trailing` others."""

    def __init__(self, shape: tuple[int, ...], trailing: int, bias: bool = True) -> None:
        super().__init__()
        self.trailing = (1,) * trailing
        self.weight = nn.Parameter(torch.ones(shape))
        self.bias = nn.Parameter(torch.zeros(shape)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        y = x * self.weight.reshape(self.weight.shape + self.trailing)
        return y if self.bias is None else y + self.bias.reshape(self.bias.shape + self.trailing)


class ScaleBy(nn.Module):
    """y = s * x (+ bias), s being the second input, whose axes lie from `axis` on."""

    def __init__(self, axis: int, bias: tuple[int, ...] | None = None) -> None:
        super().__init__()
        self.axis = axis
        self.bias = None if bias is None else nn.Parameter(torch.zeros(bias))

    def forward(self, x: Tensor, s: Tensor) -> Tensor:
        shape = s.shape + (1,) * (x.dim() - self.axis - s.dim()) if s.dim() else ()
        y = x * s.reshape(shape)
        return y if self.bias is None else y + self.bias.reshape(shape)


@TORCH.add("Bias")
def bias(node: Node) -> Module:
    shape = node.in_shapes[0]
    axis = node.param.axis % len(shape)
    if len(node.inputs) > 1:
        return module(BiasBy, axis)
    operand = node.params[0].shape
    return weighted(node, module(Bias, operand, _trailing(shape, axis, operand)), "bias")


class Bias(nn.Module):
    """y = x + bias, the bias's axes followed by `trailing` others."""

    def __init__(self, shape: tuple[int, ...], trailing: int) -> None:
        super().__init__()
        self.trailing = (1,) * trailing
        self.bias = nn.Parameter(torch.zeros(shape))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias.reshape(self.bias.shape + self.trailing)


class BiasBy(nn.Module):
    """y = x + b, b being the second input, whose axes lie from `axis` on."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, x: Tensor, b: Tensor) -> Tensor:
        return x + b.reshape(b.shape + (1,) * (x.dim() - self.axis - b.dim()) if b.dim() else ())


@TORCH.add("Normalize")
def normalize(node: Node) -> Module:
    p = node.param
    (weight,) = node.params
    made = module(Normalize, weight.size, p.across_spatial, p.eps)
    made.state = {"weight": weight.reshape(-1)}
    made.blobs = lambda state: [state["weight"].reshape(weight.shape)]
    return made


class Normalize(nn.Module):
    """y = weight * x / sqrt(eps + sum of x^2), the sum over the channels, or over all of an image."""

    def __init__(self, channels: int, across_spatial: bool, eps: float) -> None:
        super().__init__()
        self.across_spatial, self.eps = across_spatial, eps
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        axes = tuple(range(1, x.dim())) if self.across_spatial else 1
        factor = (x.square().sum(axes, keepdim=True) + self.eps).rsqrt()
        return x * (factor * self.weight.reshape(-1, *[1] * (x.dim() - 2)))


@TORCH.add("Parameter")
def parameter(node: Node) -> Module:
    return weighted(node, module(Parameter, node.params[0].shape), "value")


class Parameter(nn.Module):
    """A learned tensor of its own."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(shape))

    def forward(self) -> Tensor:
        return self.value
