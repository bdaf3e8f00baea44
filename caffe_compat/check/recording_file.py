"""The files that recordings are, as docs/recordings.md has them: what is in one, in the order it was made."""

from __future__ import annotations

import json
import zipfile
from collections import defaultdict
from typing import Any

import numpy as np

from ..errors import ParseError
from .runner import Arrays

FORMAT, VERSION = "caffe-recording", 1
KINDS = ("net", "solver")


def read_recording(path: str) -> tuple[dict[str, Any], Arrays]:
    """What a recording says of itself, and its arrays; `ParseError` for what is none, or of another version."""
    arrays = _read(path)
    if "recording" not in arrays:
        raise ParseError(f'has no entry "recording", so this is no {FORMAT}; it has {", ".join(list(arrays)[:5])}', path)
    about = _about(arrays.pop("recording"), path)
    return about, {key: arrays[key] for key in _ordered(arrays, about)}


def parameters(arrays: Arrays) -> dict[str, list[np.ndarray]]:
    """The parameters that a net was recorded with, by layer."""
    found: defaultdict[str, dict[int, np.ndarray]] = defaultdict(dict)
    for key, values in arrays.items():
        name, _, index = key.removeprefix("param/").rpartition("/")
        if key.startswith("param/") and index.isdecimal():
            found[name][int(index)] = values
    return {name: [blobs[j] for j in sorted(blobs)] for name, blobs in found.items()}


def _read(path: str) -> Arrays:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, KeyError, MemoryError, NotImplementedError, zipfile.BadZipFile) as error:
        raise ParseError(f"not a readable .npz file: {error}", path) from None


def _about(entry: np.ndarray, path: str) -> dict[str, Any]:
    text = entry[()] if entry.ndim == 0 else ""
    try:
        about = json.loads(text.decode("utf-8") if isinstance(text, bytes) else str(text))
        found = about["format"], about["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise ParseError(f'the entry "recording" is not as {FORMAT} has it: {error!r}', path) from None
    if found != (FORMAT, VERSION):
        raise ParseError(f"is {found[0]} of version {found[1]}, expected {FORMAT} of version {VERSION}: "
                         "record anew, or use a newer release", path)
    if about.get("kind") not in KINDS or about.get("phase") not in ("TRAIN", "TEST"):
        raise ParseError(f"its kind is {about.get('kind')!r}, its phase {about.get('phase')!r}; expected "
                         f"{' or '.join(KINDS)}, TRAIN or TEST", path)
    return about


def _ordered(arrays: Arrays, about: dict[str, Any]) -> list[str]:
    """The keys in the order the values were made: blobs as the net has them, diffs backwards, iterations upwards.

    Python 2 does not keep the order in the file.
    """
    order = {name: number for number, name in enumerate([*about.get("blobs", ()), *about.get("layers", ())])}

    def place(key: str) -> tuple[Any, ...]:
        iteration, kind, name = 0, *key.partition("/")[::2]
        if kind == "iter":
            number, kind, name = [*name.split("/", 2), "", ""][:3]
            iteration = int(number) if number.isdecimal() else 0
        owner, _, index = name.rpartition("/") if "param" in kind else (name, "", "")
        number = order.get(owner, len(order))
        backwards = kind.endswith("_diff")
        return iteration, backwards, -number if backwards else number, kind, int(index) if index.isdecimal() else 0

    return sorted(arrays, key=place)
