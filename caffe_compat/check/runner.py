"""What can be compared: `Runner`, one small class for each kind of model, and the registry of them."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..errors import CaffeError
from ..registry import Registry
from ..weights import STRICT, LoadOptions

Arrays = dict[str, np.ndarray]
#: A shape with None for the axes that may have any size.
OpenShape = tuple[int | None, ...]


@dataclass(frozen=True)
class Options:
    """How models are opened.

    `phase`, `level` and `stages` are the NetState of Caffe nets (phase None: the recording's, or TEST), `weights` how
    files of weights are loaded into them. `allow_code` lets a torch export run, which is a Python file, `allow_paths`
    a Caffe net open the files it names wherever they are. `device` is where Caffe nets and torch modules run.
    """

    phase: str | None = None
    level: int | None = None
    stages: tuple[str, ...] = ()
    weights: LoadOptions = STRICT
    allow_code: bool = False
    allow_paths: bool = False
    device: str = "cpu"


class Runner:
    """A model that makes values of inputs. The values are named as in recordings: `blob/conv1`, `param_diff/conv1/0`.

    Types are registered in `RUNNERS`, each with the specs (paths) that it claims.
    """

    #: Words for the kind, in messages and help.
    kind: ClassVar[str]
    #: What the report calls the model.
    name: str

    @classmethod
    def claims(cls, spec: str) -> bool:
        """Whether `spec` names a model of this kind."""
        raise NotImplementedError

    @classmethod
    def open(cls, spec: str, options: Options) -> Runner:
        """The model that `spec` names."""
        raise NotImplementedError

    def inputs(self) -> dict[str, OpenShape]:
        """The inputs that must be given, and their shapes as far as they are fixed."""
        raise NotImplementedError

    def outputs(self) -> list[str]:
        """The blobs that the model is there for: one that the other model lacks is a difference."""
        return []

    def given(self) -> Arrays | None:
        """The inputs it was run with, where that is past (a recording)."""
        return None

    def run(self, inputs: Mapping[str, np.ndarray], wanted: Collection[str] | None = None) -> Arrays:
        """The values made of `inputs`, in the order they are made: all blobs, or those of the `wanted` keys.

        A wanted key that the model does not have is left out.
        """
        raise NotImplementedError

    def origin(self, key: str) -> str | None:
        """The layer that made the value of that key, as `conv1 (net.prototxt:12)`; None where that is not known."""
        return None

    def close(self) -> None:
        """Lets go of memory."""


#: The kinds of models, by name.
RUNNERS: Registry[type[Runner]] = Registry("kind of model")

SYNTAX = ("expected net.prototxt:weights.caffemodel, solver.prototxt, a folder with model.py, model.onnx or "
          "recording.npz")


def open_runner(spec: str | os.PathLike[str], options: Options) -> Runner:
    """The model that `spec` names; `CaffeError` where nothing knows it."""
    text = os.fspath(spec)
    for name in RUNNERS.names():
        if RUNNERS.get(name).claims(text):
            return RUNNERS.get(name).open(text, options)
    path = text.partition(":")[0]
    if not os.path.exists(path):
        raise CaffeError(f"{path}: no such file or folder; {SYNTAX}")
    raise CaffeError(f"{text}: cannot tell what model this is; {SYNTAX}")
