"""Plug-ins: packages that take part in training through hooks, found by the entry point group `caffe_compat.hooks`.

A plug-in is a function `attach(solver, as_reference)` that looks at the solver's settings and adds hooks if they concern
it. Importing it may enter things into the registries. The solver itself knows none of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from .errors import CaffeError
from .proto import Document
from .solver.solver import Solver

GROUP = "caffe_compat.hooks"


@cache
def load() -> tuple[Callable[..., Any], ...]:
    """The `attach` functions of all plug-ins that are installed, imported once."""
    plugins = []
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        try:
            plugins.append(point.load())
        except ImportError as error:
            raise CaffeError(f'the plug-in "{point.name}" ({point.value}) cannot be imported: {error}; '
                             "reinstall or uninstall it") from error
    return tuple(plugins)


def create_solver(source: str | os.PathLike[str] | Document, *, as_reference: bool = False, **options: Any) -> Solver:
    """A `Solver` (which see for `options`) with the plug-ins attached that its settings ask for.

    `as_reference` is for comparing with recorded runs: plug-ins follow the defects of the implementation they reproduce,
    and training is by Caffe's own arithmetic.
    """
    plugins = load()
    solver = Solver(source, caffe_arithmetic=as_reference, **options)
    for attach in plugins:
        attach(solver, as_reference=as_reference)
    return solver
