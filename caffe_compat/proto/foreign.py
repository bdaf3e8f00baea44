"""What a file is when it is not what was asked for: the advice in `ParseError`s."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import ParseError

_MAGIC = {
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"\x89HDF\r\n\x1a\n": "an HDF5 file",
    b"PK\x03\x04": "a zip archive (which PyTorch and numpy also write)",
    b"\x1f\x8b": "a gzip archive: unpack it first",
    b"\xfd7zXZ": "an xz archive: unpack it first",
    b"BZh": "a bzip2 archive: unpack it first",
    b"\x93NUMPY": "a numpy array",
    b"%PDF": "a PDF",
    b"\x7fELF": "a program",
    b"version https://git-lfs": "a Git LFS pointer: fetch the real file with `git lfs pull`",
    b"<!DOCTYPE": "a web page: the download went wrong",
    b"<html": "a web page: the download went wrong",
}
_HDF5_ADVICE = "Caffe's HDF5 weights and states are recognised by the endings .caffemodel.h5 and .solverstate.h5"


def read_bytes(path: str | os.PathLike[str], expected: str) -> bytes:
    """The content of a file; `ParseError` if there is none to be had."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise unreadable(path, expected, error) from None


def unreadable(path: str | os.PathLike[str], expected: str, error: OSError) -> ParseError:
    """The `ParseError` for a file that is missing, a folder, or closed to us."""
    name = os.fspath(path)
    if isinstance(error, FileNotFoundError):
        folder = Path(name).parent
        if folder.is_dir():
            return ParseError("no such file", name)
        return ParseError(f"no such file: there is no folder {folder} (relative paths start at {Path.cwd()})", name)
    if isinstance(error, IsADirectoryError):
        return ParseError(f"expected {expected}, but this is a folder", name)
    return ParseError(f"cannot be read: {error.strerror or error}", name)


def known_format(data: bytes) -> str | None:
    """What the first bytes say the file is ("a PNG image"), if it is of a well-known format that is not Caffe's."""
    for magic, name in _MAGIC.items():
        if data[:len(magic)] == magic:
            return f"{name}. {_HDF5_ADVICE}" if "HDF5" in name else name
    return None


def explain_binary(data: bytes) -> str | None:
    """What `data` is, if it is not text: "this is ..."; None for text."""
    found = known_format(data)
    if found:
        return f"this is {found}"
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "this text is in UTF-16: save it as UTF-8"
    if b"\0" in data[:65536] or _control_share(data[:4096]) > 0.05:
        return ("this is a binary file. Weights (.caffemodel) are given with --weights, "
                "solver states (.solverstate) with --snapshot")
    return None


def looks_like_text(data: bytes) -> bool:
    """Whether the first bytes read as text: no control characters, and for the most part ASCII."""
    return _control_share(data) == 0 and sum(byte < 127 for byte in data) > len(data) / 2


def _control_share(data: bytes) -> float:
    control = sum(byte < 32 and byte not in b"\t\n\r" for byte in data)
    return control / len(data) if data else 0.0
