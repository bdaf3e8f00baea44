"""caffe.coord_map: how the coordinates of one top of a NetSpec map to those of another, to crop one to the other.

A map is (axis, scale, shift): along the axes from `axis` on, coordinate x of the one lies at scale * x + shift of the
other. `axis` is None for a map that holds for any axes, the identity (None, 1, 0).
"""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np

from ..errors import NetError
from .net_spec import Function, NoSuchName, Top
from .net_spec import layers as L

#: (axis or None, scale, shift), the latter two numbers, or arrays with one number an axis.
Map = tuple[int | None, Any, Any]

#: Types whose tops have the coordinates of their bottoms.
PASS_THROUGH_LAYERS = (
    "AbsVal", "BatchNorm", "Bias", "BNLL", "Dropout", "Eltwise", "ELU", "Log", "LRN", "Exp", "MVN", "Power", "ReLU",
    "PReLU", "Scale", "Sigmoid", "Split", "TanH", "Threshold",
)
_LEGACY = {"pad_h", "pad_w", "kernel_h", "kernel_w", "stride_h", "stride_w"}


class UndefinedMapException(NetError):
    """A layer type that has no map of coordinates."""


class AxisMismatchException(NetError):
    """Maps over different axes in a row."""


class NotConnected(NetError, RuntimeError):
    """Two tops with no layers between them that map coordinates."""


class CropError(NetError, AssertionError):
    """A map that no Crop layer can follow."""


class UnknownScale(CropError, AttributeError):
    """A map without any layer that has a kernel, which says nothing of the axes; Caffe raises AttributeError."""


def coord_map(fn: Function) -> Map:
    """The map from a layer's top to its bottom; `UndefinedMapException` if its type has none."""
    if fn.type_name in ("Convolution", "Pooling", "Im2col"):
        axis, stride, kernel, pad = conv_params(fn)
        return axis, 1 / stride, (pad - (kernel - 1) / 2) / stride
    if fn.type_name == "Deconvolution":
        axis, stride, kernel, pad = conv_params(fn)
        return axis, stride, (kernel - 1) / 2 - pad
    if fn.type_name in PASS_THROUGH_LAYERS:
        return None, 1, 0
    if fn.type_name == "Crop":
        axis, offset = crop_params(fn)
        return axis - 1, 1, -offset
    raise UndefinedMapException(f"a {fn.type_name} layer has no map of coordinates")


def conv_params(fn: Function) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
    """(axis, stride, kernel size with dilation, pad) of a layer with a kernel."""
    params = fn.params.get("pooling_param" if fn.type_name == "Pooling" else "convolution_param", fn.params)
    legacy = sorted(_LEGACY & set(params))
    if legacy:
        raise CropError(f"cropping does not support legacy _h/_w params: found {', '.join(legacy)} of a {fn.type_name} "
                        "layer; give kernel_size, stride and pad")
    if "kernel_size" not in params:
        raise NoSuchName(f"a {fn.type_name} layer without kernel_size has no map of coordinates")
    kernel, dilation, stride, pad = (np.array(params.get(name, default), ndmin=1) for name, default in
                                     (("kernel_size", 0), ("dilation", 1), ("stride", 1), ("pad", 0)))
    return params.get("axis", 1), stride, (kernel - 1) * dilation + 1, pad


def crop_params(fn: Function) -> tuple[int, np.ndarray]:
    """(axis, offset) of a Crop layer."""
    params = fn.params.get("crop_param", fn.params)
    return params.get("axis", 2), np.array(params.get("offset", 0), ndmin=1)


def compose(base_map: Map, next_map: Map) -> Map:
    """The map that does `next_map` first, then `base_map`."""
    (axis, scale, shift), (next_axis, next_scale, next_shift) = base_map, next_map
    if axis is not None and next_axis is not None and axis != next_axis:
        raise AxisMismatchException(f"maps over the axes from {axis} on and from {next_axis} on cannot be composed")
    return next_axis if axis is None else axis, scale * next_scale, scale * next_shift + shift


def inverse(coord_map: Map) -> Map:
    """The map back."""
    axis, scale, shift = coord_map
    return axis, 1 / scale, -shift / scale


def coord_map_from_to(top_from: Top, top_to: Top) -> Map:
    """The map between two tops through an ancestor of both; `NotConnected` if there is none to be reached."""
    from_maps = {top_from: (None, 1, 0)}
    _walk(top_from, from_maps)
    to_maps = {top_to: (None, 1, 0)}
    meeting = _walk(top_to, to_maps, until=from_maps)
    if meeting is None:
        raise NotConnected("Could not compute map between tops; are they connected by spatial layers? They are tops of "
                           f"{top_from.fn.type_name} and {top_to.fn.type_name} layers")
    return compose(to_maps[meeting], inverse(from_maps[meeting]))


def _walk(top: Top, maps: dict[Top, Map], until: dict[Top, Map] | None = None) -> Top | None:
    """Enters the map from `top` to each ancestor into `maps`, up to the first that is in `until`, which is returned."""
    waiting = deque([top])
    while waiting:
        top = waiting.popleft()
        if until is not None and top in until:
            return top
        # The second bottom of a Crop layer only tells the size.
        bottoms = top.fn.inputs[:1] if top.fn.type_name == "Crop" else top.fn.inputs
        try:
            found = {bottom: compose(maps[top], coord_map(top.fn)) for bottom in bottoms}
        except UndefinedMapException:
            continue
        waiting.extend(bottom for bottom in found if bottom not in maps)
        maps.update(found)
    return None


def crop(top_from: Top, top_to: Top) -> Top:
    """A Crop layer that cuts `top_from` to what lies under `top_to`; `CropError` where whole pixels do not match."""
    axis, scale, shift = coord_map_from_to(top_from, top_to)
    if not isinstance(scale, np.ndarray):
        raise UnknownScale(f"no layer with a kernel lies between the tops: their map is axis {axis}, scale {scale}, "
                           f"shift {shift}")
    if not (scale == 1).all():
        raise CropError(f"scale mismatch on crop (a = {scale}); both must be on the same scale")
    if not (shift <= 0).all():
        raise CropError(f"cannot crop negative offset (b = {shift}); pad the top to be cropped")
    if not (np.round(shift) == shift).all():
        raise CropError(f"cannot crop noninteger offset (b = {shift}); change the padding")
    return L.Crop(top_from, top_to, crop_param={"axis": axis + 1, "offset": (-np.round(shift)).astype(int).tolist()})
