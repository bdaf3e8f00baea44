"""From a NetParameter to the list of layers that run: phase, level and stage rules, and the Split layers that Caffe adds.

Plain functions on messages; `caffe_compat.net` builds the layers.
"""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .errors import NetError
from .proto import Document

log = logging.getLogger(__name__)

TRAIN, TEST = 0, 1


@dataclass(frozen=True)
class PlacedLayer:
    """A LayerParameter and where it was written: `conv2 (net.prototxt:41)`."""

    spec: Any
    where: str


def place_layers(document: Document) -> list[PlacedLayer]:
    """The layers of a NetParameter document, each with the place that error messages name."""
    placed = []
    for index, spec in enumerate(document.message.layer):
        line = document.lines.get(("layer", index))
        place = ":".join(str(part) for part in (document.path, line) if part is not None)
        name = spec.name or f"layer {index} ({spec.type})"
        placed.append(PlacedLayer(spec, f"{name} ({place})" if place else name))
    return placed


def filter_layers(layers: list[PlacedLayer], state: Any) -> list[PlacedLayer]:
    """The layers that the NetState `state` lets through (LayerParameter include and exclude)."""
    kept = []
    for layer in layers:
        include, exclude = layer.spec.include, layer.spec.exclude
        if len(include) and len(exclude):
            raise NetError(f"{layer.where}: has both include and exclude rules; give one kind only", layer=layer.spec.name)
        if include:
            fits = any(state_meets_rule(state, rule, layer.spec.name) for rule in include)
        else:
            fits = not any(state_meets_rule(state, rule, layer.spec.name) for rule in exclude)
        if fits:
            kept.append(layer)
    return kept


def state_meets_rule(state: Any, rule: Any, layer_name: str) -> bool:
    """Whether a NetStateRule holds for a NetState: phase, level within limits, all of `stage`, none of `not_stage`."""
    if rule.HasField("phase") and rule.phase != state.phase:
        log.info("The NetState phase (%d) differed from the phase (%d) specified by a rule in layer %s",
                 state.phase, rule.phase, layer_name)
        return False
    if rule.HasField("min_level") and state.level < rule.min_level:
        log.info("The NetState level (%d) is above the min_level (%d) specified by a rule in layer %s",
                 state.level, rule.min_level, layer_name)
        return False
    if rule.HasField("max_level") and state.level > rule.max_level:
        log.info("The NetState level (%d) is above the max_level (%d) specified by a rule in layer %s",
                 state.level, rule.max_level, layer_name)
        return False
    stages = set(state.stage)
    for stage in rule.stage:
        if stage not in stages:
            log.info("The NetState did not contain stage '%s' specified by a rule in layer %s", stage, layer_name)
            return False
    for stage in rule.not_stage:
        if stage in stages:
            log.info("The NetState contained a not_stage '%s' specified by a rule in layer %s", stage, layer_name)
            return False
    return True


def insert_splits(layers: list[PlacedLayer]) -> list[PlacedLayer]:
    """The layers with a Split after every top that is read more than once, named and ordered as Caffe does.

    A top with an explicit loss_weight counts as read once more: the weight moves to the split's first top.
    """
    sources = _bottom_sources(layers)
    readers = Counter(sources.values())
    weights: dict[tuple[int, int], float] = {}
    for i, layer in enumerate(layers):
        for j, weight in zip(range(len(layer.spec.top)), layer.spec.loss_weight):
            if weight:
                weights[i, j] = weight
                readers[i, j] += 1
    taken: dict[tuple[int, int], Iterator[int]] = defaultdict(lambda: iter(range(1 << 30)))

    def split_blob(i: int, blob: str, j: int, index: int) -> str:
        return f"{blob}_{layers[i].spec.name}_{j}_split_{index}"

    result = []
    for i, layer in enumerate(layers):
        spec = type(layer.spec)()
        spec.CopyFrom(layer.spec)
        for j, blob in enumerate(spec.bottom):
            source = sources[i, j]
            if readers[source] > 1:
                spec.bottom[j] = split_blob(source[0], blob, source[1], next(taken[source]))
        result.append(PlacedLayer(spec, layer.where))
        for j, blob in enumerate(spec.top):
            if readers[i, j] < 2:
                continue
            split = type(spec)(name=f"{blob}_{spec.name}_{j}_split", type="Split", bottom=[blob])
            split.top.extend(split_blob(i, blob, j, k) for k in range(readers[i, j]))
            if (i, j) in weights:
                split.loss_weight.extend([weights[i, j]] + [0.0] * (readers[i, j] - 1))
                spec.ClearField("loss_weight")
                next(taken[i, j])
            result.append(PlacedLayer(split, f"{split.name} (after {layer.where})"))
    return result


def _bottom_sources(layers: list[PlacedLayer]) -> dict[tuple[int, int], tuple[int, int]]:
    """(layer, bottom index) -> (layer, top index) that last produced the blob; unknown bottoms are an error."""
    last: dict[str, tuple[int, int]] = {}
    sources = {}
    for i, layer in enumerate(layers):
        for j, blob in enumerate(layer.spec.bottom):
            if blob not in last:
                raise NetError(f'{layer.where}: unknown bottom blob "{blob}" (bottom index {j}); '
                               f"blobs produced so far: {', '.join(last) or 'none'}", layer=layer.spec.name, blob=blob)
            sources[i, j] = last[blob]
        for j, blob in enumerate(layer.spec.top):
            last[blob] = i, j
    return sources
