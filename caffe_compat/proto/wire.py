"""Binary files (caffemodel, solverstate, binaryproto): read and written without a loop over values or a second copy.

Reading maps the file into memory, hands protobuf all but the values of the BlobProtos, and shows those as numpy views
of the mapping. Writing streams the values from the arrays they are in.
"""

from __future__ import annotations

import math
import mmap
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError

from ..errors import ParseError, WeightError
from .dialect import Dialect, all_dialects, is_repeated
from .document import Document, replacing
from .foreign import known_format, looks_like_text, unreadable
from .scan import VALUE_TYPES, Packed, Path, Piece, Values, Walk, WireError, enclosed, plan
from .upgrade import upgrade as upgrade_document

_KINDS = {
    "NetParameter": "a net's weights (.caffemodel), which are given with --weights",
    "SolverState": "a solver's state (.solverstate), which is given with --snapshot",
    "BlobProto": "a single array (.binaryproto), such as a mean image, which is named in transform_param { mean_file }",
}
_LEGACY_AXES = ("num", "channels", "height", "width")


def read_binary(path: str | os.PathLike[str], kind: str, dialect: Dialect | None = None, *,
                upgrade: bool = True) -> Document:
    """The message of type `kind` ("NetParameter", "SolverState", "BlobProto") in the binary file at `path`.

    Without `dialect`, it is the one that leaves the fewest bytes unexplained, BVLC's if that explains all. Older forms
    of nets are upgraded, unless `upgrade` is False.
    Raises `ParseError` for a file that is truncated, foreign, of another kind, or whose blobs contradict their shapes.
    """
    name = os.fspath(path)
    data = _map_file(path)
    if not len(data):
        raise ParseError(f"expected a {kind}, but this file is empty (0 bytes)", name)
    found = known_format(bytes(data[:64]))
    if found:
        raise ParseError(f"expected a {kind} in binary form, but this is {found}", name)
    try:
        reading = _best_reading(data, kind, [dialect] if dialect else all_dialects())
    except WireError as error:
        raise _not_this(data, kind, name, error) from None
    if reading.unexplained and (other := _other_kind(data, kind)):
        raise ParseError(f"expected a {kind}, but this is {other}", name)
    for place, value in _undecodable(reading.message):
        raise ParseError(f"{place} is {value!r}, which is no text in UTF-8", name)
    document = reading.document(name)
    if upgrade:
        upgrade_document(document)
    return document


def write_binary(path: str | os.PathLike[str], document: Document | Any) -> None:
    """Writes a document (or a message) in binary form, whole or not at all.

    `arrays` and `diffs` take the place of the values of the BlobProtos at their element paths, whose `shape` is set
    to theirs (a BlobProto that has the same shape in num, channels, height, width keeps that). float64 arrays are
    written as double_data, all others as data. Raises `WeightError` for an array without a BlobProto to go to.
    """
    message, arrays, diffs = document, {}, {}
    if isinstance(document, Document):
        message, arrays, diffs = document.message, document.arrays, document.diffs
    pieces = _pieces(message, arrays, diffs)
    with replacing(path) as temporary, open(temporary, "wb") as file:
        for piece in pieces:
            file.write(piece.bytes() if isinstance(piece, Packed) else piece)


def _map_file(path: str | os.PathLike[str]) -> memoryview:
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                return memoryview(file.read())  # empty, or a pipe
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError as error:
        raise unreadable(path, "a binary file", error) from None


# -- reading --------------------------------------------------------------------------------------------------------


class _Reading:
    """A file's bytes as a message of one dialect. Raises `WireError` if they cannot be that."""

    def __init__(self, data: memoryview, dialect: Dialect, kind: str) -> None:
        self.dialect = dialect
        self.kind = kind
        self.values: defaultdict[tuple[Path, str], list[np.ndarray]] = defaultdict(list)
        walk = Walk(data, self._keep)
        self.pieces = walk.pieces(dialect.descriptor(kind))
        self.strangers = walk.strangers  # bytes of unknown fields around blobs: at most `unexplained`
        self.message: Any = None
        self.unexplained = 0

    def _keep(self, values: Values) -> list[Piece]:
        self.values[values.path, values.name].append(values.array)
        return []

    def parse(self) -> _Reading:
        """Makes `message`, and counts what the schema leaves `unexplained`: bytes, and required fields not there."""
        if self.message is not None:
            return self
        self.message = self.dialect.message(self.kind)()
        try:
            self.message.MergeFromString(b"".join(self.pieces))
        except DecodeError as error:
            raise WireError(str(error), ()) from None
        known = type(self.message)()
        known.CopyFrom(self.message)
        known.DiscardUnknownFields()
        self.unexplained = _size(self.message) - _size(known) + len(known.FindInitializationErrors())
        return self

    def document(self, path: str) -> Document:
        document = Document(self.message, self.dialect, path)
        for key, blob in blobs_of(self.message):
            for target, single in ((document.arrays, "data"), (document.diffs, "diff")):
                chunks = self.values.get((key, f"double_{single}")) or self.values.get((key, single), [])
                if chunks or single == "data":
                    values = chunks[0] if len(chunks) == 1 else np.concatenate(chunks or [np.empty(0, np.float32)])
                    target[key] = _shaped(values, blob, self.message, key, path, single)
                    target[key].flags.writeable = False
        return document


def _size(message: Any) -> int:
    return len(message.SerializePartialToString())


def _best_reading(data: memoryview, kind: str, dialects: Iterable[Dialect]) -> _Reading:
    """The first dialect's that explains everything, else the one's that explains most."""
    readings, errors = [], []
    for dialect in dialects:
        try:
            reading = _Reading(data, dialect, kind)
            if not reading.strangers and not reading.parse().unexplained:
                return reading
            readings.append(reading)
        except WireError as error:
            errors.append(error)
    best: _Reading | None = None
    for reading in sorted(readings, key=lambda reading: reading.strangers):
        if best and reading.strangers >= best.unexplained:
            break
        try:
            reading.parse()
        except WireError as error:
            errors.append(error)
        else:
            best = min(best or reading, reading, key=lambda reading: reading.unexplained)
    if best is None:
        raise errors[0]
    return best


def _undecodable(message: Any) -> Iterator[tuple[str, bytes]]:
    """The strings that are not UTF-8, which protobuf returns as bytes, and where they stand."""
    for field, value in message.ListFields():
        items = value if is_repeated(field) else [value]
        if field.message_type is not None:
            for index, item in enumerate(items):
                yield from ((f"{field.name} {index}, {place}", bad) for place, bad in _undecodable(item))
        elif field.type == FieldDescriptor.TYPE_STRING:
            yield from ((field.name, item) for item in items if isinstance(item, bytes))


def _other_kind(data: memoryview, kind: str) -> str | None:
    """What the file is if one of the other kinds of file explains all its bytes."""
    for other, description in _KINDS.items():
        if other == kind:
            continue
        for dialect in all_dialects():
            try:
                reading = _Reading(data, dialect, other)
                if not reading.strangers and not reading.parse().unexplained and reading.message.ListFields():
                    return description
            except WireError:
                continue
    return None


def _not_this(data: memoryview, kind: str, path: str, error: WireError) -> ParseError:
    """The error for a file that is no message of this kind: what it seems to be, or where it breaks off."""
    if looks_like_text(bytes(data[:4096])):
        return ParseError(f"expected a {kind} in binary form, but this is text; a prototxt is given with --model or "
                          "--solver", path)
    other = _other_kind(data, kind)
    if other:
        return ParseError(f"expected a {kind}, but this is {other}", path)
    where = f" (in {' '.join(map(str, error.path))})" if error.path else ""
    return ParseError(f"not a complete {kind}: {error}{where}. The file ({len(data)} bytes) is of another kind, or was "
                      "cut off or damaged, for instance by an interrupted download or a full disk", path)


# -- shapes ---------------------------------------------------------------------------------------------------------


def _shaped(values: np.ndarray, blob: Any, message: Any, key: Path, path: str, name: str) -> np.ndarray:
    """The values in the shape that their BlobProto claims."""
    shape = _claimed_shape(blob, len(values))
    if min(shape, default=0) < 0 or math.prod(shape) != len(values):
        raise ParseError(f"{_describe(message, key)}: the shape is {' '.join(map(str, shape))} ({math.prod(shape)}), "
                         f"but {len(values)} values of {name} are stored: the file is damaged or was written wrongly",
                         path)
    return values.reshape(shape)


def _claimed_shape(blob: Any, count: int) -> tuple[int, ...]:
    """A BlobProto's shape; one that names none has no axis if it has one value (Caffe's scalar), else one axis."""
    if blob.HasField("shape"):
        return legacy_shape(blob) or tuple(blob.shape.dim)
    return legacy_shape(blob) or (() if count == 1 else (count,))


def legacy_shape(blob: Any) -> tuple[int, ...] | None:
    """The four axes of a BlobProto that has num, channels, height or width (older files), else None."""
    return tuple(getattr(blob, axis) for axis in _LEGACY_AXES) if any(map(blob.HasField, _LEGACY_AXES)) else None


def blobs_of(message: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every BlobProto in a message, at any depth, with its element path."""
    steps = plan(message.DESCRIPTOR)
    if steps.values:
        yield path, message
    for name, repeated, _ in steps.inner.values():
        if repeated:
            for index, item in enumerate(getattr(message, name)):
                yield from blobs_of(item, (*path, name, index))
        elif message.HasField(name):
            yield from blobs_of(getattr(message, name), (*path, name))


def _describe(message: Any, path: Path) -> str:
    """`layer "conv2", blobs 0` for the element of `message` at a path."""
    words, index = [], 0
    while index < len(path):
        message = getattr(message, path[index])
        words.append(path[index])
        if index + 1 < len(path) and isinstance(path[index + 1], int):
            index += 1
            message = message[path[index]]
            words[-1] += f" {path[index]}"
        if message.DESCRIPTOR.name.endswith("LayerParameter") and message.name:
            words[-1] = f'layer "{message.name}"'
        index += 1
    return ", ".join(words) or "the blob"


# -- writing --------------------------------------------------------------------------------------------------------


def _pieces(source: Any, arrays: dict[Path, np.ndarray], diffs: dict[Path, np.ndarray]) -> list[Piece]:
    """The message in wire form, as bytes and as arrays whose values are to be written in between.

    protobuf writes one value in every place where an array's belong; the walk puts the array there.
    """
    message = type(source)()
    message.CopyFrom(source)
    rest = {("data", key) for key in arrays} | {("diff", key) for key in diffs}
    fillings: dict[tuple[Path, str], np.ndarray] = {}
    for path, blob in blobs_of(message):
        for single, given in (("data", arrays), ("diff", diffs)):
            if path not in given:
                continue
            array = np.asarray(given[path])
            name = f"double_{single}" if array.dtype == np.float64 else single
            blob.ClearField(single)
            blob.ClearField(f"double_{single}")
            if array.size:
                getattr(blob, name).append(0)
            fillings[path, name] = array
            _set_shape(blob, array)
            rest.discard((single, path))
    if rest:
        name, path = min(rest, key=str)
        place = " ".join(map(str, path)) or "the message"
        raise WeightError(f"an array is given for {name} of {place}, but there is no BlobProto")

    def fill(values: Values) -> list[Piece]:
        array = fillings.get((values.path, values.name))
        return [values.whole] if array is None else enclosed(values.number, [Packed(VALUE_TYPES[values.name], array)])

    return Walk(message.SerializePartialToString(), fill).pieces(message.DESCRIPTOR)


def _set_shape(blob: Any, array: np.ndarray) -> None:
    """Makes the BlobProto claim the array's shape, if it does not yet; an empty one needs none."""
    claims = blob.HasField("shape") or legacy_shape(blob) or array.size == 0
    if claims and _claimed_shape(blob, array.size) == array.shape:
        return
    for axis in (*_LEGACY_AXES, "shape"):
        blob.ClearField(axis)
    if array.shape:
        blob.shape.dim.extend(array.shape)
