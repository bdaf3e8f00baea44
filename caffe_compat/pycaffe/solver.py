"""pycaffe's solvers: the core's training loop with pycaffe's nets, callbacks and the six classes of `caffe`."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import Any, ClassVar

import torch

from .. import plugins, proto
from ..errors import SolverError
from ..mirror import postponed_refresh, refresh_arrays
from ..proto import Document
from ..solver import lr_policy
from ..solver import solver as core
from ..solver.hooks import SolverHook
from . import mode
from .net import Net
from .net_spec import WrongValue


class Solver(core.Solver):
    """A solver from a prototxt, of the type that the file names, with the plug-ins attached that its settings ask for.

    `net` and `test_nets` are pycaffe's Nets. As in pycaffe the device is the one that `set_mode_cpu` or `set_mode_gpu`
    chose, also if that changes later, and not the file's `solver_mode`; `device` says otherwise. `as_reference` is as
    in `create_solver`.
    """

    #: The type of update rule, if the class and not the file decides.
    type: ClassVar[str | None] = None

    def __init__(self, solver_file: str | os.PathLike[str] | Document, *, device: torch.device | str | None = None,
                 as_reference: bool = False) -> None:
        attachments = plugins.load()
        document = solver_file if isinstance(solver_file, Document) else _read(solver_file)
        if self.type is not None and document.message.type != self.type:
            message = type(document.message)()
            message.CopyFrom(document.message)
            message.type = self.type
            document = dataclasses.replace(document, message=message)
        self._follows = device is None
        super().__init__(document, device=mode.current().device if device is None else device,
                         caffe_arithmetic=as_reference)
        for attach in attachments:
            attach(self, as_reference=as_reference)

    def make_net(self, document: Document, phase: int, **options: Any) -> Net:
        options["keep_blobs"] = True
        return Net(document, phase, document.message.state.level, device=None if self._follows else self.device, **options)

    @property
    def lr(self) -> float:
        """The learning rate of the next update."""
        step = lr_policy.next_step(self.param, self.iter, self.current_step)
        return float(lr_policy.LR_POLICIES.get(self.param.lr_policy)(self.param, self.iter, step))

    def add_callback(self, on_start: Callable[[], Any], on_gradients_ready: Callable[[], Any]) -> None:
        """Calls `on_start()` before each iteration, `on_gradients_ready()` when the diffs are there unapplied."""
        for function in (on_start, on_gradients_ready):
            if not callable(function):
                raise WrongValue(f"add_callback takes two functions without arguments, not {function!r}")
        self.add_hook(Callback(on_start, on_gradients_ready))

    def share_weights(self, net: Net) -> None:
        """Makes `net` use the parameters of this solver's net."""
        net.share_with(self.net)

    def step(self, iterations: int) -> None:
        """Runs `iterations` iterations."""
        self._follow_mode()
        with postponed_refresh():
            super().step(iterations)

    def solve(self, resume_file: str | os.PathLike[str] | None = None) -> None:
        """Trains to max_iter, from the snapshot `resume_file` if given."""
        self._follow_mode()
        with postponed_refresh():
            super().solve(resume_file)

    def restore(self, path: str | os.PathLike[str]) -> None:
        self._follow_mode()
        super().restore(path)
        refresh_arrays()

    def apply_update(self) -> None:
        """Updates the weights from the diffs that the net holds."""
        self._follow_mode()
        super().apply_update()
        refresh_arrays()

    def test_all(self) -> list[core.TestScores]:
        self._follow_mode()
        with postponed_refresh():
            return super().test_all()

    def _follow_mode(self) -> None:
        device = mode.current().device
        if not self._follows or device == self.device:
            return
        if any(not isinstance(hook, Callback) for hook in self.hooks):
            raise SolverError(f"this solver was made on {self.device}, and what its hooks keep cannot move to "
                              f"{device}; choose the mode before the solver is made")
        for net in (self.net, *self.test_nets):
            net.follow_mode()
        self.history = [[tensor.to(device) for tensor in slots] for slots in self.history]
        self._losses = [loss.to(device) for loss in self._losses]
        self._smoothed = self._smoothed.to(device)
        self.device = device


class Callback(SolverHook):
    """The two functions given to `add_callback`."""

    name = "callback"

    def __init__(self, on_start: Callable[[], Any], on_gradients_ready: Callable[[], Any]) -> None:
        self._functions = on_start, on_gradients_ready

    def on_start(self, solver: core.Solver) -> None:
        refresh_arrays(now=True)
        self._functions[0]()

    def on_gradients_ready(self, solver: core.Solver) -> None:
        refresh_arrays(now=True)
        self._functions[1]()


class SGDSolver(Solver):
    """Trains with SGD, whatever type the file names."""

    type = "SGD"


class NesterovSolver(SGDSolver):
    """Trains with Nesterov's momentum, whatever type the file names."""

    type = "Nesterov"


class AdaGradSolver(SGDSolver):
    """Trains with AdaGrad, whatever type the file names."""

    type = "AdaGrad"


class RMSPropSolver(SGDSolver):
    """Trains with RMSProp, whatever type the file names."""

    type = "RMSProp"


class AdaDeltaSolver(SGDSolver):
    """Trains with AdaDelta, whatever type the file names."""

    type = "AdaDelta"


class AdamSolver(SGDSolver):
    """Trains with Adam, whatever type the file names."""

    type = "Adam"


def get_solver(solver_file: str | os.PathLike[str] | Document, **options: Any) -> Solver:
    """The solver of the type that the file names; see `Solver` for `options`."""
    document = solver_file if isinstance(solver_file, Document) else _read(solver_file)
    classes = {cls.type: cls for cls in (SGDSolver, *SGDSolver.__subclasses__())}
    return classes.get(document.message.type, Solver)(document, **options)


def _read(path: str | os.PathLike[str]) -> Document:
    return proto.read_text(os.fspath(path), "SolverParameter")
