"""The structure of a prototxt: which fields stand where, without a schema.

This is what protobuf's text format does not tell: the line of every field, and all mistakes at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import ParseError

_TOKEN = re.compile(
    r"""(?: \s+ | \#[^\n]* )
    | (?P<token> "(?:\\.|[^"\\\n])*" | '(?:\\.|[^'\\\n])*' | [\w.+\-]+ | [{}<>\[\]:;,/] )""",
    re.VERBOSE | re.ASCII,
)
_CLOSER = {"{": "}", "<": ">"}
_MAX_DEPTH = 100


@dataclass(slots=True)
class Entry:
    """One field: its `name`, its 1-based `line`, and its `value`: the fields of a message, or a scalar's tokens."""

    name: str
    line: int
    value: list[Entry] | list[str]
    is_message: bool


def outline(text: str, path: str | None = None) -> list[Entry]:
    """The fields of a message in text format, in order; `ParseError` where the text is no such thing."""
    return _Outline(text, path).message(None, 0)


class _Outline:
    """A recursive descent over the tokens; `token` is the one at hand, "" at the end, and `line` where it stands."""

    def __init__(self, text: str, path: str | None) -> None:
        self.text = text
        self.path = path
        self.tokens = self._tokens()
        self.token, self.line = next(self.tokens)

    def message(self, owner: Entry | None, depth: int, closer: str = "") -> list[Entry]:
        """The fields up to `closer`; `owner` is the field whose value they are."""
        entries: list[Entry] = []
        while self.token != closer:
            if not self.token:
                raise ParseError(f'{owner.name} is opened here and never closed: a "{closer}" is missing',
                                 self.path, owner.line)
            if self.token in ("}", ">"):
                expected = f'expected "{closer}" for {owner.name} of line {owner.line}' if owner else "nothing is open"
                raise self._error(f'{expected}, found "{self.token}"')
            if self.token in (",", ";"):
                self._next()
            else:
                self._field(entries, depth)
        if closer:
            self._next()
        return entries

    def _field(self, entries: list[Entry], depth: int) -> None:
        line, name = self.line, self._name()
        colon = self.token == ":"
        if colon:
            self._next()
        if colon and self.token == "[":
            self._next()
            while self.token != "]":
                self._value(entries, name, self.line, depth)
                if self.token == ",":
                    self._next()
                elif self.token != "]":
                    raise self._error(f'expected "," or "]" in the values of {name}, found {self._shown()}')
            self._next()
        elif colon or self.token in _CLOSER:
            self._value(entries, name, line, depth)
        else:
            raise self._error(f'expected ":" or "{{" after {name}, found {self._shown()}')

    def _name(self) -> str:
        name = self.token
        if name == "[":  # an extension: no schema here has any
            while self.token not in ("]", ""):
                self._next()
                name += self.token
        elif not (name[0].isalpha() or name[0] == "_"):
            raise self._error(f"expected the name of a field, found {self._shown()}")
        self._next()
        return name

    def _value(self, entries: list[Entry], name: str, line: int, depth: int) -> None:
        closer = _CLOSER.get(self.token)
        if closer:
            if depth == _MAX_DEPTH:
                raise self._error(f"messages are nested more than {_MAX_DEPTH} deep")
            self._next()
            entry = Entry(name, line, [], True)
            entry.value = self.message(entry, depth + 1, closer)
        else:
            entry = Entry(name, line, self._scalar(name), False)
        entries.append(entry)

    def _scalar(self, name: str) -> list[str]:
        """The tokens of one value: several for adjacent strings, which are one string, or for "-" and a number."""
        value: list[str] = []
        while self.token == "-":
            value.append(self._next())
        if not self.token or self.token in "{}<>[]:;,/":
            raise self._error(f"expected a value for {name}, found {self._shown()}")
        value.append(self._next())
        while value[-1][0] in "\"'" and self.token[:1] in ('"', "'"):
            value.append(self._next())
        return value

    def _next(self) -> str:
        token = self.token
        self.token, self.line = next(self.tokens)
        return token

    def _tokens(self) -> Iterator[tuple[str, int]]:
        position, line, counted = 0, 1, 0
        while position < len(self.text):
            match = _TOKEN.match(self.text, position)
            token = match["token"] if match else ""
            if token or not match:
                line += self.text.count("\n", counted, position)
                counted = position
            if not match:
                char = self.text[position]
                raise ParseError("this string is not closed on its line" if char in "\"'" else f"unexpected {char!r}",
                                 self.path, line)
            if token:
                yield token, line
            position = match.end()
        line += self.text.count("\n", counted)
        while True:
            yield "", line

    def _shown(self) -> str:
        return f'"{self.token}"' if self.token else "the end of the file"

    def _error(self, message: str) -> ParseError:
        return ParseError(message, self.path, self.line)
