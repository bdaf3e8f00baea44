"""Which files a model may name: what it says about files is the word of whoever wrote it, not of whoever looks at it.

To train or test a net is to ask for its data, wherever it says they are, as in Caffe. To look at one, convert or
compare it is not: within `confined_to(path)` a net reads only what lies in the folder of `path` or in the working
folder, and writes nothing. (Python layers are code, for which see `layers.python`.)
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from google.protobuf.descriptor import FieldDescriptor

from .errors import DataError
from .proto import is_repeated

_folders: ContextVar[tuple[Path, ...] | None] = ContextVar("folders", default=None)
#: LayerParameter's fields, at any depth, that name files or folders.
PATH_FIELDS = frozenset({"source", "mean_file", "meanfile", "root_folder", "file_name", "label_map_file",
                         "name_size_file", "output_directory", "save_file", "video_file"})


@contextmanager
def confined_to(path: str | os.PathLike[str] | None, allow: bool = False) -> Iterator[None]:
    """While it lasts, nets read only files in the folder of `path` and the working folder, and write none.

    `allow` is the user's word that they may do what they like.
    """
    folders = {Path.cwd().resolve()} | ({Path(path).resolve().parent} if path is not None else set())
    token = _folders.set(None if allow else tuple(folders))
    try:
        yield
    finally:
        _folders.reset(token)


def check_readable(path: str | os.PathLike[str], where: str) -> None:
    """Raises `DataError` if a net, here its layer `where`, must not read `path`."""
    folders = _folders.get()
    if folders is None or not os.fspath(path):
        return
    found = Path(os.path.realpath(path))
    if not any(found.is_relative_to(folder) for folder in folders):
        raise DataError(f"{where}: names {os.fspath(path)}, which lies neither in the folder of its file nor in the "
                        "working folder, and is not opened only to look at a model")


def check_writable(path: str | os.PathLike[str], where: str) -> None:
    """Raises `DataError` if a net, here its layer `where`, must not write `path`."""
    if _folders.get() is not None:
        raise DataError(f"{where}: would write {os.fspath(path)}, which it does only in training and testing")


def check_layer(spec: Any, where: str) -> None:
    """Raises `DataError` if the settings of a layer name a file that it must not read."""
    if _folders.get() is None:
        return
    for field, value in spec.ListFields():
        if field.message_type is not None:
            for item in value if is_repeated(field) else [value]:
                check_layer(item, where)
        elif field.name in PATH_FIELDS and field.type == FieldDescriptor.TYPE_STRING:
            for item in value if is_repeated(field) else [value]:
                check_readable(item, where)
