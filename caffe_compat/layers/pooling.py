"""Pooling and SPP, by Caffe's rule for the output size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import Layer, Shape, format_shape, layer
from .windows import Window, check_padded, padded, sliding, window_of

#: Caffe's start value of a maximum, -FLT_MAX: what an empty window gives.
LOWEST = torch.finfo(torch.float32).min


@dataclass(frozen=True)
class Pool:
    """How `window` is laid over spatial axes of `sizes`, the output size rounded up or (`floor`) down.

    Caffe rounds up and then drops a last window that starts in or behind the trailing padding, but only if there is
    padding at any axis. torch drops it always, so the two differ where stride > kernel, and torch wants the padding to
    be at most half the kernel: such windows are pooled over an explicitly padded bottom.
    """

    sizes: Shape
    window: Window
    floor: bool

    @cached_property
    def outputs(self) -> Shape:
        """The output sizes; below 1 where the window does not fit."""
        return self._outputs(clip=any(self.window.pad))

    def _outputs(self, clip: bool) -> Shape:
        window, result = self.window, []
        for n, k, s, p in zip(self.sizes, window.kernel, window.stride, window.pad):
            span = n + 2 * p - k
            count = (span // s if self.floor else -(-span // s)) + 1
            result.append(count - 1 if clip and (count - 1) * s >= n + p else count)
        return tuple(result)

    @cached_property
    def torch_agrees(self) -> bool:
        """Whether torch's pooling has the same windows."""
        return self.outputs == self._outputs(clip=True) and all(
            2 * p <= k for p, k in zip(self.window.pad, self.window.kernel))

    @cached_property
    def torch_arguments(self) -> tuple[Shape, Shape, Shape]:
        """(kernel, stride, padding) for torch's pooling functions."""
        return self.window.kernel, self.window.stride, self.window.pad

    @cached_property
    def margins(self) -> tuple[tuple[int, int], ...]:
        """Positions to add (or cut off) before and behind each axis so that the windows exactly cover it."""
        window = self.window
        return tuple((p, (out - 1) * s + k - n - p) for out, n, k, s, p in
                     zip(self.outputs, self.sizes, window.kernel, window.stride, window.pad))

    def divisors(self, like: Tensor) -> Tensor:
        """What AVE divides by: the windows' sizes, padding included, cut off at size + pad; 0 for an empty one."""
        result = like.new_ones(())
        window = self.window
        for out, n, k, s, p in zip(self.outputs, self.sizes, window.kernel, window.stride, window.pad):
            starts = torch.arange(out, device=like.device) * s - p
            result = result[..., None] * ((starts + k).clamp(max=n + p) - starts)
        return result


@lru_cache(maxsize=1024)
def pool_of(sizes: Shape, window: Window, floor: bool) -> Pool:
    """The (shared) Pool of these settings."""
    return Pool(sizes, window, floor)


def max_pool(x: Tensor, pool: Pool, with_mask: bool = False) -> Tensor | tuple[Tensor, Tensor]:
    """The largest value of each window, of equals the first; the mask is its index in the flattened spatial axes.

    An empty window gives -FLT_MAX and the mask -1.
    """
    pooling = {2: F.max_pool2d, 3: F.max_pool3d}[len(pool.sizes)]
    kernel, stride, pad = pool.torch_arguments
    if pool.torch_agrees:
        result = pooling(x, kernel, stride, pad, 1, not pool.floor, with_mask)
        return (result[0], result[1].to(x.dtype)) if with_mask else result
    result = pooling(padded(x, pool.margins, LOWEST), kernel, stride, 0, 1, False, with_mask)
    if not with_mask:
        return result
    y, index = result
    flat = torch.zeros_like(index)
    sizes = [n + sum(margin) for n, margin in zip(pool.sizes, pool.margins)]
    outside = torch.zeros_like(index, dtype=torch.bool)
    for n, (before, _), place in zip(pool.sizes, pool.margins, torch.unravel_index(index, sizes)):
        outside |= (place < before) | (place >= before + n)
        flat = flat * n + place - before
    return y, flat.masked_fill(outside, -1).to(x.dtype)


def average_pool(x: Tensor, pool: Pool) -> Tensor:
    """The mean of each window, as `Pool.divisors` counts it; NaN if it is empty."""
    pooling = {2: F.avg_pool2d, 3: F.avg_pool3d}[len(pool.sizes)]
    kernel, stride, pad = pool.torch_arguments
    if pool.torch_agrees:
        return pooling(x, kernel, stride, pad, not pool.floor)
    sums = pooling(padded(x, pool.margins), kernel, stride, 0, False, True, 1)
    return sums / pool.divisors(x)


def stochastic_pool(x: Tensor, pool: Pool, rng: torch.Generator | None) -> Tensor:
    """One value of each window, drawn in proportion to the values (Zeiler and Fergus 2013), which must not be negative.

    Without `rng`, their mean weighted by themselves. A window of zeros gives 0.
    """
    values = sliding(padded(x, pool.margins), pool.window).flatten(-len(pool.sizes))
    if rng is None:
        total = values.sum(-1)
        return torch.where(total > 0, values.square().sum(-1) / total.where(total > 0, 1), 0)
    running = values.detach().cumsum(-1)
    draw = torch.rand(running.shape[:-1], generator=rng, device=x.device, dtype=x.dtype)
    # Positions added as padding hold 0 and never are the first to reach the threshold.
    chosen = (running >= (draw * running[..., -1])[..., None]).to(torch.uint8).argmax(-1, keepdim=True)
    return values.gather(-1, chosen).squeeze(-1)


class Pooler(Layer):
    """What Pooling and SPP share: pooling by the method that the settings name."""

    def check(self, pool: Pool) -> None:
        """Raises the error of a window that cannot be laid over the bottom."""
        window, method = pool.window, self.method
        if any(window.pad) and method == "STOCHASTIC":
            raise self.error(f"stochastic pooling takes no padding, found {' x '.join(map(str, window.pad))}")
        if any(p >= k for p, k in zip(window.pad, window.kernel)):
            raise self.error(f"the padding {' x '.join(map(str, window.pad))} must be smaller than the kernel "
                             f"{' x '.join(map(str, window.kernel))}")
        if any(size < 1 for size in pool.outputs):
            raise self.error(f"the kernel {' x '.join(map(str, window.kernel))} does not fit into the spatial size "
                             f"{' x '.join(map(str, pool.sizes))} with padding {' x '.join(map(str, window.pad))}")

    @property
    def method(self) -> str:
        """MAX, AVE or STOCHASTIC."""
        return {self.param.MAX: "MAX", self.param.AVE: "AVE", self.param.STOCHASTIC: "STOCHASTIC"}[self.param.pool]

    def pooled(self, x: Tensor, pool: Pool) -> Tensor:
        """`x` of (N, C, spatial...) pooled by the method."""
        if self.param.pool == self.param.MAX:
            return max_pool(x, pool)
        if self.param.pool == self.param.AVE:
            return average_pool(x, pool)
        return stochastic_pool(x, pool, self.context.rng if self.training else None)


@layer("Pooling", param="pooling_param", tops=(1, 2))
class Pooling(Pooler):
    """The largest, mean or a random value of each window (PoolingParameter); a second top is the mask of MAX.

    Output size: (size + 2 pad - kernel) / stride + 1, rounded up (`round_mode` FLOOR: down); see `Pool` for the last
    window. Unlike Caffe, STOCHASTIC also runs on the CPU, and one or three spatial axes are pooled too. An empty window
    (stride > kernel, no padding) gives -FLT_MAX or NaN as in Caffe, but its gradient goes nowhere; Caffe writes it
    outside of the blob.
    """

    def setup(self, shapes: Sequence[Shape]) -> None:
        param, axes = self.param, len(shapes[0]) - 2
        if not 1 <= axes <= 3:
            raise self.error("pooling takes a bottom of N x C and one to three spatial axes (four axes for an image), "
                             f"found {format_shape(shapes[0])}")
        self.axes = axes
        self.floor = bool(getattr(param, "round_mode", 0))
        if len(self.spec.top) > 1 and self.method != "MAX":
            raise self.error(f"a second top is the mask of MAX pooling; {self.method} has none")
        if param.global_pooling:
            given = [name for name in ("kernel_size", "kernel_h", "kernel_w") if param.HasField(name)]
            if given:
                raise self.error(f"global_pooling takes the whole bottom as its kernel, but {given[0]} is given too")
            self.window = window_of(self, axes, pairs=True, kernel=(1,) * axes)
            if any(self.window.pad) or any(s != 1 for s in self.window.stride):
                raise self.error("global_pooling takes no padding and no stride other than 1")
        else:
            self.window = window_of(self, axes, pairs=True)

    def _pool(self, sizes: Shape) -> Pool:
        window = self.window
        if self.param.global_pooling:
            window = Window(sizes, window.stride, window.pad, window.dilation)
        return pool_of(sizes, window, self.floor)

    def reshape(self, shapes: Sequence[Shape]) -> list[Shape]:
        shape = shapes[0]
        if len(shape) != self.axes + 2:
            raise self.error(f"the bottom was set up with {self.axes + 2} axes, now it is {format_shape(shape)}")
        pool = self._pool(shape[2:])
        self.check(pool)
        check_padded(self, shape, pool.margins)
        return [(*shape[:2], *pool.outputs)] * len(self.spec.top)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        pool = self._pool(tuple(x.shape[2:]))
        if self.axes == 1:  # as an image of one column
            pool, x = _with_column(pool), x[..., None]
        tops = max_pool(x, pool, with_mask=True) if len(self.spec.top) > 1 else (self.pooled(x, pool),)
        return tuple(y[..., 0] for y in tops) if self.axes == 1 else tops


def _with_column(pool: Pool) -> Pool:
    window = pool.window
    image = Window((*window.kernel, 1), (*window.stride, 1), (*window.pad, 0), (*window.dilation, 1))
    return pool_of((*pool.sizes, 1), image, pool.floor)


@layer("SPP", param="spp_param")
class SPP(Pooler):
    """Spatial pyramid pooling: 1, 4, 16, ... bins over the whole image, side by side (SPPParameter, He et al. 2014).

    Level l pools with kernel and stride ceil(size / 2^l), padded on both sides by half of what is missing, rounded up.
    Top: N x (C * all bins); with `pyramid_height: 1` it keeps four axes, N x C x 1 x 1.
    """

    def setup(self, shapes: Sequence[Shape]) -> None:
        if len(shapes[0]) != 4:
            raise self.error(f"SPP takes a bottom of four axes, N x C x H x W, found {format_shape(shapes[0])}")
        if self.param.pyramid_height < 1:
            raise self.error(f"pyramid_height is {self.param.pyramid_height}; it must be at least 1")

    def _levels(self, sizes: Shape) -> list[Pool]:
        levels = []
        for level in range(self.param.pyramid_height):
            bins = 2 ** level
            kernel = tuple(-(-n // bins) for n in sizes)
            pad = tuple((k * bins - n + 1) // 2 for k, n in zip(kernel, sizes))
            pool = pool_of(sizes, Window(kernel, kernel, pad, (1, 1)), False)
            self.check(pool)  # of a pyramid that is too high, all levels but the first few fail
            levels.append(pool)
        return levels

    def reshape(self, shapes: Sequence[Shape]) -> list[Shape]:
        num, channels = shapes[0][:2]
        levels = self._levels(tuple(shapes[0][2:]))
        if len(levels) == 1:
            return [(num, channels, *levels[0].outputs)]
        return [(num, channels * sum(prod(pool.outputs) for pool in levels))]

    def forward(self, x: Tensor) -> Tensor:
        tops = [self.pooled(x, pool) for pool in self._levels(tuple(x.shape[2:]))]
        return tops[0] if len(tops) == 1 else torch.cat([y.flatten(1) for y in tops], 1)
