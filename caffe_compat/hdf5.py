"""Caffe's HDF5 files, `.caffemodel.h5` and `.solverstate.h5`, as the same Documents that the binary files give.

Weights: /data/<layer>/<index> (and /diff/<layer>/<index>), without those that the layer shares and does not own.
States: /iter, /current_step, /learned_net and /history/<index>; ours add /extra/<name>, which Caffe does not look at.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import h5py
import numpy as np

from .errors import ParseError, WeightError
from .proto import Dialect, Document, replacing


def is_hdf5(path: str) -> bool:
    """Whether a file is HDF5, told from its contents."""
    return os.path.isfile(path) and bool(h5py.is_hdf5(path))


def read_weights(path: str, dialect: Dialect) -> Document:
    """A `.caffemodel.h5` as a NetParameter document: layers with a name and blobs, and arrays for those there are."""
    message = dialect.message("NetParameter")()
    arrays = {}
    with _open(path) as file:
        for name, datasets in sorted(_layers(_group(file, "data", path), path).items()):
            index = len(message.layer)
            layer = message.layer.add(name=name)
            for j in range(max(datasets, default=-1) + 1):
                blob = layer.blobs.add()
                if j in datasets:
                    blob.shape.dim.extend(datasets[j].shape)
                    arrays["layer", index, "blobs", j] = datasets[j]
    return Document(message, dialect, path, {}, arrays, {})


def read_state(path: str, dialect: Dialect) -> Document:
    """A `.solverstate.h5` as a SolverState document."""
    with _open(path) as file:
        message = dialect.message("SolverState")(
            iter=_scalar(file, "iter", path), current_step=_scalar(file, "current_step", path))
        learned_net = file.get("learned_net")
        if isinstance(learned_net, h5py.Dataset) and learned_net.dtype.kind in "SO" and learned_net.shape == ():
            message.learned_net = learned_net.asstr(errors="replace")[()]
        history = _group(file, "history", path)
        arrays = {}
        for i in range(len(history)):
            values = _values(history, str(i), path)
            message.history.add().shape.dim.extend(values.shape)
            arrays["history", i] = values
        for name in file.get("extra", ()):
            message.extra.add(name=name, value=_values(file["extra"], name, path).tobytes())
    return Document(message, dialect, path, {}, arrays, {})


def write_weights(path: str | os.PathLike[str], document: Document) -> None:
    """Writes a NetParameter document; blobs without an array (shared copies) are left out, as Caffe does."""
    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        groups = [(file.create_group("data"), document.arrays)]
        if document.diffs:
            groups.append((file.create_group("diff"), document.diffs))
        for i, layer in enumerate(document.message.layer):
            own = [(j, ("layer", i, "blobs", j)) for j in range(len(layer.blobs))]
            try:
                for group, arrays in groups:
                    _put(group, layer.name, {str(j): arrays[key] for j, key in own if key in arrays})
            except (TypeError, ValueError) as error:
                raise WeightError(f'{os.fspath(path)}: layer "{layer.name}" cannot be written to HDF5, where its name '
                                  f"is that of a group: {error}; rename it, or write a .caffemodel") from None


def _put(group: h5py.Group, name: str, arrays: dict[str, np.ndarray]) -> None:
    here = group.require_group(name)
    for key, values in arrays.items():
        if key in here:
            raise ValueError("another layer of this name has blobs")
        here[key] = values


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


@contextmanager
def _open(path: str) -> Iterator[h5py.File]:
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, KeyError, RuntimeError) as error:
        raise ParseError(f"not a readable HDF5 file: {error}", path) from None


def _group(file: h5py.File, name: str, path: str) -> h5py.Group:
    group = file.get(name)
    if not isinstance(group, h5py.Group):
        raise ParseError(f'has no group "{name}", expected a file that Caffe wrote; found: '
                         f"{', '.join(file) or 'nothing'}", path)
    return group


def _scalar(file: h5py.File, name: str, path: str) -> int:
    values = _values(file, name, path)
    if np.size(values) != 1:
        raise ParseError(f"{name} has {np.size(values)} values, expected one", path)
    return int(np.ravel(values)[0])


def _values(group: h5py.Group, name: str, path: str) -> np.ndarray:
    item = group.get(name)
    if not isinstance(item, h5py.Dataset) or item.dtype.kind not in "fiu":
        raise ParseError(f'has no data set of numbers "{name}" in {group.name}, expected a file that Caffe wrote; '
                         f"found: {', '.join(group) or 'nothing'}", path)
    return item[()]


def _layers(data: h5py.Group, path: str) -> dict[str, dict[int, np.ndarray]]:
    """Layer name -> its blobs by index; a layer whose name has slashes lies in nested groups."""
    layers: dict[str, dict[int, np.ndarray]] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Group):
            keys = [key for key in item if isinstance(item[key], h5py.Dataset)]
            if wrong := [key for key in keys if not key.isdecimal() or len(key) > 4]:
                raise ParseError(f"{item.name}: data sets are called 0, 1, ...; found {', '.join(wrong)}", path)
            if keys or not len(item):
                layers[name] = {int(key): _values(item, key, path) for key in keys}

    data.visititems(visit)
    return layers
