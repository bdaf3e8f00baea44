"""The experiments that come with the package, or a folder of one's own: nets, solvers, and what is said about them.

An experiment is a folder with

    solver.prototxt             prunes, with the method the experiment is about
    solver_<METHOD>.prototxt    prunes with another method, or another setting of it
    solver_baseline.prototxt    trains the weights to prune; without it they must be given
    train_val.prototxt          the net, or whatever the solvers name
    deploy.prototxt             the net for use
    experiment.toml             what is not Caffe's: see `Experiment`, whose fields are its keys
    README.md

and is run by `increg reproduce` (`reproduce`).
"""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from caffe_compat import proto
from caffe_compat.errors import CaffeError, ParseError, did_you_mean

from .datasets import make_digits

__all__ = ["Experiment", "Published", "Quick", "folder", "load", "make_digits", "names"]

SETTINGS, MAIN_SOLVER, BASELINE_SOLVER, DEPLOY = ("experiment.toml", "solver.prototxt", "solver_baseline.prototxt",
                                                  "deploy.prototxt")


@dataclass(frozen=True)
class Quick:
    """The minutes-long version: all iterations divided by `factor`, what grows multiplied by it.

    strength:  what penalties and their limits are multiplied by in addition; with `factor`, shorter pruning pushes weights as
               far as the whole one
    images:    at most so many of the digits in each database, where they stand in for the data
    batch:     images of a batch, for training and for testing; None: as in the net
    test_iter: at most so many batches a test; None: as in the solver
    """

    factor: int = 10
    strength: int = 1
    images: int | None = None
    batch: tuple[int, int] | None = None
    test_iter: int | None = None


@dataclass(frozen=True)
class Published:
    """A published result to hold a run against. Accuracies are as the source writes them, in percent, top-1/top-5.

    method: the solver's, as in `Experiment.methods`; what: its name in the source, where that says more
    """

    method: str
    before: str
    speedup: str
    after: str
    source: str
    what: str = ""


@dataclass(frozen=True)
class Experiment:
    """An experiment.

    folder:    where it is
    title:     what it is, in a line
    data:      the entry of `datasets.DATASETS` that it needs
    weights:   where trained weights come from, in words, if there is no solver_baseline.prototxt
    threads:   of the CPU; 0: as torch likes. One is as fast for small nets, and gives the same sums on every machine
    quick, published: see there
    """

    folder: Path
    title: str
    data: str
    weights: str = ""
    threads: int = 0
    quick: Quick = field(default_factory=Quick)
    published: tuple[Published, ...] = ()

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    @property
    def trains(self) -> bool:
        """Whether it can train the weights to prune."""
        return (self.folder / BASELINE_SOLVER).exists()

    def methods(self) -> dict[str, Path]:
        """The solvers by the name that chooses them: what their file name says, the experiment's own by its prune_method."""
        own = self.folder / MAIN_SOLVER
        others = sorted(path for path in self.folder.glob("solver_*.prototxt") if path.name != BASELINE_SOLVER)
        return {self.main_method(): own} | {path.stem.removeprefix("solver_"): path for path in others}

    def main_method(self) -> str:
        """The prune_method of the experiment's own solver."""
        return proto.read_text(self.folder / MAIN_SOLVER, "SolverParameter").message.prune_method

    def solver(self, method: str) -> Path:
        """The solver that prunes with `method`. Raises `CaffeError` if there is none."""
        methods = self.methods()
        if method not in methods:
            raise CaffeError(f'{self.name} has no solver for the method "{method}"{did_you_mean(method, methods)}; it has '
                             f"them for {', '.join(sorted(methods))}")
        return methods[method]


def _root() -> Path:
    """The folder of the experiments: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent
    return next((root for root in (package / "prototxt", package.parent / "prototxt") if root.is_dir()),
                package / "prototxt")


def names() -> list[str]:
    """All experiments that come with the package, sorted."""
    return sorted(path.parent.name for path in _root().glob(f"*/{SETTINGS}"))


def folder(name: str | os.PathLike[str]) -> Path:
    """The folder of the experiment `name`; or `name` itself, if it is the path of a folder that holds one.

    Raises `CaffeError` if there is neither.
    """
    for candidate in (_root() / name, Path(name)):
        if (candidate / SETTINGS).is_file():
            return candidate
    known = names()
    raise CaffeError(f'there is no experiment "{os.fspath(name)}"{did_you_mean(os.fspath(name), known)}; there are '
                     f"{', '.join(known)}, and any folder with a file {SETTINGS}")


def load(name: str | os.PathLike[str]) -> Experiment:
    """Reads an experiment's settings. Raises `CaffeError` for an unknown one, `ParseError` for settings that are wrong."""
    place = folder(name)
    path = place / SETTINGS
    try:
        settings = tomllib.loads(path.read_text())
    except tomllib.TOMLDecodeError as error:
        raise ParseError(f"is not valid TOML: {error}", os.fspath(path)) from error
    quick = settings.pop("quick", {})
    if "batch" in quick:
        quick["batch"] = tuple(quick["batch"])
    published = [_build(Published, entry, path, "published") for entry in settings.pop("published", [])]
    return _build(Experiment, {**settings, "folder": place, "quick": _build(Quick, quick, path, "quick"),
                               "published": tuple(published)}, path, "")


def _build(cls: type, settings: dict[str, Any], path: Path, section: str) -> Any:
    known = {entry.name for entry in fields(cls)}
    if unknown := sorted(settings.keys() - known):
        raise ParseError(f"unknown key {unknown[0]}{f' in {section}' if section else ''}; known ones: "
                         f"{', '.join(sorted(known - {'folder'}))}", os.fspath(path))
    try:
        return cls(**settings)
    except TypeError as error:
        raise ParseError(f"{section or 'it'} lacks a key: {error}", os.fspath(path)) from error
