"""Layers that slide windows over images, as torch modules."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers.windows import Window
from .graph import Node
from .targets import limited
from .torch_module import TORCH, Module, given, module, refuse, same, weighted

#: torch's transposed convolutions on the CPU crash the process (2.13) for some strides of more than 13,000.
LARGEST_STRIDE = 4096


@TORCH.add("Convolution")
@limited("kernels of one to three axes")
def convolution(node: Node) -> Module:
    return _kernels(node, {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d})


@TORCH.add("Deconvolution")
@limited("kernels of one to three axes")
def deconvolution(node: Node) -> Module:
    return _kernels(node, {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d})


def _kernels(node: Node, classes: dict[int, type[nn.Module]]) -> Module:
    layer = node.layer
    window: Window = layer.window
    axes = len(window.kernel)
    if axes not in classes:
        raise refuse(node, f"its kernel has {axes} spatial axes, torch's have one to three")
    if node.type == "Deconvolution" and max(window.stride) > LARGEST_STRIDE:
        raise refuse(node, f"torch fails for strides above {LARGEST_STRIDE}, found {max(window.stride)}")
    options = given(stride=(same(window.stride), 1), padding=(same(window.pad), 0), dilation=(same(window.dilation), 1),
                    groups=(node.param.group, 1), bias=(len(node.params) > 1, True))
    made = module(classes[axes], layer.channels, node.param.num_output, same(window.kernel), **options)
    names = ["weight", "bias"]
    if layer.axis != 1:
        made, names = module(OverAxes, layer.axis, made), [f"inner.{name}" for name in names]
    made.each = len(node.inputs) > 1
    return weighted(node, made, *names)


class OverAxes(nn.Module):
    """`inner` over the axes from `axis` (the channels) on; all axes before it count samples."""

    def __init__(self, axis: int, inner: nn.Module) -> None:
        super().__init__()
        self.axis, self.inner = axis, inner

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x.reshape(-1, *x.shape[self.axis:]))
        return y.reshape(x.shape[:self.axis] + y.shape[1:])


@TORCH.add("Im2col")
def im2col(node: Node) -> Module:
    layer, window = node.layer, node.layer.window
    return module(Im2col, layer.axis, window.kernel, window.stride, window.pad, window.dilation)


class Im2col(nn.Module):
    """The windows of a convolution as columns: C channels become C * kernel positions; channels are at `axis`."""

    def __init__(self, axis: int, kernel: tuple[int, ...], stride: tuple[int, ...], pad: tuple[int, ...],
                 dilation: tuple[int, ...]) -> None:
        super().__init__()
        self.axis, self.kernel, self.stride, self.pad, self.dilation = axis, kernel, stride, pad, dilation

    def forward(self, x: Tensor) -> Tensor:
        first, axes = self.axis + 1, len(self.kernel)
        y = F.pad(x, [p for pad in reversed(self.pad) for p in (pad, pad)])
        for axis, (k, s, d) in enumerate(zip(self.kernel, self.stride, self.dilation), first):
            y = y.unfold(axis, d * (k - 1) + 1, s)
        y = y[(..., *(slice(None, None, d) for d in self.dilation))]
        outputs = tuple(y.shape[first:first + axes])
        y = y.permute(*range(first), *range(first + axes, first + 2 * axes), *range(first, first + axes))
        return y.reshape(*x.shape[:self.axis], -1, *outputs)


@TORCH.add("Pooling")
def pooling(node: Node) -> Module:
    layer, p = node.layer, node.param
    window: Window = layer.window
    axes, method = layer.axes, layer.method
    if len(node.outputs) > 1:
        return _pool(node, MaxPoolWithMask, window)
    if p.global_pooling and method != "STOCHASTIC":
        classes = {"MAX": (nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
                   "AVE": (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)}
        return module(classes[method][axes - 1], 1)
    if method == "STOCHASTIC":
        return _pool(node, StochasticPool, window)
    if not _torch_agrees(window):
        return _pool(node, MaxPool if method == "MAX" else AvgPool, window)
    classes = {"MAX": (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d), "AVE": (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)}
    options = given(padding=(same(window.pad), 0), ceil_mode=(not layer.floor, False))
    return module(classes[method][axes - 1], same(window.kernel), same(window.stride), **options)


def _torch_agrees(window: Window) -> bool:
    """Whether torch's pooling lays its windows as Caffe does, whatever the size of the bottom: see `layers.pooling.Pool`."""
    clipped = any(window.pad) or all(s <= k for s, k in zip(window.stride, window.kernel))
    return clipped and all(2 * p <= k for p, k in zip(window.pad, window.kernel))


def _pool(node: Node, cls: type[nn.Module], window: Window) -> Module:
    kernel = None if node.param.global_pooling else window.kernel
    return module(cls, kernel, window.stride, window.pad, *[False] * node.layer.floor)


class Pool(nn.Module):
    """Windows laid as Caffe lays them; `kernel` None is the whole input.

    The output size is rounded up (or down). A last window that starts behind the input and its leading padding is left
    out, but only if there is padding at any axis.
    """

    def __init__(self, kernel: tuple[int, ...] | None, stride: tuple[int, ...], pad: tuple[int, ...],
                 ceil: bool = True) -> None:
        super().__init__()
        self.kernel, self.stride, self.pad, self.ceil = kernel, stride, pad, ceil

    def outputs(self, x: Tensor) -> list[tuple[int, int, int, int, int]]:
        """For each spatial axis: its size, its output size, kernel, stride and padding."""
        found = []
        for n, k, s, p in zip(x.shape[2:], self.kernel or x.shape[2:], self.stride, self.pad):
            span = n + 2 * p - k
            count = (-(-span // s) if self.ceil else span // s) + 1
            if any(self.pad) and (count - 1) * s >= n + p:
                count -= 1
            found.append((n, count, k, s, p))
        return found

    def windows(self, x: Tensor, value: float) -> Tensor:
        """All windows, those of each output position on one last axis; `value` where they reach beyond the input."""
        sizes = self.outputs(x)
        x = F.pad(x, [side for n, count, k, s, p in reversed(sizes) for side in (p, (count - 1) * s + k - n - p)], value=value)
        for axis, (_, _, k, s, _) in enumerate(sizes, 2):
            x = x.unfold(axis, k, s)
        return x.flatten(-len(sizes))


class MaxPool(Pool):
    """The largest value of each window."""

    def forward(self, x: Tensor) -> Tensor:
        return self.windows(x, torch.finfo(x.dtype).min).amax(-1)


class MaxPoolWithMask(Pool):
    """The largest value of each window, of equals the first, and its index in the flattened spatial axes."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, place = self.windows(x, torch.finfo(x.dtype).min).max(-1)
        index, inside, sizes = torch.zeros_like(place), torch.ones_like(place, dtype=torch.bool), self.outputs(x)
        step = place
        steps = []
        for _, _, k, _, _ in reversed(sizes):
            steps.append(step % k)
            step = step // k
        for axis, ((n, count, _, s, p), offset) in enumerate(zip(sizes, reversed(steps))):
            starts = torch.arange(count, device=x.device) * s - p
            at = starts.reshape(-1, *[1] * (len(sizes) - axis - 1)) + offset
            inside &= (at >= 0) & (at < n)
            index = index * n + at
        return y, index.where(inside, -1).to(x.dtype)


class AvgPool(Pool):
    """The mean of each window, which is divided by its size within the padded input."""

    def forward(self, x: Tensor) -> Tensor:
        total = self.windows(x, 0.0).sum(-1)
        for axis, (n, count, k, s, p) in enumerate(self.outputs(x), 2):
            starts = torch.arange(count, device=x.device) * s - p
            size = (starts + k).clamp(max=n + p) - starts
            total = total / size.reshape(-1, *[1] * (x.dim() - axis - 1))
        return total


class StochasticPool(Pool):
    """A value of each window drawn in proportion to the values; in evaluation their mean weighted by themselves."""

    def forward(self, x: Tensor) -> Tensor:
        values = self.windows(x, 0.0)
        if not self.training:
            total = values.sum(-1)
            return torch.where(total > 0, values.square().sum(-1) / total.where(total > 0, 1), 0)
        running = values.detach().cumsum(-1)
        draw = torch.rand_like(running[..., -1]) * running[..., -1]
        chosen = (running >= draw[..., None]).to(torch.uint8).argmax(-1, keepdim=True)
        return values.gather(-1, chosen).squeeze(-1)


@TORCH.add("SPP")
def spp(node: Node) -> Module:
    return module(SPP, node.param.pyramid_height, node.layer.method)


class SPP(nn.Module):
    """Spatial pyramid pooling: level l pools into 2^l x 2^l bins, all bins side by side."""

    def __init__(self, levels: int, method: str) -> None:
        super().__init__()
        self.levels, self.method = levels, method

    def forward(self, x: Tensor) -> Tensor:
        pools = {"MAX": MaxPool, "AVE": AvgPool, "STOCHASTIC": StochasticPool}
        tops = []
        for level in range(self.levels):
            kernel = tuple(-(-n // 2 ** level) for n in x.shape[2:])
            pad = tuple((k * 2 ** level - n + 1) // 2 for k, n in zip(kernel, x.shape[2:]))
            tops.append(pools[self.method](kernel, kernel, pad).train(self.training)(x))
        return tops[0] if len(tops) == 1 else torch.cat([top.flatten(1) for top in tops], 1)


@TORCH.add("Crop")
def crop(node: Node) -> Module:
    return module(Crop, node.layer.axis, node.layer.offsets)


class Crop(nn.Module):
    """Cuts x to the size of the reference in the axes from `axis` on, starting at the offsets."""

    def __init__(self, axis: int, offsets: tuple[int, ...]) -> None:
        super().__init__()
        self.axis, self.offsets = axis, offsets

    def forward(self, x: Tensor, reference: Tensor) -> Tensor:
        for axis, offset in enumerate(self.offsets, self.axis):
            x = x.narrow(axis, offset, reference.shape[axis])
        return x
