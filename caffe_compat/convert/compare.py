"""How far the blobs of an export are from the net's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from .graph import Graph


@dataclass(frozen=True)
class Difference:
    """One blob of both: the largest difference, and the same relative to the standard deviation of the expected values
    (to their largest magnitude if they are all one value, to 1 if they are all 0)."""

    blob: str
    largest: float
    relative: float

    def __str__(self) -> str:
        return f'"{self.blob}", off by {self.largest:.3g} ({self.relative:.3g} of its standard deviation)'


def compare(expected: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]) -> list[Difference]:
    """The differences of all blobs that both have, in the order of `expected`; infinite where shapes differ."""
    return [_difference(name, values, found[name]) for name, values in expected.items() if name in found]


def _difference(name: str, expected: np.ndarray, found: np.ndarray) -> Difference:
    if expected.shape != found.shape:
        return Difference(name, np.inf, np.inf)
    if not expected.size:
        return Difference(name, 0.0, 0.0)
    a, b = expected.astype(np.float64), found.astype(np.float64)
    with np.errstate(invalid="ignore"):
        distance = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0, np.abs(a - b))
    largest = float(distance.max())
    finite = a[np.isfinite(a)]
    scale = float(finite.std()) if finite.size else 0.0
    if scale <= 1e-6 * float(np.abs(finite).max(initial=0)):
        scale = float(np.abs(finite).max(initial=0)) or 1.0
    return Difference(name, largest, largest / scale)


def random_inputs(graph: Graph, seed: int = 1) -> dict[str, np.ndarray]:
    """Normally distributed values for the graph's inputs, by blob; 0 or 1 for those that are labels, indices, markers."""
    rng = np.random.RandomState(seed)
    given = {}
    for value, shape in graph.inputs.items():
        places = [(node, k) for node in graph.nodes for k, name in enumerate(node.inputs) if name == value]
        discrete = bool(places) and all(k in node.layer.undifferentiable for node, k in places)
        values = rng.randint(0, 2, shape) if discrete else rng.standard_normal(shape)
        given[graph.blob(value)] = np.asarray(values, np.float32)
    return given
