"""Layers that work on images: Convolution, Deconvolution, Im2col and Crop (Pooling and SPP are in `pooling`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import prod

import torch.nn.functional as F
from torch import Tensor

from .base import Layer, Shape, format_shape, layer
from .image_products import convolve_images
from .windows import Window, channels_last, check_padded, columns, convolve, convolve_transposed, window_of

#: torch's transposed convolutions on the CPU crash the process (2.13) for some strides of more than 13,000.
_TORCH_STRIDE = 4096


class SlidingKernels(Layer):
    """What Convolution and Deconvolution share: learned kernels that slide over the axes after `axis` (channels).

    The axes before `axis` count independent samples. Blobs: the kernels, and with `bias_term` a bias of (num_output).
    """

    overwritable = True

    def setup(self, shapes: Sequence[Shape]) -> None:
        shape, param = shapes[0], self.param
        self.axis = self.canonical_axis(param.axis, shape)
        self.channels = shape[self.axis]
        self.window = window_of(self, len(shape) - self.axis - 1)
        for name, count in (("num_output", param.num_output), ("channels of the bottom", self.channels)):
            if count < 1 or param.group < 1 or count % param.group:
                raise self.error(f"{name}: {count}, group: {param.group}; both must be at least 1, and the first a "
                                 "multiple of the second")
        kernels = self.add_param((*self.kernel_channels(), *self.window.kernel), param.weight_filler)
        kernels.tensor = channels_last(kernels.tensor)
        if param.bias_term:
            self.add_param((param.num_output,), param.bias_filler)
        self.overwritable = not self.context.caffe_arithmetic  # torch lets nobody write into a view that a Function made
        self._slide = self._operation()

    def reshape(self, shapes: Sequence[Shape]) -> list[Shape]:
        shape = shapes[0]
        if any(other != shape for other in shapes):
            raise self.error(f"all bottoms must have one shape, found {', '.join(map(format_shape, shapes))}")
        if len(shape) != self.axis + 1 + len(self.window.kernel) or shape[self.axis] != self.channels:
            raise self.error(f"the kernels were made for {self.channels} channels at axis {self.axis} and "
                             f"{len(self.window.kernel)} spatial axes, but the bottom is {format_shape(shape)}")
        spatial = self.output_sizes(shape[self.axis + 1:])
        if any(size < 1 for size in spatial):
            raise self.error(f"the kernel does not fit: bottom {format_shape(shape)}, {self.window}, which would give "
                             f"the spatial size {' x '.join(map(str, spatial))}")
        check_padded(self, shape, [(p, p) for p in self.window.pad])
        return [(*shape[:self.axis], self.param.num_output, *spatial)] * len(shapes)

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        weight = self.blobs[0].tensor
        bias = self.blobs[1].tensor if self.param.bias_term else None
        if self.axis == 1:
            return tuple(self._slide(x, weight, bias) for x in bottoms)
        samples = [x.reshape(-1, *x.shape[self.axis:]) for x in bottoms]
        tops = [self._slide(x, weight, bias) for x in samples]
        return tuple(y.reshape(*x.shape[:self.axis], *y.shape[1:]) for x, y in zip(bottoms, tops))

    def kernel_channels(self) -> tuple[int, int]:
        """The first two axes of the kernels."""
        raise NotImplementedError

    def output_sizes(self, sizes: Shape) -> Shape:
        """The spatial sizes of a top."""
        raise NotImplementedError

    def _operation(self) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
        """(x, weight, bias) -> y for x of (N, C, spatial...)."""
        raise NotImplementedError


@layer("Convolution", param="convolution_param", bottoms=(1, None), tops="bottoms")
class Convolution(SlidingKernels):
    """y = sum of w * x over each window, + b: cross-correlation with learned kernels (ConvolutionParameter).

    Kernels (num_output, channels / group, kernel...). Output size: (size + 2 pad - extent) / stride + 1, rounded down.
    `engine` and `force_nd_im2col` choose among implementations in Caffe and change nothing here.
    """

    def kernel_channels(self) -> tuple[int, int]:
        return self.param.num_output, self.channels // self.param.group

    def output_sizes(self, sizes: Shape) -> Shape:
        return correlated_sizes(sizes, self.window)

    def _operation(self) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
        window, group = self.window, self.param.group
        if self.context.caffe_arithmetic and len(window.kernel) == 2:
            return partial(convolve_images, window=window, group=group)
        kernels = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}.get(len(window.kernel))
        if kernels is None:
            return partial(convolve, window=window, group=group)
        return partial(kernels, stride=window.stride, padding=window.pad, dilation=window.dilation, groups=group)


@layer("Deconvolution", param="convolution_param", bottoms=(1, None), tops="bottoms")
class Deconvolution(SlidingKernels):
    """The transpose of a Convolution, with a bias: spreads each value by the kernel (ConvolutionParameter).

    Kernels (channels, num_output / group, kernel...). Output size: stride (size - 1) + extent - 2 pad.
    """

    def kernel_channels(self) -> tuple[int, int]:
        return self.channels, self.param.num_output // self.param.group

    def output_sizes(self, sizes: Shape) -> Shape:
        window = self.window
        return tuple(s * (n - 1) + e - 2 * p for n, s, e, p in zip(sizes, window.stride, window.extent, window.pad))

    def _operation(self) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
        window, group = self.window, self.param.group
        kernels = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}.get(len(window.kernel))
        if kernels is None or max(window.stride) > _TORCH_STRIDE:
            return partial(convolve_transposed, window=window, group=group)
        return partial(kernels, stride=window.stride, padding=window.pad, dilation=window.dilation, groups=group)


def correlated_sizes(sizes: Shape, window: Window) -> Shape:
    """The number of positions of `window` along axes of `sizes`; below 1 where it does not fit."""
    return tuple((n + 2 * p - e) // s + 1 for n, p, e, s in zip(sizes, window.pad, window.extent, window.stride))


@layer("Im2col", param="convolution_param")
class Im2col(Layer):
    """The windows of a Convolution as columns: channels C become C * kernel positions (ConvolutionParameter)."""

    def setup(self, shapes: Sequence[Shape]) -> None:
        self.axis = self.canonical_axis(self.param.axis, shapes[0])
        axes = len(shapes[0]) - self.axis - 1
        if axes < 1:
            raise self.error(f"axis is {self.axis}, which leaves no spatial axes: bottom {format_shape(shapes[0])}")
        self.window = window_of(self, axes)

    def reshape(self, shapes: Sequence[Shape]) -> list[Shape]:
        shape = shapes[0]
        spatial = correlated_sizes(shape[self.axis + 1:], self.window)
        if any(size < 1 for size in spatial):
            raise self.error(f"the window does not fit: bottom {format_shape(shape)}, {self.window}")
        check_padded(self, shape, [(p, p) for p in self.window.pad])
        return [(*shape[:self.axis], shape[self.axis] * prod(self.window.kernel), *spatial)]

    def forward(self, x: Tensor) -> Tensor:
        y = columns(x.reshape(-1, *x.shape[self.axis:]), self.window)
        return y.reshape(*x.shape[:self.axis], *y.shape[1:])


@layer("Crop", param="crop_param", bottoms=2, undifferentiable=(1,))
class Crop(Layer):
    """Cuts bottom 0 to the size of bottom 1 in the axes from `axis` on, starting at `offset` (CropParameter)."""

    def setup(self, shapes: Sequence[Shape]) -> None:
        axis, offsets = self.canonical_axis(self.param.axis, shapes[0]), self.param.offset
        axes = len(shapes[0]) - axis
        if len(offsets) not in (0, 1, axes):
            raise self.error(f"offset is given {len(offsets)} times; give it once, or once for each of the {axes} axes "
                             f"from axis {axis} on")
        self.axis = axis
        self.offsets = (tuple(offsets) or (0,)) * (1 if len(offsets) > 1 else axes)

    def reshape(self, shapes: Sequence[Shape]) -> list[Shape]:
        shape, wanted = shapes
        if len(wanted) < len(shape):
            raise self.error(f"the reference has fewer axes than the bottom: {format_shape(wanted)} against "
                             f"{format_shape(shape)}")
        for axis, offset in enumerate(self.offsets, self.axis):
            if offset + wanted[axis] > shape[axis]:
                raise self.error(f"axis {axis} of the bottom has {shape[axis]} positions, too few for offset {offset} "
                                 f"and the {wanted[axis]} of the reference")
        return [(*shape[:self.axis], *wanted[self.axis:len(shape)])]

    def forward(self, x: Tensor, reference: Tensor) -> Tensor:
        for axis, offset in enumerate(self.offsets, self.axis):
            x = x.narrow(axis, offset, reference.shape[axis])
        return x
