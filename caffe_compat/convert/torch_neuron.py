"""Layers that act on every value by itself, as torch modules."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .graph import Node
from .torch_module import TORCH, Module, module, weighted


@TORCH.add("ReLU")
def relu(node: Node) -> Module:
    slope = node.param.negative_slope
    return module(nn.LeakyReLU, slope) if slope else module(nn.ReLU)


@TORCH.add("PReLU")
def prelu(node: Node) -> Module:
    (slope,) = node.params
    made = weighted(node, module(nn.PReLU, *[slope.size] * (slope.size != 1)), "weight")
    made.state["weight"] = slope.reshape(-1)
    made.blobs = lambda state: [state["weight"].reshape(slope.shape)]
    return made


@TORCH.add("ELU")
def elu(node: Node) -> Module:
    return module(nn.ELU, node.param.alpha)


@TORCH.add("Sigmoid")
def sigmoid(node: Node) -> Module:
    return module(nn.Sigmoid)


@TORCH.add("TanH")
def tanh(node: Node) -> Module:
    return module(nn.Tanh)


@TORCH.add("BNLL")
def bnll(node: Node) -> Module:
    return module(nn.Softplus, threshold=50)  # above it the two are one


@TORCH.add("Dropout")
def dropout(node: Node) -> Module:
    return module(nn.Dropout, node.param.dropout_ratio)


@TORCH.add("Softmax")
def softmax(node: Node) -> Module:
    return module(nn.Softmax, node.layer._axis)


@TORCH.add("AbsVal")
def absval(node: Node) -> Module:
    return module(AbsVal)


class AbsVal(nn.Module):
    """y = |x|."""

    def forward(self, x: Tensor) -> Tensor:
        return x.abs()


@TORCH.add("Swish")
def swish(node: Node) -> Module:
    return module(nn.SiLU) if node.param.beta == 1 else module(Swish, node.param.beta)


class Swish(nn.Module):
    """y = x * sigmoid(beta * x)."""

    def __init__(self, beta: float) -> None:
        super().__init__()
        self.beta = beta

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x * self.beta)


@TORCH.add("Power")
def power(node: Node) -> Module:
    p = node.param
    return module(Power, p.power, p.scale, p.shift)


class Power(nn.Module):
    """y = (shift + scale * x) ^ power."""

    def __init__(self, power: float, scale: float, shift: float) -> None:
        super().__init__()
        self.power, self.scale, self.shift = power, scale, shift

    def forward(self, x: Tensor) -> Tensor:
        if self.scale == 0 or self.power == 0:
            return torch.full_like(x, self.shift).pow(self.power)
        y = x * self.scale + self.shift
        return y if self.power == 1 else y.pow(self.power)


@TORCH.add("Exp")
def exponential(node: Node) -> Module:
    p = node.param
    return module(Exp, p.base, p.scale, p.shift)


class Exp(nn.Module):
    """y = base ^ (shift + scale * x), with base e for -1."""

    def __init__(self, base: float, scale: float, shift: float) -> None:
        super().__init__()
        log_base = 1.0 if base == -1 else math.log(base)
        self.scale, self.shift = scale * log_base, shift * log_base

    def forward(self, x: Tensor) -> Tensor:
        return torch.exp(x * self.scale + self.shift)


@TORCH.add("Log")
def logarithm(node: Node) -> Module:
    p = node.param
    return module(Log, p.base, p.scale, p.shift)


class Log(nn.Module):
    """y = logarithm of (shift + scale * x) to `base`, e for -1."""

    def __init__(self, base: float, scale: float, shift: float) -> None:
        super().__init__()
        self.scale, self.shift = scale, shift
        self.outer = 1.0 if base == -1 else 1 / math.log(base)

    def forward(self, x: Tensor) -> Tensor:
        return torch.log(x * self.scale + self.shift) * self.outer


@TORCH.add("Threshold")
def threshold(node: Node) -> Module:
    return module(Threshold, node.param.threshold)


class Threshold(nn.Module):
    """y = 1 where x > threshold, else 0."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold

    def forward(self, x: Tensor) -> Tensor:
        return (x > self.threshold).to(x.dtype)


@TORCH.add("Clip")
def clip(node: Node) -> Module:
    return module(Clip, node.param.min, node.param.max)


class Clip(nn.Module):
    """y = min(max(x, low), high)."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.low, self.high = low, high

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(self.low, self.high)
