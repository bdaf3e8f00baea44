"""The window that Convolution, Deconvolution, Im2col and Pooling slide over the spatial axes of a bottom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import memory
from .base import Layer, Shape

#: Sizes are ints in Caffe.
_LARGEST = 2**31 - 1


@dataclass(frozen=True)
class Window:
    """Kernel size, stride, padding and dilation, one number each for every spatial axis."""

    kernel: Shape
    stride: Shape
    pad: Shape
    dilation: Shape

    @property
    def extent(self) -> Shape:
        """The number of bottom positions from the first to the last that the dilated kernel touches."""
        return tuple(d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilation))


def window_of(layer: Layer, axes: int, *, pairs: bool = False, kernel: Shape | None = None) -> Window:
    """The window that the settings of `layer` describe, for `axes` spatial axes; `kernel` if those do not say it.

    A setting is given once for all axes, once an axis (where the field is repeated), or for two axes as `*_h` and
    `*_w`. With `pairs`, as in Pooling, `pad_h` and `pad_w` must come together; Convolution takes one alone.
    """
    if kernel is None:
        kernel = _per_axis(layer, "kernel", "kernel_size", axes, None, True)
    stride = _per_axis(layer, "stride", "stride", axes, 1, True)
    pad = _per_axis(layer, "pad", "pad", axes, 0, pairs)
    dilation = _per_axis(layer, "dilation", "dilation", axes, 1, True)
    for name, sizes in (("kernel", kernel), ("stride", stride), ("dilation", dilation)):
        if 0 in sizes:
            raise layer.error(f"the {name} is {' x '.join(map(str, sizes))}; every size must be at least 1")
    if max((*kernel, *stride, *pad, *dilation), default=0) > _LARGEST:
        raise layer.error(f"kernel {kernel}, stride {stride}, pad {pad}, dilation {dilation}: sizes go up to {_LARGEST}")
    return Window(kernel, stride, pad, dilation)


def check_padded(layer: Layer, shape: Shape, margins: Sequence[tuple[int, int]]) -> None:
    """Refuses a bottom that would take too much memory with (before, after) positions added at its last axes."""
    first = len(shape) - len(margins)
    whole = (*shape[:first], *(max(n + sum(margin), 0) for n, margin in zip(shape[first:], margins)))
    if wrong := memory.impossible(whole) or memory.too_much(4 * prod(whole)):
        raise layer.error(f"with the positions that the window reaches beyond the bottom, {wrong}")


def _per_axis(layer: Layer, name: str, field: str, axes: int, default: int | None, pairs: bool) -> Shape:
    """One number an axis of the setting `name`, from `field` or from `name`_h and `name`_w."""
    message, fields = layer.param, layer.param.DESCRIPTOR.fields_by_name
    value = getattr(message, field, ())
    once_or_each = ((value,) if message.HasField(field) else ()) if isinstance(value, int) else tuple(value)
    sides = [side for side in (f"{name}_h", f"{name}_w") if side in fields and message.HasField(side)]
    if sides:
        if axes != 2:
            raise layer.error(f"{sides[0]} is for 2 spatial axes, but the bottom has {axes}; use {field}")
        if once_or_each:
            raise layer.error(f"both {field} and {sides[0]} are given; give either {field} or {name}_h and {name}_w")
        if len(sides) == 1 and pairs:
            raise layer.error(f"{sides[0]} is given alone; give both {name}_h and {name}_w, or {field}")
        return getattr(message, f"{name}_h"), getattr(message, f"{name}_w")
    if not once_or_each and axes:
        if default is None:
            raise layer.error(f"{field} is missing; give it, or {name}_h and {name}_w")
        return (default,) * axes
    if len(once_or_each) not in (1, axes):
        raise layer.error(f"{field} is given {len(once_or_each)} times; give it once, or once for each of the {axes} "
                          "spatial axes")
    return once_or_each * axes if len(once_or_each) == 1 else once_or_each


def sliding(x: Tensor, window: Window) -> Tensor:
    """All positions of `window` on `x` of shape (N, C, spatial...), as a view (N, C, positions..., kernel...).

    Padding is not applied, see `padded`.
    """
    axes = len(window.kernel)
    for axis, (extent, stride) in enumerate(zip(window.extent, window.stride), 2):
        x = x.unfold(axis, extent, stride)
    return x[(..., *every(window.dilation))] if axes else x


def every(steps: Shape) -> tuple[slice, ...]:
    """The indices that take every step-th position of each axis."""
    return tuple(slice(None, None, step) for step in steps)


def padded(x: Tensor, margins: tuple[tuple[int, int], ...], value: float = 0.0) -> Tensor:
    """`x` with (before, after) positions of `value` added at each spatial axis; negative numbers cut positions off."""
    if not any(before or after for before, after in margins):
        return x
    return F.pad(x, [side for margin in reversed(margins) for side in margin], value=value)


def columns(x: Tensor, window: Window) -> Tensor:
    """Caffe's im2col: (N, C, spatial...) to (N, C * kernel positions, output positions...), zeros where padded."""
    axes = len(window.kernel)
    views = sliding(padded(x, tuple((p, p) for p in window.pad)), window)
    outputs = views.shape[2:2 + axes]
    kernel_first = (0, 1, *range(2 + axes, 2 + 2 * axes), *range(2, 2 + axes))
    return views.permute(kernel_first).reshape(x.shape[0], x.shape[1] * prod(window.kernel), *outputs)


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, window: Window, group: int) -> Tensor:
    """Cross-correlation over any number of spatial axes; `weight` is (outputs, channels / group, kernel...).

    torch has kernels for up to three axes (see `vision.Convolution`); this is for more, and for none.
    """
    cols = columns(x, window)
    positions = cols.shape[2:]
    kernels = weight.reshape(group, weight.shape[0] // group, -1)
    y = kernels @ cols.reshape(x.shape[0], group, cols.shape[1] // group, -1)
    y = y.reshape(x.shape[0], weight.shape[0], *positions)
    return y if bias is None else y + bias.reshape(-1, *[1] * len(positions))


def convolve_transposed(x: Tensor, weight: Tensor, bias: Tensor | None, window: Window, group: int) -> Tensor:
    """The transpose of `convolve`; `weight` is (channels, outputs / group, kernel...)."""
    axes = len(window.kernel)
    spread = x.new_zeros(*x.shape[:2], *((n - 1) * s + 1 for n, s in zip(x.shape[2:], window.stride)))
    spread[(..., *every(window.stride))] = x
    spread = padded(spread, tuple((e - 1 - p, e - 1 - p) for e, p in zip(window.extent, window.pad)))
    turned = weight.reshape(group, weight.shape[0] // group, *weight.shape[1:]).transpose(1, 2)
    turned = turned.reshape(-1, weight.shape[0] // group, *window.kernel).flip(tuple(range(2, 2 + axes)))
    dense = Window(window.kernel, (1,) * axes, (0,) * axes, window.dilation)
    return convolve(spread, turned, bias, dense, group)


def channels_last(tensor: Tensor) -> Tensor:
    """A 4-axis CPU tensor laid out with the channels innermost, where oneDNN convolutions and pooling are fastest.

    A convolution takes over the layout of its weights, so that a whole net runs in it. Other tensors are returned as
    they are.
    """
    if tensor.dim() != 4 or tensor.device.type != "cpu":
        return tensor
    # .contiguous() would leave a tensor with a single channel as it is, whose strides then do not ask for the layout
    return torch.empty_like(tensor, memory_format=torch.channels_last).copy_(tensor)
