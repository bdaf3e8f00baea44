"""Caffe's HDF5 files, `.caffemodel.h5` and `.solverstate.h5`, as the same Documents that the binary files give.

Weights: /data/<layer>/<index> (and /diff/<layer>/<index>), an empty group for a layer without blobs of its own.
States: /iter, /current_step, /learned_net and /history/<index>; ours add /extra/<name>, which Caffe does not look at.
"""

from __future__ import annotations

import os
from typing import Any

import h5py
import numpy as np

from .errors import ParseError
from .proto import Dialect, Document, replacing


def is_hdf5(path: str) -> bool:
    """Whether a file is HDF5, told from its contents."""
    return os.path.isfile(path) and bool(h5py.is_hdf5(path))


def read_weights(path: str, dialect: Dialect) -> Document:
    """A `.caffemodel.h5` as a NetParameter document: layers with a name and as many blobs as there are data sets."""
    message = dialect.message("NetParameter")()
    arrays = {}
    with _open(path) as file:
        for name, datasets in sorted(_layers(_group(file, "data", path)).items()):
            index = len(message.layer)
            layer = message.layer.add(name=name)
            for j, values in enumerate(datasets):
                layer.blobs.add().shape.dim.extend(values.shape)
                arrays["layer", index, "blobs", j] = values
    return Document(message, dialect, path, {}, arrays, {})


def read_state(path: str, dialect: Dialect) -> Document:
    """A `.solverstate.h5` as a SolverState document."""
    with _open(path) as file:
        message = dialect.message("SolverState")(
            iter=_scalar(file, "iter", path), current_step=_scalar(file, "current_step", path))
        if "learned_net" in file:
            learned_net = file["learned_net"][()]
            message.learned_net = learned_net.decode() if isinstance(learned_net, bytes) else str(learned_net)
        history = _group(file, "history", path)
        arrays = {}
        for i in range(len(history)):
            values = history[str(i)][()]
            message.history.add().shape.dim.extend(values.shape)
            arrays["history", i] = values
        for name, value in file.get("extra", {}).items():
            message.extra.add(name=name, value=value[()].tobytes())
    return Document(message, dialect, path, {}, arrays, {})


def write_weights(path: str | os.PathLike[str], document: Document) -> None:
    """Writes a NetParameter document; blobs without an array (shared copies) are left out, as Caffe does."""
    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        data = file.create_group("data")
        diff = file.create_group("diff") if document.diffs else None
        for i, layer in enumerate(document.message.layer):
            for group, arrays in ((data, document.arrays), (diff, document.diffs)):
                if group is None:
                    continue
                here = group.require_group(layer.name)
                for j in range(len(layer.blobs)):
                    if ("layer", i, "blobs", j) in arrays:
                        here[str(j)] = arrays["layer", i, "blobs", j]


def write_state(path: str | os.PathLike[str], document: Document) -> None:
    """Writes a SolverState document."""
    message = document.message
    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        file["iter"] = np.array([message.iter], np.int32)
        file["current_step"] = np.array([message.current_step], np.int32)
        file["learned_net"] = np.bytes_(message.learned_net.encode())
        history = file.create_group("history")
        for i in range(len(message.history)):
            history[str(i)] = document.arrays["history", i]
        for item in message.extra:
            file[f"extra/{item.name}"] = np.frombuffer(item.value, np.uint8)


def _open(path: str) -> h5py.File:
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise ParseError(f"not a readable HDF5 file: {error}", path) from None


def _group(file: h5py.File, name: str, path: str) -> h5py.Group:
    group = file.get(name)
    if not isinstance(group, h5py.Group):
        raise ParseError(f'has no group "{name}", expected a file that Caffe wrote; found: {", ".join(file) or "nothing"}', path)
    return group


def _scalar(file: h5py.File, name: str, path: str) -> int:
    if name not in file:
        raise ParseError(f'has no data set "{name}", expected a .solverstate.h5; found: {", ".join(file) or "nothing"}', path)
    return int(np.asarray(file[name]).ravel()[0])


def _layers(data: h5py.Group) -> dict[str, list[np.ndarray]]:
    """Layer name -> its blobs in order; a layer whose name has slashes lies in nested groups."""
    layers: dict[str, list[np.ndarray]] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Group):
            keys = sorted((key for key in item if isinstance(item[key], h5py.Dataset)), key=int)
            if keys or not len(item):
                layers[name] = [item[key][()] for key in keys]

    data.visititems(visit)
    return layers
