"""What a difference looks like: the usual ways in which a converted net goes wrong leave marks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from .report import Difference
from .runner import Arrays

_CLOSE = 1e-4


def hint(differences: list[Difference], ours: Arrays, theirs: Arrays, tolerance: float) -> list[Difference]:
    """The differences, the first one past the tolerance with a guess at the cause if it looks like one."""
    for number, item in enumerate(differences):
        if not item.relative <= tolerance:
            text = _shape_hint(item) if item.shapes[0] != item.shapes[1] else _value_hint(ours[item.key], theirs[item.key])
            return [*differences[:number], replace(item, hint=text), *differences[number + 1:]]
    return differences


def _shape_hint(item: Difference) -> str:
    a, b = item.shapes
    if len(a) == len(b) and any(x != y for x, y in zip(a, b)) and all(abs(x - y) <= 1 for x, y in zip(a, b)):
        return "Sizes that differ by one are most often pooling: Caffe rounds up"
    return ""


def _value_hint(a: np.ndarray, b: np.ndarray) -> str:
    a, b = a.astype(np.float64), b.astype(np.float64)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return "There are NaNs or infinities"
    scale = max(a.std(), 1e-2 * abs(a).max(), 1e-30)

    def equal(x: np.ndarray, y: np.ndarray) -> bool:
        return x.size > 0 and bool(abs(x - y).max() <= _CLOSE * scale)

    return next((text for text, looks_so in _MARKS if looks_so(a, b, equal)), "")


Equal = Callable[[np.ndarray, np.ndarray], bool]


def _rectified(a: np.ndarray, b: np.ndarray, equal: Equal) -> bool:
    return (a.min() < 0 <= b.min() and equal(np.maximum(a, 0), b)) or (b.min() < 0 <= a.min() and equal(a, np.maximum(b, 0)))


def _positive_alike(a: np.ndarray, b: np.ndarray, equal: Equal) -> bool:
    positive = (a > 0) & (b > 0)
    return positive.any() and not positive.all() and equal(a[positive], b[positive]) and ((a > 0) == (b > 0)).all()


def _reversed(a: np.ndarray, b: np.ndarray, equal: Equal) -> bool:
    return a.ndim > 1 and a.shape[1] > 1 and equal(a, b[:, ::-1])


def _multiple(a: np.ndarray, b: np.ndarray, equal: Equal) -> bool:
    factor = float((a * b).sum() / max((b * b).sum(), 1e-300))
    return equal(a, factor * b)


def _inside(a: np.ndarray, b: np.ndarray, equal: Equal) -> bool:
    return a.ndim == 4 and min(a.shape[2:]) > 4 and equal(a[:, :, 2:-2, 2:-2], b[:, :, 2:-2, 2:-2])


def _affine_by_channel(a: np.ndarray, b: np.ndarray, equal: Equal) -> bool:
    if a.ndim < 2 or a[:, 0].size < 8:
        return False
    axes = (0, *range(2, a.ndim))
    x, y = b - b.mean(axes, keepdims=True), a - a.mean(axes, keepdims=True)
    slope = (x * y).sum(axes, keepdims=True) / np.maximum((x * x).sum(axes, keepdims=True), 1e-300)
    return equal(y, slope * x)


_MARKS: list[tuple[str, Callable[[np.ndarray, np.ndarray, Equal], bool]]] = [
    ("The negative values of one are zero in the other: look at ReLU and its negative_slope", _rectified),
    ("Only negative values differ: look at negative_slope, or the slopes of PReLU", _positive_alike),
    ("The channels are in the other order: BGR against RGB?", _reversed),
    ("One is a multiple of the other: look at scale, dropout, and BatchNorm's third blob", _multiple),
    ("Only the border differs: look at pad, and at the divisor of average pooling", _inside),
    ("Each channel is that of the other scaled and shifted: look at bias, BatchNorm, Scale and mean values",
     _affine_by_channel),
]
