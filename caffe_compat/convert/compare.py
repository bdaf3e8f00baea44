"""How far the blobs of an export are from the net's: the comparison of `check`, on random inputs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..check.report import Difference, Report
from ..errors import CaffeError
from .graph import Graph


def compare(expected: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray], name: str, tolerance: float,
            layers: Mapping[str, str] | None = None, reference: str = "Caffe's net") -> Report:
    """The differences of all blobs that both have, in the order of `expected`; `layers` says where each is made.

    `name` and `reference` are what the two are called. Raises `CaffeError`, with the first blob that is past the
    tolerance (in standard deviations), where there is one.
    """
    layers = layers or {}
    report = Report(reference, name, tolerance, [
        Difference.of(f"blob/{blob}", values, found[blob], layers.get(blob))
        for blob, values in expected.items() if blob in found])
    if not report.differences:
        raise CaffeError(f"{name}: cannot be checked: it shows no blob that {reference} has")
    if not report.equal:
        raise CaffeError(f"not the same function: {report.summary()}. Nothing was written; convert without the check to look "
                         "into it")
    return report


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
