"""What a net saves when nobody looks at its inner blobs (`Net(..., keep_blobs=False)`).

Caffe keeps every blob. Here a blob's memory is handed on as soon as its last reader has run, so that a pass stays in the
processor's caches; layers write into memory that nobody reads any more; and a BatchNorm does its Scale's work.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import pairwise

from .layers.common import Eltwise
from .layers.neuron import ReLU
from .layers.norm import BatchNorm, Scale
from .net_builder import Step


def economize(steps: Sequence[Step], kept: Collection[int]) -> None:
    """Plans the passes of `steps`; `kept` holds the id() of the blobs that are to have their data after a pass."""
    _fuse(steps)
    _release(steps, kept)
    _overwrite(steps)


def _fuse(steps: Sequence[Step]) -> None:
    """Lets each BatchNorm do the work of the Scale that changes its top in place: torch does both at the price of one."""
    for step, following in pairwise(steps):
        if (isinstance(step.layer, BatchNorm) and isinstance(following.layer, Scale)
                and following.tops == following.bottoms == step.tops and step.need_backward == following.need_backward):
            step.layer.fuse(following.layer)


def _release(steps: Sequence[Step], kept: Collection[int]) -> None:
    """Tells each step which versions of blobs it is the last to read."""
    last_reader = {source: position for position, step in enumerate(steps) for source in step.sources}
    for (source, top), position in last_reader.items():
        step, blob = steps[source], steps[source].tops[top]
        if step.given or step.loss_weights[top]:
            continue
        if any(blob is other for other in steps[position].tops):  # in place: the blob lives on in its next version
            steps[position].spent.append((step, top, None))
        elif id(blob) not in kept:
            steps[position].spent.append((step, top, blob))


def _overwrite(steps: Sequence[Step]) -> None:
    """Lets each ReLU in place, and each sum, write into a bottom where nobody needs what was there."""
    for step in steps:
        free = [k for k, (position, top) in enumerate(step.sources) if _is_free(steps[position], top, step)]
        if isinstance(step.layer, ReLU) and step.tops == step.bottoms:
            step.layer.overwrites = bool(free)
        elif isinstance(step.layer, Eltwise):
            step.layer.overwrite(free)


def _is_free(source: Step, top: int, reader: Step) -> bool:
    return source.layer.overwritable and any(source is step and top == k for step, k, _ in reader.spent)
