"""Caffe solvers as models to compare with the recordings of theirs: parameters and outputs, iteration by iteration."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from .. import proto
from ..errors import CaffeError, SolverError
from ..plugins import create_solver
from ..proto import Document
from ..solver import Solver
from ..solver.setup import net_of
from ..trust import confined_to
from .caffe_model import with_inputs
from .runner import RUNNERS, Arrays, OpenShape, Options, Runner

_NETS = ("net", "net_param", "train_net", "train_net_param", "test_net", "test_net_param", "test_state", "test_iter")


@RUNNERS.add("solver")
class SolverModel(Runner):
    """A solver that is run as a recording tells: from its initial parameters, on the data of its iterations.

    It does not test and writes no snapshots. Sums are rounded as in Caffe (`caffe_arithmetic`).
    """

    kind = "Caffe solver"

    def __init__(self, document: Document, options: Options, net: Document | None = None) -> None:
        self.name = document.path or "solver"
        self._document = document
        self._options = options
        self._net = net
        self._origins: dict[str, str] = {}

    @classmethod
    def claims(cls, spec: str) -> bool:
        if not os.path.isfile(spec) or spec.endswith((".npz", ".onnx", ".py")):
            return False
        try:
            return bool(proto.read_text(spec, "SolverParameter"))
        except CaffeError:
            return False

    @classmethod
    def open(cls, spec: str, options: Options) -> SolverModel:
        return cls(proto.read_text(spec, "SolverParameter"), options)

    def inputs(self) -> dict[str, OpenShape]:
        raise SolverError(f"{self.name}: a solver is compared with a recording of one (.npz), which has its inputs")

    def run(self, inputs: Mapping[str, np.ndarray], wanted: Collection[str] | None = None) -> Arrays:
        steps = _by_iteration(inputs, self.name)
        wanted_steps = _by_iteration(dict.fromkeys(wanted or (), np.empty(0)), self.name)
        data = {name[6:]: values.shape for name, values in steps.get(1, {}).items() if name.startswith("input/")}
        solver = self._build(data)
        net = solver.net
        self._origins = {layer.name: layer.where for layer in net.layers}
        params = {f"param/{name}/{j}": blob for name, blobs in net.params.items() for j, blob in enumerate(blobs)}
        initial = steps.get(0, {})
        if missing := sorted(set(params) - set(initial)):
            raise CaffeError(f"{self.name}: the recording has no initial value of {', '.join(missing)}")
        for key, blob in params.items():
            if blob.shape != initial[key].shape:
                raise CaffeError(f"{self.name}: {key} has the shape {blob.shape}, in the recording {initial[key].shape}")
            blob.write(initial[key])
        arrays: Arrays = {}
        for iteration in range(1, max(wanted_steps, default=0) + 1):
            for key, values in steps.get(iteration, {}).items():
                net.blobs[key[6:]].write(values)
            solver.step(1)
            for key in wanted_steps.get(iteration, ()):
                blob = params.get(key) or net.blobs.get(key.removeprefix("blob/"))
                if blob is not None:
                    arrays[f"iter/{iteration}/{key}"] = blob.tensor.detach().cpu().numpy().copy()
        return arrays

    def origin(self, key: str) -> str | None:
        return self._origins.get(key.split("/", 3)[-1].rpartition("/")[0])

    def _build(self, data: Mapping[str, tuple[int, ...]]) -> Solver:
        """The solver, with Input layers where the recording has the data."""
        document = self._document
        with confined_to(document.path, self._options.allow_paths):
            net = self._net or net_of(document)
            message: Any = type(document.message)()
            message.CopyFrom(document.message)
            for name in (*_NETS, "test_interval", "test_initialization", "snapshot", "snapshot_after_train", "display",
                         "debug_info", "weights"):
                if name in message.DESCRIPTOR.fields_by_name:
                    message.ClearField(name)
            message.snapshot_after_train = message.test_initialization = False
            message.net_param.MergeFromString(with_inputs(net, data).message.SerializePartialToString())
            return create_solver(Document(message, document.dialect, document.path), as_reference=True,
                                 device=self._options.device)


def _by_iteration(arrays: Mapping[str, np.ndarray], name: str) -> dict[int, Arrays]:
    """`iter/5/param/conv1/0` as [5]["param/conv1/0"]."""
    steps: dict[int, Arrays] = {}
    for key, values in arrays.items():
        parts = key.split("/", 2)
        if len(parts) < 3 or parts[0] != "iter" or not parts[1].isdecimal():
            raise CaffeError(f'{name}: a solver is compared with a recording of one, which has keys like '
                             f'"iter/1/param/conv1/0"; found "{key}"')
        steps.setdefault(int(parts[1]), {})[parts[2]] = values
    return steps
