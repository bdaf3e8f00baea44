"""`Document`: a message read from a file, with what protobuf does not keep; and files written whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CaffeError
from .dialect import Dialect


@dataclass
class Document:
    """A message and the file it came from.

    Keys are element paths: `("layer", 2)`, `("layer", 2, "blobs", 0)`, `("history", 5)`, `()` for the message itself.

    message: the protobuf message; the BlobProtos of a binary file hold their shape in it, but no values
    dialect: whose schema the message has
    path:    the file, or None
    lines:   text files: the 1-based line of every top-level field, `(name, index)`, or `(name,)` if not repeated
    arrays:  binary files: BlobProto.data (float32) or double_data (float64), shaped: read-only views of the file's
             bytes, often unaligned, so copy them before computing with them
    diffs:   likewise BlobProto.diff or double_diff, where the file has them
    notes:   what was upgraded from an older format, a line each
    """

    message: Any
    dialect: Dialect
    path: str | None = None
    lines: dict[tuple, int] = field(default_factory=dict)
    arrays: dict[tuple, np.ndarray] = field(default_factory=dict)
    diffs: dict[tuple, np.ndarray] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A path to write to, in the folder of `path`; on leaving without an error it is synced and takes `path`'s place.

    On an error it is removed, and what was at `path` is still there. Raises `CaffeError` where nothing can be written.
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException as error:
        with suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError):
            reason = f"there is no folder {target.parent}" if not target.parent.is_dir() else error.strerror or error
            raise CaffeError(f"{os.fspath(path)}: cannot be written: {reason}") from None
        raise
