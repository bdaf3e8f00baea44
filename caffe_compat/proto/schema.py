"""Reads .proto files (the part of proto2 that Caffe's schemas use) into protobuf descriptors; protoc is not needed.

Known: `syntax`, `package`, `option` (skipped), messages and enums (nested ones too), optional, required and repeated
fields with [default, packed, deprecated], `reserved`, comments. Anything else is a `ParseError` with its line.

A file is read into one DescriptorProto, the root, that holds its messages and enums: so `merge`, which lays a
dialect's file over its base, is the same rule at every level.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
)

from ..errors import ParseError, did_you_mean

_TOKEN = re.compile(
    r"""\s+ | //[^\n]* | /\*.*?\*/                              # space and comments
    | (?P<token> "(?:\\.|[^"\\\n])*" | '(?:\\.|[^'\\\n])*'      # strings
      | -?[A-Za-z_][\w.]* | -?\.?\d(?:[eE][+-]|[\w.])*          # names and numbers
      | [{}\[\];=,] )""",
    re.VERBOSE | re.DOTALL,
)
_LABELS = {"optional": 1, "required": 2, "repeated": 3}
_SCALARS = {
    name: FieldDescriptorProto.Type.Value(f"TYPE_{name.upper()}")
    for name in ("double", "float", "int32", "int64", "uint32", "uint64", "sint32", "sint64", "fixed32", "fixed64",
                 "sfixed32", "sfixed64", "bool", "string", "bytes")
}


def read_schema(path: str | Path) -> DescriptorProto:
    """The messages and enums of a .proto file as nested types of a root whose name is the file's package."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ParseError(f"cannot read this schema: {error}", str(path)) from None
    return _Parser(text, str(path)).file()


def merge(base: DescriptorProto, change: DescriptorProto) -> DescriptorProto:
    """`base` with the overlay `change` laid over it.

    A field, nested message or enum of `change` takes the place of what has its number or name in `base` (messages and
    enums are merged with it); `reserved` in `change` drops fields by number or name, and messages and enums by name.
    """
    dropped = set(change.reserved_name)
    ranges = [(r.start, r.end) for r in change.reserved_range]
    result = DescriptorProto(name=base.name)
    result.field.extend(_replace(base.field, change.field, dropped, ranges))
    for types, merger in (("nested_type", merge), ("enum_type", _merge_enum)):
        changes = {item.name: item for item in getattr(change, types)}
        for item in getattr(base, types):
            if item.name not in dropped:
                kept = merger(item, changes.pop(item.name)) if item.name in changes else item
                getattr(result, types).append(kept)
        getattr(result, types).extend(changes[item.name] for item in getattr(change, types) if item.name in changes)
    return result


def _merge_enum(base: EnumDescriptorProto, change: EnumDescriptorProto) -> EnumDescriptorProto:
    result = EnumDescriptorProto(name=base.name)
    ranges = [(r.start, r.end + 1) for r in change.reserved_range]
    result.value.extend(_replace(base.value, change.value, set(change.reserved_name), ranges))
    return result


def _replace(base, change, dropped: set[str], ranges: list[tuple[int, int]]) -> Iterator:
    names, numbers = {item.name for item in change}, {item.number for item in change}
    for item in base:
        gone = item.name in dropped or any(start <= item.number < end for start, end in ranges)
        if not gone and item.name not in names and item.number not in numbers:
            yield item
    yield from change


def to_file(root: DescriptorProto, file_name: str, path: str) -> FileDescriptorProto:
    """A complete file descriptor with every type name resolved; `path` is named in errors."""
    symbols = dict(_symbols(root, root.name))
    for message in root.nested_type:
        _resolve(message, f"{root.name}.{message.name}", symbols, path)
    return FileDescriptorProto(name=file_name, package=root.name, syntax="proto2",
                               message_type=root.nested_type, enum_type=root.enum_type)


def _symbols(message: DescriptorProto, scope: str) -> Iterator[tuple[str, int]]:
    for enum in message.enum_type:
        yield f"{scope}.{enum.name}", FieldDescriptorProto.TYPE_ENUM
    for nested in message.nested_type:
        yield f"{scope}.{nested.name}", FieldDescriptorProto.TYPE_MESSAGE
        yield from _symbols(nested, f"{scope}.{nested.name}")


def _resolve(message: DescriptorProto, scope: str, symbols: dict[str, int], path: str) -> None:
    for nested in message.nested_type:
        _resolve(nested, f"{scope}.{nested.name}", symbols, path)
    for field in message.field:
        if not field.type_name:
            continue
        outer = scope.split(".")
        candidates = [".".join([*outer[:i], field.type_name]) for i in range(len(outer), -1, -1)]
        found = next((name for name in candidates if name in symbols), None)
        if found is None:
            known = {name.rpartition(".")[2] for name in symbols}
            raise ParseError(f"field {field.name} of message {message.name} has the unknown type {field.type_name}"
                             f"{did_you_mean(field.type_name, known)}", path)
        field.type_name, field.type = f".{found}", symbols[found]


class _Parser:
    """A recursive descent over the tokens of one file."""

    def __init__(self, text: str, path: str) -> None:
        self.text = text
        self.path = path
        self.tokens: list[tuple[str, int]] = []
        self.next = 0
        position = 0
        while position < len(text):
            match = _TOKEN.match(text, position)
            if match is None:
                raise self._error(f"unexpected {text[position]!r}", position)
            if match["token"]:
                self.tokens.append((match["token"], position))
            position = match.end()
        self.tokens.append(("end of file", position))

    def file(self) -> DescriptorProto:
        root = DescriptorProto()
        while self.next < len(self.tokens) - 1:
            word = self._take()
            if word == "syntax":
                self._expect("=")
                if self._take()[1:-1] != "proto2":
                    raise self._error('only syntax "proto2" is known')
                self._expect(";")
            elif word == "package":
                root.name = self._name("package name")
                self._expect(";")
            else:
                self._member(root, word, top=True)
        self._check_twice(root.nested_type, "message")
        if not root.name:
            raise ParseError('no "package" statement', self.path)
        return root

    def _member(self, message: DescriptorProto, word: str, top: bool = False) -> None:
        """One statement inside a message (or, with `top`, of the file), whose first token was `word`."""
        if word == "message":
            self._message(message.nested_type.add())
        elif word == "enum":
            self._enum(message.enum_type.add())
        elif word == "reserved":
            self._reserved(message, end=1)
        elif word == "option":
            while self._take() != ";":
                pass
        elif word in _LABELS and not top:
            self._field(message.field.add(), word)
        elif word != ";":
            raise self._error(f'"{word}" is not part of the schema language known here')

    def _message(self, message: DescriptorProto) -> None:
        message.name = self._name("message name")
        self._expect("{")
        while (word := self._take()) != "}":
            self._member(message, word)
        self._check_twice(message.field, "field")
        self._check_twice(message.nested_type, "message")

    def _enum(self, enum: EnumDescriptorProto) -> None:
        enum.name = self._name("enum name")
        self._expect("{")
        while (word := self._take()) != "}":
            if word == "reserved":
                self._reserved(enum, end=0)
            elif word != ";":
                self.next -= 1
                name = self._name("value name")
                self._expect("=")
                enum.value.add(name=name, number=self._number())
                self._expect(";")
        self._check_twice(enum.value, "value")

    def _field(self, field: FieldDescriptorProto, label: str) -> None:
        field.label = _LABELS[label]
        kind = self._name("type")
        if kind in _SCALARS:
            field.type = _SCALARS[kind]
        else:
            field.type_name = kind.lstrip(".")
        field.name = self._name("field name")
        self._expect("=")
        field.number = self._number()
        word = self._take()
        if word == "[":
            while word != "]":
                option = self._name("option")
                self._expect("=")
                value = self._take()
                if option == "default":
                    field.default_value = value[1:-1] if value[0] in "\"'" else value
                elif option in ("packed", "deprecated"):
                    setattr(field.options, option, value == "true")
                else:
                    raise self._error(f'unknown field option "{option}"{did_you_mean(option, ["default", "packed"])}')
                word = self._take()
                if word not in (",", "]"):
                    raise self._error(f'expected "," or "]", found "{word}"')
            word = self._take()
        if word != ";":
            raise self._error(f'expected ";", found "{word}"')

    def _reserved(self, target: DescriptorProto | EnumDescriptorProto, end: int) -> None:
        word = ","
        while word == ",":
            word = self._take()
            if word[0] in "\"'":
                target.reserved_name.append(word[1:-1])
            else:
                self.next -= 1
                start = self._number()
                target.reserved_range.add(start=start, end=start + end)
            word = self._take()
        if word != ";":
            raise self._error(f'expected ";", found "{word}"')

    def _take(self) -> str:
        if self.next == len(self.tokens) - 1:
            raise self._error("the file ends within a statement", self.tokens[-1][1])
        self.next += 1
        return self.tokens[self.next - 1][0]

    def _expect(self, token: str) -> None:
        found = self._take()
        if found != token:
            raise self._error(f'expected "{token}", found "{found}"')

    def _name(self, what: str) -> str:
        word = self._take()
        if not (word[0].isalpha() or word[0] == "_"):
            raise self._error(f'expected a {what}, found "{word}"')
        return word

    def _number(self) -> int:
        word = self._take()
        try:
            return int(word, 0)
        except ValueError:
            raise self._error(f'expected a number, found "{word}"') from None

    def _check_twice(self, items, what: str) -> None:
        for key in ("name", "number") if what in ("field", "value") else ("name",):
            seen = set()
            for item in items:
                value = getattr(item, key)
                if value in seen:
                    raise self._error(f"{what} {key} {value} is given twice")
                seen.add(value)

    def _error(self, message: str, position: int | None = None) -> ParseError:
        if position is None:
            position = self.tokens[self.next - 1][1]
        return ParseError(message, self.path, self.text.count("\n", 0, position) + 1)
