"""Prototxt files: text format to messages and back, with errors that say where and what instead."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from ..errors import ParseError, did_you_mean
from .dialect import Dialect, all_dialects, is_repeated
from .document import Document, replacing
from .foreign import explain_binary, read_bytes
from .outline import Entry, outline
from .upgrade import upgrade as upgrade_document

_MAX_LISTED = 20


def read_text(path: str | os.PathLike[str], kind: str, dialect: Dialect | None = None, *,
              allow_unknown: bool = False, upgrade: bool = True) -> Document:
    """The message of type `kind` ("NetParameter", "SolverParameter") in the prototxt file at `path`.

    Without `dialect`, BVLC's is taken if it knows all fields, else the one that knows most. With `allow_unknown`,
    fields that the dialect does not know are left out and listed in the document's `notes`. Older forms of nets and
    solvers are upgraded, unless `upgrade` is False.

    Raises `ParseError` for what cannot be read; all unknown fields and values are listed at once.
    """
    name = os.fspath(path)
    data = read_bytes(path, "a prototxt")
    found = explain_binary(data)
    if found:
        raise ParseError(f"expected a prototxt, which is text, but {found}", name)
    # Old files have comments in every encoding; strings that are not UTF-8 are found when they are looked at.
    text = data.decode("utf-8-sig", errors="surrogateescape")
    if not text.strip():
        raise ParseError(f"expected a {kind} in text format, but this file is empty", name)
    return parse_text(text, kind, name, dialect, allow_unknown=allow_unknown, upgrade=upgrade)


def parse_text(text: str, kind: str, path: str | None = None, dialect: Dialect | None = None, *,
               allow_unknown: bool = False, upgrade: bool = True) -> Document:
    """Like `read_text`, from a string; `path` is what errors name."""
    entries = outline(text, path)
    candidates = [dialect] if dialect else all_dialects()
    dialect, problems = _best(entries, kind, candidates)
    notes = []
    if allow_unknown:
        notes = [f"line {p.line}: {p.text}: left out" for p in problems if p.is_unknown_field]
        problems = [p for p in problems if not p.is_unknown_field]
    if problems:
        raise _other_kind(entries, kind, dialect, path) or _report(problems, path)
    message = dialect.message(kind)()
    try:
        text_format.Parse(text, message, allow_unknown_field=allow_unknown)
    except text_format.ParseError as error:
        reason = re.sub(r"^\d+:\d+ : (?:'.*': )?", "", str(error), flags=re.DOTALL)
        raise ParseError(reason, path, error.GetLine()) from None
    document = Document(message, dialect, path, _lines(entries, message.DESCRIPTOR), notes=notes)
    _check_required(document)
    if upgrade:
        upgrade_document(document)
    return document


def dump_text(message: Any) -> str:
    """The message in text format, fields in the order of their numbers."""
    return text_format.MessageToString(message)


def write_text(path: str | os.PathLike[str], message: Any) -> None:
    """Writes the message in text format, whole or not at all."""
    with replacing(path) as temporary:
        Path(temporary).write_text(dump_text(message), encoding="utf-8")


@dataclass(frozen=True)
class _Problem:
    line: int
    text: str
    is_unknown_field: bool = False


def _best(entries: list[Entry], kind: str, candidates: list[Dialect]) -> tuple[Dialect, list[_Problem]]:
    """The dialect in which fewest is wrong, the first of equals, and what is."""
    found = []
    for dialect in candidates:
        problems = list(_problems(entries, dialect.descriptor(kind), dialect))
        if not problems:
            return dialect, []
        found.append((dialect, problems))
    return min(found, key=lambda item: len(item[1]))


def _problems(entries: list[Entry], descriptor: Descriptor, dialect: Dialect) -> Iterator[_Problem]:
    """All unknown fields and values of the wrong kind in a message of the given type."""
    if descriptor.name == "NetParameter":
        yield from _mixed_layers(entries)
    for entry in entries:
        field = descriptor.fields_by_name.get(entry.name)
        if field is None:
            yield _unknown_field(entry, descriptor, dialect)
        elif field.message_type is not None:
            if entry.is_message:
                yield from _problems(entry.value, field.message_type, dialect)
            else:
                yield _Problem(entry.line, f"{field.name} is a message: write {field.name} {{ ... }}, "
                                           f"found {' '.join(entry.value)}")
        elif entry.is_message:
            yield _Problem(entry.line, f"{field.name} takes a value, found a message {{ ... }}")
        elif field.enum_type is not None:
            yield from _wrong_enum(entry, field.enum_type)
        elif field.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES):
            yield from _wrong_string(entry, descriptor)


def _unknown_field(entry: Entry, descriptor: Descriptor, dialect: Dialect) -> _Problem:
    others = [d.name for d in all_dialects() if d is not dialect and descriptor.name in d.messages
              and entry.name in d.descriptor(descriptor.name).fields_by_name]
    hint = did_you_mean(entry.name, descriptor.fields_by_name.keys())
    if others:
        hint = f' (known in dialect {" and ".join(others)}, while this file was read as {dialect.name})'
    return _Problem(entry.line, f'unknown field "{entry.name}" in {descriptor.name}{hint}', True)


def _wrong_string(entry: Entry, descriptor: Descriptor) -> Iterator[_Problem]:
    value = " ".join(entry.value)
    if value[0] not in "\"'":
        advice = ""
        if (descriptor.name, entry.name) == ("LayerParameter", "type"):
            advice = '; names like CONVOLUTION belong in the older "layers { ... }"'
        yield _Problem(entry.line, f"{entry.name} takes a string in quotes, found {value}{advice}")
    elif re.search("[\udc80-\udcff]", value):
        yield _Problem(entry.line, f"{entry.name} is not in UTF-8: save the file in that encoding")


def _wrong_enum(entry: Entry, enum: EnumDescriptor) -> Iterator[_Problem]:
    value = "".join(entry.value)
    if value in enum.values_by_name:
        return
    names = ", ".join(enum.values_by_name)
    if value[0] in "\"'":
        bare = value.strip("\"'")
        advice = f"{bare}, without quotes" if bare in enum.values_by_name else f"one of {names}, without quotes"
        if (enum.name, enum.containing_type and enum.containing_type.name) == ("LayerType", "V1LayerParameter"):
            advice += ', or the newer "layer { ... }" with a type in quotes'
        yield _Problem(entry.line, f"{entry.name} is {value}, expected {advice}")
    elif not re.fullmatch(r"[-+]?(0[xX][\da-fA-F]+|\d+)", value) or int(value, 0) not in enum.values_by_number:
        yield _Problem(entry.line, f'{entry.name} has no value "{value}"'
                                   f"{did_you_mean(value, enum.values_by_name)}; known: {names}")


def _mixed_layers(entries: list[Entry]) -> Iterator[_Problem]:
    first = {}
    for entry in entries:
        first.setdefault(entry.name, entry.line)
    if "layer" in first and "layers" in first:
        yield _Problem(max(first["layer"], first["layers"]),
                       f'this file mixes "layer" (first on line {first["layer"]}) and the older "layers" (first on '
                       f'line {first["layers"]}), of which one kind would be lost: rewrite one kind as the other')


def _other_kind(entries: list[Entry], kind: str, dialect: Dialect, path: str | None) -> ParseError | None:
    """The error for a net where a solver is expected and the like, if the file is that without a mistake."""
    for other, flag in (("NetParameter", "--model"), ("SolverParameter", "--solver")):
        if other != kind and not any(_problems(entries, dialect.descriptor(other), dialect)):
            return ParseError(f"expected a {kind}, but this is a {other}, which is given with {flag}", path)
    return None


def _report(problems: list[_Problem], path: str | None) -> ParseError:
    """One error that lists every problem, each with its place."""
    problems = sorted(problems, key=lambda problem: problem.line)
    first, *others = problems[:_MAX_LISTED]
    lines = [first.text, *(str(ParseError(p.text, path, p.line)) for p in others)]
    if len(problems) > _MAX_LISTED:
        lines.append(f"... and {len(problems) - _MAX_LISTED} more")
    return ParseError("\n".join(lines), path, first.line)


def _lines(entries: list[Entry], descriptor: Descriptor) -> dict[tuple, int]:
    lines: dict[tuple, int] = {}
    counts: Counter[str] = Counter()
    for entry in entries:
        field = descriptor.fields_by_name.get(entry.name)
        if field is not None:
            key = (entry.name, counts[entry.name]) if is_repeated(field) else (entry.name,)
            lines[key] = entry.line
            counts[entry.name] += 1
    return lines


def _check_required(document: Document) -> None:
    missing = document.message.FindInitializationErrors()
    if missing:
        index = re.match(r"(\w+)(?:\[(\d+)\])?", missing[0])
        key = (index[1], int(index[2])) if index[2] else (index[1],)
        raise ParseError(f"required but not given: {', '.join(missing)}", document.path, document.lines.get(key))
