"""Weights from a file into a net: matched by layer name, shapes checked as Caffe checks them, and a report of it."""

from __future__ import annotations

import logging
import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import numpy as np
import torch

from . import hdf5, proto
from .errors import WeightError, did_you_mean
from .layers.base import format_shape
from .proto import Dialect, Document

if TYPE_CHECKING:
    from .blob import Blob
    from .net import Net

log = logging.getLogger(__name__)

#: How many bytes are copied at once.
PART = 1 << 24


@dataclass(frozen=True)
class LoadOptions:
    """How the layers of a file find theirs in a net. Patterns are names with `*` and `?`.

    strict:  every parameter of the net must be in the file; and old forms that Caffe refuses, but that can mean one
             thing only, are taken: axes of size 1 too many or too few, BatchNorm without its third blob (the factor)
    rename:  the net's name for a layer of the file, by the file's
    skip:    patterns of layers of the net to leave as they are
    reshape: patterns of layers of the net whose blobs may come in any shape of as many values
    """

    strict: bool = False
    rename: Mapping[str, str] = field(default_factory=dict)
    skip: tuple[str, ...] = ()
    reshape: tuple[str, ...] = ()

    def skips(self, name: str) -> bool:
        """Whether the layer is to be left alone."""
        return any(fnmatchcase(name, pattern) for pattern in self.skip)

    def reshapes(self, name: str) -> bool:
        """Whether the layer takes blobs of any shape."""
        return any(fnmatchcase(name, pattern) for pattern in self.reshape)


#: As Caffe loads weights: layers that only one side has are left alone, shapes must agree.
CAFFE = LoadOptions()
#: For converting and comparing, where a layer without its weights is a mistake.
STRICT = LoadOptions(strict=True)


@dataclass
class LoadReport:
    """What a weight file did to a net, by layer name.

    `copied` layers got their blobs from the file, `missing` ones have parameters that the file does not know, `unused`
    ones stand in the file alone, `reshaped` blobs ("fc6/0") came in another shape of as many values, `skipped` layers
    were left alone as wished, `assumed` blobs are not in the file ("bn1/2 = 1").
    """

    path: str | None
    copied: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    reshaped: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    assumed: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return "; ".join(f"{what}: {', '.join(names)}" for what in ("copied", "missing", "unused", "reshaped", "skipped",
                                                                    "assumed") if (names := getattr(self, what)))


def read_weights(path: str | os.PathLike[str], dialect: Dialect | None = None) -> Document:
    """A `.caffemodel` or `.caffemodel.h5` as a NetParameter document; which it is, is told from its contents."""
    name = os.fspath(path)
    if hdf5.is_hdf5(name):
        return hdf5.read_weights(name, dialect or proto.BVLC)
    return proto.read_binary(name, "NetParameter", dialect=dialect)


def copy_weights(net: Net, source: str | os.PathLike[str] | Document, options: LoadOptions = CAFFE) -> LoadReport:
    """Copies the blobs of a `.caffemodel` (path or Document) into the layers of the same names.

    As in Caffe the last of several layers of one name wins, layers that only one side has are left alone, and blobs
    must agree in number and shape; old four-axis shapes (num, channels, height, width) may hold the same values in
    fewer axes, and a file may lack what the layer shares with another. `options` ask for more, or allow more. Raises
    `WeightError` where the two do not agree, and where the file has weights but none for any layer of this net.
    """
    document = source if isinstance(source, Document) else read_weights(source)
    report = LoadReport(document.path)
    owned = {(learnable.layer_name, learnable.index) for learnable in net.learnable}
    names, known = set(net.layer_dict), set()
    _check_options(options, net, document)
    for i, layer in enumerate(document.message.layer):
        name = options.rename.get(layer.name, layer.name)
        if name not in names or options.skips(name):
            log.info("Ignoring source layer %s", layer.name)
            if len(layer.blobs):
                (report.skipped if name in names else report.unused).append(layer.name)
            continue
        known.add(name)
        blobs = net.params.get(name, [])
        present = {j: document.arrays[key] for j in range(len(layer.blobs))
                   if (key := ("layer", i, "blobs", j)) in document.arrays}
        lacking = [j for j in range(len(blobs)) if j not in present and (name, j) in owned]
        if options.strict and lacking == [2] and net.layer_dict[name].type == "BatchNorm":
            present[2], lacking = np.ones(1, np.float32), []
            report.assumed.append(f"{name}/2 = 1 (the file has mean and variance alone)")
        if lacking or len(layer.blobs) > len(blobs):
            raise WeightError(f"{_place(report, name)}: the file has {len(present)} blobs for this layer, "
                              f"the net {len(blobs)}; rename the layer to leave it as it is")
        for j, values in present.items():
            lenient = ((j < len(layer.blobs) and _legacy_equal(layer.blobs[j], values.shape, blobs[j].shape))
                       or (options.strict and _alike(values.shape, blobs[j].shape)) or options.reshapes(name))
            _copy(blobs[j], values, f"{name}/{j}", report, lenient)
        if present:
            report.copied.append(name)
    report.missing = [name for name in net.params if name not in known and not options.skips(name)]
    if not report.copied and net.params:
        place, theirs = report.path or "the given weights", ", ".join(sorted(report.unused)) or "none"
        raise WeightError(f"{place}: no layer of the file is in the net, nothing was copied. Layers with weights in "
                          f"the file: {theirs}; in the net: {', '.join(net.params)}")
    if options.strict:
        _refuse_missing(report, [name for name in report.missing if any(owner == name for owner, _ in owned)])
    return report


def _check_options(options: LoadOptions, net: Net, document: Document) -> None:
    """A name that fits nothing is a typing mistake, which would be found much later."""
    theirs = [layer.name for layer in document.message.layer]
    for wrong in (name for name in options.rename if name not in theirs):
        raise WeightError(f'{document.path or "the given weights"}: has no layer "{wrong}" to rename'
                          f"{did_you_mean(wrong, theirs)}; it has {', '.join(theirs) or 'none'}")
    for pattern in (*options.rename.values(), *options.skip, *options.reshape):
        if not any(fnmatchcase(name, pattern) for name in net.params):
            raise WeightError(f'the net has no layer "{pattern}" with parameters{did_you_mean(pattern, net.params)}; it has '
                              f"{', '.join(net.params) or 'none'}")


def _refuse_missing(report: LoadReport, missing: list[str]) -> None:
    if missing:
        pairs = [(name, close[0]) for name in missing if (close := get_close_matches(name, report.unused, 1))]
        advice = f" (did you mean --map {' --map '.join(f'{theirs}={ours}' for ours, theirs in pairs)}?)" if pairs else ""
        raise WeightError(f"{_place(report, ', '.join(missing))}: the file has no weights for this{advice}; give the file's "
                          "names with --map, or leave the layers as they are with --skip. Layers of the file that are not "
                          f"in the net: {', '.join(report.unused) or 'none'}")


def _copy(blob: Blob, values: np.ndarray, name: str, report: LoadReport, lenient: bool) -> None:
    if values.shape != blob.shape:
        if not lenient or values.size != blob.count:
            raise WeightError(f"{_place(report, name)}: shape mismatch, the file has {format_shape(values.shape)}, the "
                              f"net {format_shape(blob.shape)}; to learn this layer from scratch, rename it in the "
                              "prototxt" + (f", or take the values in this order with --reshape {name.rpartition('/')[0]}"
                                            if values.size == blob.count else ""))
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
def _alike(found: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether shapes differ only in axes of size 1, all in front or all behind."""
    return any(strip(found) == strip(wanted) for strip in (_without_first_ones, _without_last_ones))


def _without_first_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[next((axis for axis, dim in enumerate(shape) if dim != 1), len(shape)):]


def _without_last_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return _without_first_ones(shape[::-1])[::-1]


def _legacy_equal(message: object, found: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Caffe's lenient comparison of old shapes: num, channels, height and width against the last axes of the blob."""
    if message.HasField("shape") or len(wanted) > 4:
        return False
    return tuple(found) == (1,) * (4 - len(wanted)) + wanted


def _place(report: LoadReport, name: str) -> str:
    return f"{report.path}: {name}" if report.path else name
