"""Differences between the values of two models, and the table that tells of them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ..layers.base import format_shape

#: A blob that hardly varies is measured against this part of its largest value, not against its tiny std.
_FLAT = 1e-2


@dataclass(frozen=True)
class Difference:
    """How far the values of one key ("blob/conv1") lie apart in the two models, the first being the reference.

    `max_error` and `mean_error` are absolute, over all values; `scale` is what they are measured against: the
    population std of the reference's values, or a hundredth of their largest magnitude where that is more. Errors are
    infinite where one side has a NaN or an infinity that the other has not, and where the shapes differ.
    """

    key: str
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    max_error: float
    mean_error: float
    scale: float
    layer: str | None = None
    hint: str = ""

    @classmethod
    def of(cls, key: str, a: np.ndarray, b: np.ndarray, layer: str | None = None) -> Difference:
        """Measures two arrays."""
        shapes = a.shape, b.shape
        if a.shape != b.shape:
            return cls(key, shapes, np.inf, np.inf, 1.0, layer)
        if not a.size:
            return cls(key, shapes, 0.0, 0.0, 1.0, layer)
        x, y = a.astype(np.float64), b.astype(np.float64)
        finite = np.isfinite(x)
        alike = (x == y) | (np.isnan(x) & np.isnan(y))
        with np.errstate(invalid="ignore"):
            errors = np.where(alike, 0.0, abs(x - y))
        errors[np.isnan(errors)] = np.inf
        known = x[finite]
        scale = max(float(known.std()), _FLAT * float(abs(known).max()) if a.size > 1 else float(abs(known).max())) \
            if known.size else 0.0
        return cls(key, shapes, float(errors.max()), float(errors.mean()), scale or 1.0, layer)

    @property
    def name(self) -> str:
        """The blob's name; other values with what they are."""
        return self.key.removeprefix("blob/")

    @property
    def relative(self) -> float:
        """The largest error in units of `scale`."""
        return self.max_error / self.scale

    def __str__(self) -> str:
        if self.shapes[0] != self.shapes[1]:
            text = f"{self.name}: shape {format_shape(self.shapes[0])} against {format_shape(self.shapes[1])}"
        else:
            text = (f"{self.name}: max error {self.max_error:.3g} ({self.relative:.3g} std), mean error "
                    f"{self.mean_error:.3g}")
        text += f", of layer {self.layer}" if self.layer else ""
        return f"{text}. {self.hint}" if self.hint else text


@dataclass
class Report:
    """The comparison of model `a`, the reference, with model `b`: a `Difference` for each value that both have.

    `only_a` and `only_b` are keys that one of them has alone; `unmatched` those of them that are outputs of the model,
    which counts as a difference. `notes` say what was assumed.
    """

    a: str
    b: str
    tolerance: float
    differences: list[Difference] = field(default_factory=list)
    only_a: list[str] = field(default_factory=list)
    only_b: list[str] = field(default_factory=list)
    unmatched: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def beyond(self) -> list[Difference]:
        """The values past the tolerance, in the order they are made."""
        return [item for item in self.differences if not item.relative <= self.tolerance]

    @property
    def first(self) -> Difference | None:
        """The first value past the tolerance."""
        return next(iter(self.beyond), None)

    @property
    def worst(self) -> float:
        """The largest relative error."""
        return max((item.relative for item in self.differences), default=0.0)

    @property
    def equal(self) -> bool:
        """Whether all values are within the tolerance and no output is without a partner."""
        return not self.beyond and not self.unmatched

    def summary(self) -> str:
        """One line."""
        if self.first is not None:
            return (f"{self.b} differs from {self.a} in {len(self.beyond)} of {len(self.differences)} values "
                    f"(tolerance {self.tolerance:g} std); the first is {self.first}")
        if self.unmatched:
            return f"{self.b} and {self.a} do not both have the outputs {', '.join(self.unmatched)}"
        return (f"{self.b} equals {self.a} in {len(self.differences)} values; the largest error is {self.worst:.3g} std "
                f"(tolerance {self.tolerance:g})")

    def __str__(self) -> str:
        rows = [["value", "shape", "max error", "mean error", "in std", "layer"]]
        for item in self.differences:
            mark = "" if item.relative <= self.tolerance else "  <-- past the tolerance"
            rows.append([item.name, " ".join(map(str, item.shapes[0])) or "()", f"{item.max_error:.3g}",
                         f"{item.mean_error:.3g}", f"{item.relative:.3g}", (item.layer or "") + mark])
        widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
        lines = ["  ".join(word.ljust(width) for word, width in zip(row, widths)).rstrip() for row in rows]
        for name, keys in ((self.a, self.only_a), (self.b, self.only_b)):
            if keys:
                lines.append(f"only in {name}: {', '.join(key.removeprefix('blob/') for key in keys)}")
        return "\n".join([*lines, *self.notes])
