"""Weights from a file into a net: matched by layer name, shapes checked as Caffe checks them, and a report of it."""

from __future__ import annotations

import logging
import mmap
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from . import hdf5, proto
from .errors import WeightError
from .layers.base import format_shape
from .proto import Dialect, Document

if TYPE_CHECKING:
    from .blob import Blob
    from .net import Net

log = logging.getLogger(__name__)

#: How many bytes are copied at once.
PART = 1 << 24


@dataclass
class LoadReport:
    """What a weight file did to a net, by layer name.

    `copied` layers got their blobs from the file, `missing` ones have parameters that the file does not know, `unused`
    ones stand in the file alone, `reshaped` blobs ("fc6/0") came in another shape of as many values.
    """

    path: str | None
    copied: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    reshaped: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return "; ".join(f"{what}: {', '.join(names)}" for what, names in
                         (("copied", self.copied), ("missing", self.missing), ("unused", self.unused),
                          ("reshaped", self.reshaped)) if names)


def read_weights(path: str | os.PathLike[str], dialect: Dialect | None = None) -> Document:
    """A `.caffemodel` or `.caffemodel.h5` as a NetParameter document; which it is, is told from its contents."""
    name = os.fspath(path)
    if hdf5.is_hdf5(name):
        return hdf5.read_weights(name, dialect or proto.BVLC)
    return proto.read_binary(name, "NetParameter", dialect=dialect)


def copy_weights(net: Net, source: str | os.PathLike[str] | Document) -> LoadReport:
    """Copies the blobs of a `.caffemodel` (path or Document) into the layers of the same names.

    As in Caffe the last of several layers of one name wins, layers that only one side has are left alone, and blobs
    must agree in number and shape; old four-axis shapes (num, channels, height, width) may hold the same values in
    fewer axes, and a file may lack what the layer shares with another. Raises `WeightError` where they do not agree,
    and where the file has weights but none for any layer of this net.
    """
    document = source if isinstance(source, Document) else read_weights(source)
    report = LoadReport(document.path)
    owned = {(learnable.layer_name, learnable.index) for learnable in net.learnable}
    names, known = set(net.layer_dict), set()
    for i, layer in enumerate(document.message.layer):
        if layer.name not in names:
            log.info("Ignoring source layer %s", layer.name)
            if len(layer.blobs):
                report.unused.append(layer.name)
            continue
        known.add(layer.name)
        blobs = net.params.get(layer.name, [])
        present = [j for j in range(len(layer.blobs)) if ("layer", i, "blobs", j) in document.arrays]
        lacking = [j for j in range(len(blobs)) if j not in present and (layer.name, j) in owned]
        if lacking or len(layer.blobs) > len(blobs):
            raise WeightError(f"{_place(report, layer.name)}: the file has {len(present)} blobs for this layer, "
                              f"the net {len(blobs)}; rename the layer to leave it as it is")
        for j in present:
            _copy(blobs[j], document.arrays["layer", i, "blobs", j], layer.blobs[j], f"{layer.name}/{j}", report)
        if present:
            report.copied.append(layer.name)
    report.missing = [name for name in net.params if name not in known]
    if not report.copied and net.params:
        place, theirs = report.path or "the given weights", ", ".join(sorted(report.unused)) or "none"
        raise WeightError(f"{place}: no layer of the file is in the net, nothing was copied. Layers with weights in "
                          f"the file: {theirs}; in the net: {', '.join(net.params)}")
    return report


def _copy(blob: Blob, values: np.ndarray, message: object, name: str, report: LoadReport) -> None:
    if values.shape != blob.shape:
        if not _legacy_equal(message, values.shape, blob.shape):
            raise WeightError(f"{_place(report, name)}: shape mismatch, the file has {format_shape(values.shape)}, the "
                              f"net {format_shape(blob.shape)}; to learn this layer from scratch, rename it in the "
                              "prototxt")
        values = values.reshape(blob.shape)
        report.reshaped.append(name)
    if blob.tensor.device.type == "cpu":
        _copy_in_parts(blob.data, values)
    else:
        with torch.no_grad():
            blob.tensor.copy_(torch.from_numpy(np.array(values)))


def _copy_in_parts(target: np.ndarray, values: np.ndarray) -> None:
    """Copies, and gives the memory of a mapped file back on the way: a large net is in memory once, not twice."""
    if values.nbytes <= PART:
        np.copyto(target, values)
        _release_pages(values)
        return
    rows = max(1, PART * len(values) // values.nbytes)
    for i in range(0, len(values), rows):
        np.copyto(target[i:i + rows], values[i:i + rows])
        _release_pages(values[i:i + rows])


def _release_pages(values: np.ndarray) -> None:
    """Gives back the memory that holds a mapped file's values; reading them again reads the file again."""
    base = values
    while isinstance(base, np.ndarray):
        base = base.base
    mapped = base.obj if isinstance(base, memoryview) else None
    if not isinstance(mapped, mmap.mmap) or not hasattr(mmap, "MADV_DONTNEED") or not values.flags.c_contiguous:
        return
    start = values.ctypes.data - np.frombuffer(mapped, np.uint8).ctypes.data
    first, last = -(-start // mmap.PAGESIZE), (start + values.nbytes) // mmap.PAGESIZE
    if last > first:
        mapped.madvise(mmap.MADV_DONTNEED, first * mmap.PAGESIZE, (last - first) * mmap.PAGESIZE)


def _legacy_equal(message: object, found: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Caffe's lenient comparison of old shapes: num, channels, height and width against the last axes of the blob."""
    if message.HasField("shape") or len(wanted) > 4:
        return False
    return tuple(found) == (1,) * (4 - len(wanted)) + wanted


def _place(report: LoadReport, name: str) -> str:
    return f"{report.path}: {name}" if report.path else name
