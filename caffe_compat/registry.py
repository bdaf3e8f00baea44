"""The one kind of registry: layer types, fillers, lr policies, update rules, databases, pruning methods."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from .errors import UnknownType

Entry = TypeVar("Entry")


class Registry(Generic[Entry]):
    """Named entries of one `kind`; each is added once, where it is defined.

    >>> fillers = Registry("filler")
    >>> @fillers.add("constant")
    ... def constant(): ...
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, Entry] = {}

    def add(self, name: str) -> Callable[[Entry], Entry]:
        """A decorator that enters what it decorates under `name`; a second entry of that name is an error."""

        def enter(entry: Entry) -> Entry:
            if name in self._entries:
                raise ValueError(f'{self.kind} "{name}" is registered twice: {self._entries[name]!r} and {entry!r}')
            self._entries[name] = entry
            return entry

        return enter

    def get(self, name: str, where: str | None = None) -> Entry:
        """The entry called `name`; `UnknownType`, naming `where` and what exists, if there is none."""
        try:
            return self._entries[name]
        except KeyError:
            raise UnknownType(self.kind, name, self._entries, where) from None

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self._entries)

    def __contains__(self, name: str) -> bool:
        return name in self._entries
