"""A walk over the wire format that takes the values of BlobProtos out of a message, or puts them in.

protobuf would turn every value into an object, or hold them all a second time. Here a message's bytes are walked by
its descriptor, only as deep as BlobProtos lie, and protobuf sees what is left. The work is per field, not per value.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from google.protobuf.descriptor import Descriptor

from .dialect import is_repeated

#: BlobProto's repeated fields of values, and their types on the wire.
VALUE_TYPES = {
    "data": np.dtype("<f4"), "diff": np.dtype("<f4"), "double_data": np.dtype("<f8"), "double_diff": np.dtype("<f8"),
}

Path = tuple[str | int, ...]
#: A part of a message in wire form.
Piece = "bytes | memoryview | Packed"

_VARINT, _FIXED64, _BYTES, _GROUP, _END_GROUP, _FIXED32 = range(6)


class WireError(Exception):
    """Bytes that are no protobuf message; `path` leads to the element that holds them."""

    def __init__(self, message: str, path: Path) -> None:
        super().__init__(message)
        self.path = path


@dataclass(eq=False)
class Plan:
    """What the walk has to know of a message type: its field numbers, which lead to BlobProtos, which hold values."""

    known: frozenset[int]
    inner: dict[int, tuple[str, bool, Plan]] = field(default_factory=dict)  # number: name, repeated, its type's plan
    values: dict[int, str] = field(default_factory=dict)


@cache
def plan(descriptor: Descriptor) -> Plan:
    """The plan for a message type."""
    result = Plan(frozenset(descriptor.fields_by_number))
    for number, item in descriptor.fields_by_number.items():
        if descriptor.name == "BlobProto" and item.name in VALUE_TYPES:
            result.values[number] = item.name
        elif item.message_type is not None and _holds_blobs(item.message_type, set()):
            result.inner[number] = item.name, is_repeated(item), plan(item.message_type)
    return result


def _holds_blobs(descriptor: Descriptor, seen: set[Descriptor]) -> bool:
    if descriptor.name == "BlobProto":
        return True
    seen.add(descriptor)
    inner = {item.message_type for item in descriptor.fields if item.message_type is not None} - seen
    return any(_holds_blobs(item, seen) for item in inner)


@dataclass
class Values:
    """A run of values met on the walk: field `name` of the BlobProto at `path`; `whole` is it with its keys."""

    path: Path
    number: int
    name: str
    array: np.ndarray
    whole: memoryview


class Walk:
    """Walks the message in `buffer`; what `replace` returns takes the place of each run of values.

    After `pieces()`, `strangers` counts the bytes of fields that the descriptor does not know, as deep as it went.
    """

    def __init__(self, buffer: bytes | memoryview, replace: Callable[[Values], list[Piece]]) -> None:
        self.buffer = memoryview(buffer)
        self.replace = replace
        self.strangers = 0
        self._counts: Counter[Path] = Counter()

    def pieces(self, descriptor: Descriptor) -> list[Piece]:
        """The message, with its values replaced, in pieces."""
        return self._message(plan(descriptor), 0, len(self.buffer), ())

    def _message(self, plan: Plan, start: int, end: int, path: Path) -> list[Piece]:
        pieces: list[Piece] = []
        kept = position = start  # what is before `kept` is in `pieces`
        while position < end:
            head = position
            number, wire, content, position = self._field(position, end, path)
            if number in plan.values and wire != _VARINT:
                name = plan.values[number]
                array, position = self._values(name, wire, head, content, position, end, path)
                replaced = self.replace(Values(path, number, name, array, self.buffer[head:position]))
            elif number in plan.inner and wire == _BYTES:
                inner = plan.inner[number]
                replaced = enclosed(number, self._message(inner[2], content, position, self._step(path, inner)))
            else:
                if number not in plan.known:
                    self.strangers += position - head
                continue
            if kept < head:
                pieces.append(self.buffer[kept:head])
            pieces += replaced
            kept = position
        if kept < end:
            pieces.append(self.buffer[kept:end])
        return pieces

    def _step(self, path: Path, inner: tuple[str, bool, Plan]) -> Path:
        """The path of the next element of a field; a field that is not repeated has one, however often it is met."""
        path = (*path, inner[0])
        if not inner[1]:
            return path
        self._counts[path] += 1
        return (*path, self._counts[path] - 1)

    def _values(self, name, wire, head, content, stop, end, path) -> tuple[np.ndarray, int]:
        """The values at `content`, and where they stop: packed ones, or a run of single ones with their keys."""
        dtype = VALUE_TYPES[name]
        if wire == _BYTES:
            count, rest = divmod(stop - content, dtype.itemsize)
            if rest:
                raise WireError(f"{name} has {stop - content} bytes, which is no multiple of {dtype.itemsize}", path)
            return np.frombuffer(self.buffer, dtype, count, content), stop
        if stop - content != dtype.itemsize:
            raise WireError(f"{name} has values of {stop - content} bytes, expected {dtype.itemsize}", path)
        stride = stop - head
        count = self._run(head, stride, content - head, end)
        values = np.ndarray(count, dtype, self.buffer, content, (stride,))
        return np.ascontiguousarray(values), head + count * stride

    def _run(self, head: int, stride: int, size: int, end: int) -> int:
        """How many items of `stride` bytes from `head` on begin with the same key of `size` bytes."""
        possible = (end - head) // stride
        if size != 1:
            return 1
        keys = np.ndarray(possible, np.uint8, self.buffer, head, (stride,))
        count, window = 0, 64
        while count < possible:  # in growing windows: short runs stay cheap, however many there are
            same = keys[count:count + window] == keys[0]
            if not same.all():
                return count + int(same.argmin())
            count += len(same)
            window *= 4
        return possible

    def _field(self, position: int, end: int, path: Path) -> tuple[int, int, int, int]:
        """The field at `position`: its number and wire type, where its content starts and stops."""
        tag, content = self._number(position, end, path)
        number, wire = tag >> 3, tag & 7
        if number == 0 or number >= 1 << 29:
            raise WireError(f"field number {number} cannot be", path)
        if wire == _BYTES:
            size, content = self._number(content, end, path)
            stop = content + size
        elif wire == _VARINT:
            stop = self._number(content, end, path)[1]
        elif wire == _FIXED32:
            stop = content + 4
        elif wire == _FIXED64:
            stop = content + 8
        elif wire == _GROUP:
            stop = self._group(number, content, end, path)
        else:
            raise WireError(f"wire type {wire} cannot be", path)
        if stop > end:
            missing = f"{stop - end} bytes are missing"
            raise WireError(f"field {number} should be {stop - content} bytes long, but {missing}", path)
        return number, wire, content, stop

    def _group(self, number: int, position: int, end: int, path: Path) -> int:
        """Where the group of this number stops; an old encoding, which Caffe does not use but unknown fields may."""
        opened = [number]
        while opened:
            tag, content = self._number(position, end, path)
            if tag & 7 == _GROUP:
                opened.append(tag >> 3)
                position = content
            elif tag & 7 == _END_GROUP:
                if opened.pop() != tag >> 3:
                    raise WireError("a group is closed by another's end", path)
                position = content
            else:
                position = self._field(position, end, path)[3]
        return position

    def _number(self, position: int, end: int, path: Path) -> tuple[int, int]:
        result = 0
        for shift in range(0, 70, 7):
            if position >= end:
                raise WireError("it ends within a number", path)
            byte = self.buffer[position]
            position += 1
            result |= (byte & 127) << shift
            if byte < 128:
                return result, position
        raise WireError("a number is longer than 64 bits", path)


@dataclass(eq=False)
class Packed:
    """The content of a packed field whose values are still in an array; `len` is its length in bytes."""

    dtype: np.dtype
    array: np.ndarray

    def __len__(self) -> int:
        return self.array.size * self.dtype.itemsize

    def bytes(self) -> np.ndarray:
        """The bytes, without a copy if the array has the right type and order."""
        return np.ascontiguousarray(self.array, self.dtype).reshape(-1).view(np.uint8)


def enclosed(number: int, pieces: list[Piece]) -> list[Piece]:
    """The pieces as the content of a field: with its key and length before them."""
    return [_varint(number << 3 | _BYTES) + _varint(sum(map(len, pieces))), *pieces]


def _varint(value: int) -> bytes:
    result = bytearray()
    while value > 127:
        result.append(value & 127 | 128)
        value >>= 7
    result.append(value)
    return bytes(result)
