"""Recordings: `.npz` files of what a net or a solver did elsewhere, in the format of docs/recordings.md."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from .. import proto
from ..errors import CaffeError
from .caffe_model import CaffeModel
from .recording_file import parameters, read_recording
from .runner import RUNNERS, Arrays, OpenShape, Options, Runner
from .solver_model import SolverModel


@RUNNERS.add("recording")
class Recording(Runner):
    """A recording: its values are what they are, whatever it is run with, which must be what it was made with.

    `about` is what it says of itself (docs/recordings.md).
    """

    kind = "recording"

    def __init__(self, path: str, about: dict[str, Any], arrays: Arrays) -> None:
        self.name = path
        self.about = about
        self.arrays = arrays

    @classmethod
    def claims(cls, spec: str) -> bool:
        return spec.endswith(".npz") and os.path.isfile(spec)

    @classmethod
    def open(cls, spec: str, options: Options) -> Recording:
        return cls(spec, *read_recording(spec))

    def inputs(self) -> dict[str, OpenShape]:
        return {name: values.shape for name, values in self.given().items() if not name.startswith("output_diff/")}

    def given(self) -> Arrays:
        """The inputs by blob name and the diffs of outputs; of a solver its first parameters and all its data, by key."""
        if self.about["kind"] == "solver":
            return {key: values for key, values in self.arrays.items() if "/input/" in key or key.startswith("iter/0/")}
        return {key.removeprefix("input/"): values for key, values in self.arrays.items()
                if key.startswith(("input/", "output_diff/"))}

    def outputs(self) -> list[str]:
        return []

    def run(self, inputs: Mapping[str, np.ndarray], wanted: Collection[str] | None = None) -> Arrays:
        for name, values in self.given().items():
            if name in inputs and not np.array_equal(inputs[name], values):
                raise CaffeError(f"{self.name}: was recorded with another {name} than is given; leave --input out to "
                                 "use the recording's")
        return {key: values for key, values in self.arrays.items() if not self._is_given(key)
                and (wanted is None or key in wanted)}

    def _is_given(self, key: str) -> bool:
        return key.startswith(("input/", "param/", "output_diff/", "iter/0/")) or "/input/" in key

    def prepare(self, other: Runner) -> None:
        """Gives the model that it is compared with what that lacks: the parameters, the phase."""
        if isinstance(other, CaffeModel):
            other.use(parameters(self.arrays), self.about["phase"], bool(self.about.get("force_backward")))

    def own_model(self, options: Options) -> Runner:
        """Our net or solver made of the definition that the recording holds."""
        text = self.about.get("prototxt")
        if not text:
            raise CaffeError(f"{self.name}: holds no net definition; give the model to compare it with")
        net = proto.parse_text(text, "NetParameter", f"{self.name}:net.prototxt")
        if self.about["kind"] == "net":
            model = CaffeModel(net, None, options)
            self.prepare(model)
            return model
        solver = proto.parse_text(self.about.get("solver", ""), "SolverParameter", f"{self.name}:solver.prototxt")
        return SolverModel(solver, options, net)
