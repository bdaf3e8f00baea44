"""Class labels and other indices: Caffe keeps them as floats in blobs, and cuts off their fraction to use them."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import Layer


def as_index(
    layer: Layer, values: Tensor, size: int, bottom: int, ignore: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """int64 indices in [0, size) from `values`, and what each item counts: a tensor of values' shape, None for all 1.

    Items equal to `ignore` get index 0 and count 0. An index out of range is an error of `layer` (which read it from
    its bottom number `bottom`) on the CPU. On a GPU, where looking at the values would make the program wait for them,
    the item counts NaN, so that it shows in whatever is computed from it. (Caffe checks only in its debug builds, and
    else reads some other memory.)
    """
    index = values.long()
    count = None
    if ignore is not None:
        kept = index != ignore
        index = index * kept
        count = kept.to(values.dtype)
    if values.is_cpu:
        _check(layer, index, size, bottom)
        return index, count
    return _mark_outside(index, torch.ones_like(values) if count is None else count, size)


def _mark_outside(index: Tensor, count: Tensor, size: int) -> tuple[Tensor, Tensor]:
    inside = index.clamp(0, size - 1)
    return inside, torch.where(inside == index, count, float("nan"))


def _check(layer: Layer, index: Tensor, size: int, bottom: int) -> None:
    if not index.numel():
        return
    low, high = (bound.item() for bound in index.aminmax())
    if low < 0 or high >= size:
        name = layer.spec.bottom[bottom]
        raise layer.error(f'"{name}" holds {low if low < 0 else high}, which must lie between 0 and {size - 1}: there '
                          f"are {size} to choose from", name)
