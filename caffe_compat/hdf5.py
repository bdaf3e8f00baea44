"""Caffe's HDF5 files, `.caffemodel.h5` and `.solverstate.h5`, as the same Documents that the binary files give.

Weights: /data/<layer>/<index> (and /diff/<layer>/<index>), without those that the layer shares and does not own.
States: /iter, /current_step, /learned_net and /history/<index>; ours add /extra/<name>, which Caffe does not look at.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import h5py
import numpy as np

from .errors import ParseError, WeightError
from .proto import Dialect, Document, replacing

#: A data set may be this much larger than what is stored of it, and this many bytes more.
_MOST_COMPRESSED, _SMALL = 2000, 1 << 20
_DEEPEST = 100


def is_hdf5(path: str) -> bool:
    """Whether a file is HDF5, told from its contents."""
    return os.path.isfile(path) and bool(h5py.is_hdf5(path))


def list_data_sets(path: str) -> list[tuple[str, tuple[int, ...], str]]:
    """(name, shape, type) of all data sets in a file, by name."""
    with _open(path) as file:
        return sorted((f"{name}/{key}".lstrip("/"), tuple(item.shape or ()), str(item.dtype))
                      for name, group in _groups(file, path) for key in group
                      if isinstance(item := _own(group, key, path), h5py.Dataset))


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
        learned_net = _own(file, "learned_net", path)
        if isinstance(learned_net, h5py.Dataset) and learned_net.dtype.kind in "SO" and learned_net.shape == ():
            message.learned_net = learned_net.asstr(errors="replace")[()]
        history = _group(file, "history", path)
        arrays = {}
        for i in range(len(history)):
            values = _values(history, str(i), path)
            message.history.add().shape.dim.extend(values.shape)
            arrays["history", i] = values
        for name in _group(file, "extra", path) if "extra" in file else ():
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
    except (OSError, KeyError, RuntimeError, ValueError, TypeError) as error:  # h5py's, for what is damaged
        raise ParseError(f"not a readable HDF5 file: {error}", path) from None


def _group(file: h5py.File, name: str, path: str) -> h5py.Group:
    group = _own(file, name, path)
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
    item = _own(group, name, path)
    if not isinstance(item, h5py.Dataset) or item.dtype.kind not in "fiu":
        raise ParseError(f'has no data set of numbers "{name}" in {group.name}, expected a file that Caffe wrote; '
                         f"found: {', '.join(group) or 'nothing'}", path)
    if item.external or item.is_virtual:
        raise ParseError(f"{item.name}: its values lie in other files, which are not opened; make a file that holds them",
                         path)
    stored = item.id.get_storage_size()
    if item.nbytes > _MOST_COMPRESSED * stored + _SMALL:
        raise ParseError(f"{item.name}: claims {item.size:,} values ({' x '.join(map(str, item.shape))}), but only "
                         f"{stored:,} bytes are stored: the file is damaged", path)
    return item[()]


def _own(group: h5py.Group, name: str, path: str) -> h5py.Group | h5py.Dataset | None:
    """The member of a group; `ParseError` if it is a link into another file."""
    link = group.get(name, getlink=True)
    if isinstance(link, h5py.ExternalLink):
        raise ParseError(f"{group.name.rstrip('/')}/{name} is a link to {link.filename}, which is not opened; make a file "
                         "that holds the values", path)
    return group.get(name) if link is not None else None


def _layers(data: h5py.Group, path: str) -> dict[str, dict[int, np.ndarray]]:
    """Layer name -> its blobs by index; a layer whose name has slashes lies in nested groups."""
    layers: dict[str, dict[int, np.ndarray]] = {}
    for name, group in _groups(data, path):
        keys = [key for key in group if isinstance(_own(group, key, path), h5py.Dataset)]
        if wrong := [key for key in keys if name and (not key.isdecimal() or len(key) > 4)]:
            raise ParseError(f"{group.name}: data sets are called 0, 1, ...; found {', '.join(wrong)}", path)
        if name and (keys or not len(group)):
            layers[name] = {int(key): _values(group, key, path) for key in keys}
    return layers


def _groups(root: h5py.Group, path: str) -> Iterator[tuple[str, h5py.Group]]:
    """All groups below `root`, and itself as "", each once; HDF5's own walk breaks down in a file nested too deeply."""
    waiting, seen = [("", root, 0)], set()
    while waiting:
        name, group, depth = waiting.pop()
        place = h5py.h5o.get_info(group.id).addr
        if depth > _DEEPEST:
            raise ParseError(f"its groups are nested more than {_DEEPEST} deep", path)
        if place not in seen:
            seen.add(place)
            yield name, group
            waiting += [(f"{name}/{key}".lstrip("/"), item, depth + 1) for key in group
                        if isinstance(item := _own(group, key, path), h5py.Group)]
