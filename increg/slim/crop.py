"""Kernels cut down to the rectangle of positions that are not zero, with the padding that leaves the outputs as they were.

A Convolution of Caffe pads both ends of an axis alike. Where the cuts at both ends differ, it is padded for the end that
needs more, and the outputs too many are cut off; where it needs no padding at all, the inputs nobody reads are.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from torch import Tensor

from caffe_compat.layers.windows import Window

from .matrices import Matrix


@dataclass(frozen=True)
class AxisCrop:
    """How one axis of a kernel is cut: positions `first` to `last` (exclusive) stay, padded by `pad`.

    `inputs` and `outputs` are the pixels to cut off at the front and at the back of the bottom and of the top, which have
    `read` and `made` pixels before that.
    """

    first: int
    last: int
    pad: int
    inputs: tuple[int, int] = (0, 0)
    outputs: tuple[int, int] = (0, 0)
    made: int = 0
    read: int = 0

    @property
    def kernel(self) -> int:
        """Positions that stay."""
        return self.last - self.first


def crop_kernel(matrix: Matrix, weight: Tensor, sizes: tuple[int, ...]) -> list[AxisCrop] | None:
    """How to cut the kernel of a Convolution with a bottom of spatial `sizes`, None if that would not save anything.

    `weight` is (group, rows, inputs, positions), what is left of the matrix's.
    """
    window: Window = matrix.layer.window
    used = (weight != 0).flatten(0, 2).any(0).reshape(window.kernel)
    if bool(used.all()) or not bool(used.any()) or matrix.shared or len(matrix.layer.spec.bottom) > 1:
        return None
    crops = []
    for axis, settings in enumerate(zip(sizes, window.kernel, window.stride, window.pad, window.dilation)):
        others = [k for k in range(used.dim()) if k != axis]
        found = (used.any(tuple(others)) if others else used).nonzero()
        crops.append(_crop_axis(*settings, int(found[0]), int(found[-1]) + 1))
    whole = [_crop_axis(*settings, 0, settings[1]) for settings in zip(sizes, window.kernel, window.stride, window.pad,
                                                                       window.dilation)]
    # an axis for itself may cost more outputs than it saves
    crops = [crop if crop.kernel * crop.made < uncut.kernel * uncut.made else uncut
             for crop, uncut in zip(crops, whole)]
    return crops if prod(crop.kernel for crop in crops) < used.numel() else None


def cut(weight: Tensor, kernel: tuple[int, ...], crops: list[AxisCrop]) -> Tensor:
    """What is left of (group, rows, inputs, positions)."""
    spatial = weight.unflatten(3, kernel)
    for axis, crop in enumerate(crops, 3):
        spatial = spatial.narrow(axis, crop.first, crop.kernel)
    return spatial.flatten(3) if kernel else weight


def _crop_axis(size: int, kernel: int, stride: int, pad: int, dilation: int, first: int, last: int) -> AxisCrop:
    front, back = pad - dilation * first, pad - dilation * (kernel - last)  # the padding that each end needs, negative: a cut
    extent = dilation * (last - first - 1) + 1
    outputs = (size + front + back - extent) // stride + 1
    if max(front, back) <= 0:
        if (size + front - extent) // stride + 1 == outputs:
            back = 0  # the stride never gets there
        return AxisCrop(first, last, 0, (-front, -back), (0, 0), outputs, size)
    wide = max(front, back, 0)
    wide += (front - wide) % stride
    made = (size + 2 * wide - extent) // stride + 1
    begin = (wide - front) // stride
    return AxisCrop(first, last, wide, (0, 0), (begin, made - outputs - begin), made, size)
