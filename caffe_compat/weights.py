"""Weights from a file into a net: matched by layer name, shapes checked as Caffe checks them, and a report of it all."""

from __future__ import annotations

import logging
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

    As in Caffe the last of several layers of one name wins, layers that only one side has are left alone, and blobs must
    agree in number and shape; old four-axis shapes (num, channels, height, width) may hold the same values in fewer axes.
    Raises `WeightError` where they do not, and where the file has weights but none for any layer of this net.
    """
    document = source if isinstance(source, Document) else read_weights(source)
    report = LoadReport(document.path)
    weighted = set()
    for i, layer in enumerate(document.message.layer):
        if not len(layer.blobs):
            continue
        weighted.add(layer.name)
        blobs = net.params.get(layer.name)
        if blobs is None:
            log.info("Ignoring source layer %s", layer.name)
            report.unused.append(layer.name)
            continue
        if len(blobs) != len(layer.blobs):
            raise WeightError(f"{_place(report, layer.name)}: the file has {len(layer.blobs)} blobs for this layer, "
                              f"the net {len(blobs)}; rename the layer to leave it as it is")
        for j, blob in enumerate(blobs):
            _copy(blob, document.arrays["layer", i, "blobs", j], layer.blobs[j], f"{layer.name}/{j}", report)
        report.copied.append(layer.name)
    report.missing = [name for name in net.params if name not in weighted]
    if not report.copied and net.params:
        raise WeightError(f"{report.path or 'the given weights'}: no layer of the file is in the net, nothing was copied. "
                          f"Layers with weights in the file: {', '.join(sorted(weighted)) or 'none'}; "
                          f"in the net: {', '.join(net.params)}")
    return report


def _copy(blob: Blob, values: np.ndarray, message: object, name: str, report: LoadReport) -> None:
    if values.shape != blob.shape:
        if not _legacy_equal(message, values.shape, blob.shape):
            raise WeightError(f"{_place(report, name)}: shape mismatch, the file has {format_shape(values.shape)}, the net "
                              f"{format_shape(blob.shape)}; to learn this layer from scratch, rename it in the prototxt")
        values = values.reshape(blob.shape)
        report.reshaped.append(name)
    if blob.tensor.device.type == "cpu":
        np.copyto(blob.data, values)
    else:
        with torch.no_grad():
            blob.tensor.copy_(torch.from_numpy(np.array(values)))


def _legacy_equal(message: object, found: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Caffe's lenient comparison of old shapes: num, channels, height and width against the last axes of the blob."""
    if message.HasField("shape") or len(wanted) > 4:
        return False
    return tuple(found) == (1,) * (4 - len(wanted)) + wanted


def _place(report: LoadReport, name: str) -> str:
    return f"{report.path}: {name}" if report.path else name
