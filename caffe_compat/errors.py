"""The exceptions this package raises on purpose; all derive from `CaffeError`.

A message says what is wrong, where (file:line, layer, blob), what was found and expected, and what to do about it.
The command line prints it without a traceback and exits with status 1.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class CaffeError(Exception):
    """Anything wrong with what the user handed in: a file, a network, weights, data or a setting."""


class ParseError(CaffeError):
    """A prototxt or binary file that cannot be read.

    `path` is the file, `line` the 1-based line in a text file (None in a binary one).
    """

    def __init__(self, message: str, path: str | None = None, line: int | None = None) -> None:
        place = ":".join(str(part) for part in (path, line) if part is not None)
        super().__init__(f"{place}: {message}" if place else message)
        self.path = path
        self.line = line


class NetError(CaffeError):
    """A network that cannot be: unknown bottoms, wrong blob counts, shapes that do not fit.

    `layer` and `blob` name the culprit where there is one.
    """

    def __init__(self, message: str, layer: str | None = None, blob: str | None = None) -> None:
        super().__init__(message)
        self.layer = layer
        self.blob = blob


class WeightError(CaffeError):
    """Weights or solver states that do not fit the network or solver they are loaded into."""


class DataError(CaffeError):
    """A database, image or list file that is missing, unreadable or of the wrong shape."""


class SolverError(CaffeError):
    """Solver settings that contradict each other or cannot be trained with."""


class UnknownType(CaffeError):
    """A name that no registry entry carries; `known` lists the names that exist."""

    def __init__(self, kind: str, name: str, known: Iterable[str], where: str | None = None) -> None:
        self.kind = kind
        self.name = name
        self.known = sorted(known)
        place = f"{where}: " if where else ""
        super().__init__(f'{place}unknown {kind} "{name}"{did_you_mean(name, self.known)}. Known: {", ".join(self.known)}')


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`' (did you mean "Convolution"?)'` for the closest of `known`, or an empty string if none is close."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    close = get_close_matches(name.lower(), by_lower, n=1, cutoff=0.7)
    return f' (did you mean "{by_lower[close[0]]}"?)' if close else ""
