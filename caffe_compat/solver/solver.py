"""`Solver`: Caffe's training loop. `step` is one screen long and in Caffe's order; hooks see it at fixed points."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import proto
from ..net import Net
from ..net_builder import Learnable
from ..proto import Document
from ..weights import LoadReport
from . import debug_info, lr_policy, setup, snapshot
from .actions import Action, ActionQueue
from .denormals import flushed_denormals
from .hooks import SolverHook
from .lr_policy import LR_POLICIES
from .regularize import REGULARIZATIONS, l2
from .rules import RULES

log = logging.getLogger(__name__)


@dataclass
class TestScores:
    """Means over a test net's test_iter batches: one (blob name, value) for every value of every output blob."""

    net_id: int
    scores: list[tuple[str, float]]
    loss: float


@dataclass
class _Group:
    """Parameters that share lr_mult and decay_mult, so that one multi-tensor operation updates them all."""

    indices: list[int]
    lr_mult: float
    decay_mult: float


class Solver:
    """Trains the net that a SolverParameter names: a path (of a prototxt) or a Document.

    `device` defaults to what `solver_mode` and `device_id` ask for, where there is such a GPU. `keep_blobs` says
    which blobs of the training net have data and diffs after a step (see `Net`); test nets keep their outputs alone.
    `caffe_arithmetic` trains by Caffe's own algorithms, which is slower, where others round differently (see `Net`).

    Raises `SolverError` for settings that cannot be trained with, and what `Net` raises.
    """

    def __init__(self, source: str | os.PathLike[str] | Document, *, device: torch.device | str | None = None,
                 keep_blobs: bool = True, caffe_arithmetic: bool = False) -> None:
        document = source if isinstance(source, Document) else proto.read_text(os.fspath(source), "SolverParameter")
        self.document = document
        self.param: Any = document.message
        self.dialect = document.dialect
        self.where = document.path or "solver"
        for note in document.notes:
            log.warning("%s: %s", self.where, note)
        setup.check(self.param, self.where)
        setup.complete_snapshot_prefix(self.param, document.path)
        lr_policy.check(self.param, self.where)
        self.device = torch.device(device) if device is not None else setup.device_of(self.param)
        log.info("Initializing solver from parameters: \n%s", proto.dump_text(self.param))
        self.net: Net = setup.train_net(document, self.make_net, keep_blobs=keep_blobs or self.param.debug_info,
                                        caffe_arithmetic=caffe_arithmetic)
        self.test_nets: list[Net] = setup.test_nets(document, self.make_net)
        self.rule = RULES.get(self.param.type, self.where)(self.param, self.where, fused=not caffe_arithmetic)
        self._regularize = REGULARIZATIONS.get(self.param.regularization_type, self.where)
        self._folds_decay = self.rule.fused and self.rule.folds_decay and self._regularize is l2

        self.iter = 0
        self.current_step = 0
        self.rate = 0.0
        self.hooks: list[SolverHook] = []
        self.actions = ActionQueue()
        self.stopped = False
        #: Whether the snapshot last restored told where the data were.
        self.data_restored = False
        self._rate: float | None = None
        self._weight_decay: float | None = None
        self._multiplier = 1
        self._begun = False
        self._losses: list[Tensor] = []
        self._smoothed = torch.zeros((), device=self.device)
        self._diverged = False
        self._clock = (0.0, 0)
        self._start = 0
        self.history: list[list[Tensor]] = [
            [torch.zeros_like(learnable.blob.tensor, requires_grad=False) for _ in range(self.rule.slots)]
            for learnable in self.net.learnable]
        self._groups = self._group()
        for paths in setup.weights(self.param):
            self.load_weights(paths)
        log.info("Solver scaffolding done.")

    def make_net(self, document: Document, phase: int, **options: Any) -> Net:
        """Builds one of the solver's nets."""
        return Net(document, phase, device=self.device, **options)

    def _group(self) -> list[_Group]:
        groups: dict[tuple[float, float], _Group] = {}
        for index, learnable in enumerate(self.net.learnable):
            if learnable.lr_mult == 0 and not self.rule.moves_when_frozen:
                continue
            key = learnable.lr_mult, learnable.decay_mult
            groups.setdefault(key, _Group([], *key)).indices.append(index)
        return list(groups.values())

    # -- what hooks and users do ------------------------------------------------------------------------------------

    @property
    def learnable(self) -> list[Learnable]:
        """The parameters that are updated, `history[i]` belonging to `learnable[i]`."""
        return self.net.learnable

    @property
    def smoothed_loss(self) -> Tensor:
        """The loss shown: the mean over average_loss iterations, a scalar on the device."""
        return self._smoothed

    def add_hook(self, hook: SolverHook) -> None:
        """Attaches a hook; hooks run in the order they were added."""
        self.hooks.append(hook)

    def set_rate(self, rate: float | None) -> None:
        """Holds the learning rate at `rate` from the next update on; None gives it back to lr_policy."""
        self._rate = rate

    def set_weight_decay(self, decay: float | None) -> None:
        """Holds weight_decay at `decay` from the next update on; None gives it back to the settings."""
        self._weight_decay = decay

    def set_pass_multiplier(self, multiplier: int) -> None:
        """Runs `multiplier * iter_size` passes an iteration from the next one on. The diffs of all passes are summed and
        divided by iter_size alone, so a multiplier is a larger step, as in the reference's iter_size_prune and its kin."""
        self._multiplier = multiplier

    def stop(self) -> None:
        """Ends training after the current iteration."""
        self.stopped = True

    def load_weights(self, paths: str | Sequence[str]) -> list[LoadReport]:
        """Copies weights into the net from one or more files (a list, or separated by commas, as in Caffe's --weights)."""
        names = paths.split(",") if isinstance(paths, str) else list(paths)
        reports = []
        for name in names:
            log.info("Finetuning from %s", name.strip())
            reports.append(self.net.copy_from(name.strip()))
            for net in self.test_nets:
                if net.params.keys() - self.net.params.keys():  # the others are shared before each test
                    net.copy_from(name.strip())
        self._tell("on_weights_loaded")
        return reports

    def snapshot(self, infix: str = "") -> str:
        """Writes `<snapshot_prefix><infix>_iter_<iter>.caffemodel` and `.solverstate`; returns the latter's path."""
        return snapshot.save(self, infix)

    def restore(self, path: str | os.PathLike[str]) -> None:
        """Takes weights, history and iteration back from a snapshot, Caffe's own or ours.

        One of ours also brings back data positions and random states, so that training goes on exactly; after one that
        Caffe wrote the data start at the first item, as they do in Caffe (but see `skip_data`).
        """
        snapshot.load(self, os.fspath(path))
        self._tell("on_weights_loaded")

    def skip_data(self, iterations: int) -> None:
        """Lets the training net's data layers read what so many iterations would, for nothing: then a run restored from a
        snapshot of Caffe's goes on with the data that the run which wrote it saw next. Each iteration is taken to make as
        many passes as the next one will."""
        sources = [layer for layer in self.net.layers if layer.is_source and layer.type != "Input"]
        for _ in range(iterations * self.param.iter_size * self._multiplier):
            for layer in sources:
                layer.forward()

    # -- the loop ---------------------------------------------------------------------------------------------------

    def solve(self, resume: str | os.PathLike[str] | None = None, *, skip_data: bool = False) -> None:
        """Trains to max_iter, from the snapshot `resume` if given, with its data skipped if `skip_data` asks for that and it
        does not tell where they were; writes a last snapshot unless told not to."""
        log.info("Solving %s", self.net.name)
        log.info("Learning Rate Policy: %s", self.param.lr_policy)
        if resume is not None:
            log.info("Restoring previous solver status from %s", resume)
            self.restore(resume)
            if skip_data and not self.data_restored:
                self.skip_data(self.iter)
        self.stopped = False
        self.step(self.param.max_iter - self.iter)
        if self.param.snapshot_after_train and not (self.param.snapshot and self.iter % self.param.snapshot == 0):
            self.snapshot()
        if self.stopped:
            self._tell("on_train_end")
            log.info("Optimization stopped early.")
            return
        if self.param.display and self.iter % self.param.display == 0:
            with torch.no_grad():
                self.net.run()
            if self.param.debug_info and self.param.display == 1:  # Caffe shows it if it showed the last iteration
                debug_info.show_forward(self.net)
            self._smooth(self.net.loss)
            log.info("Iteration %d, loss = %g", self.iter, self._smoothed)
        if self.param.test_interval and self.iter % self.param.test_interval == 0:
            self.test_all()
        self._tell("on_train_end")
        log.info("Optimization Done.")

    def step(self, iterations: int) -> None:
        """Runs `iterations` iterations, fewer if a hook, a signal or `stop` ends it."""
        last = self.iter + iterations
        self._losses.clear()
        self._start = self.iter
        self._clock = (time.perf_counter(), self.iter)
        with flushed_denormals():
            if not self._begun:
                self._begun = True
                self._tell("on_train_begin")
            while self.iter < last and not self.stopped:
                self._iterate()

    def _iterate(self) -> None:
        param = self.param
        self.net.clear_param_diffs()
        if param.test_interval and self.iter % param.test_interval == 0 and (self.iter > 0 or param.test_initialization):
            self.test_all()
            if self.stopped:
                return
        self._tell("on_start")
        passes = self._multiplier * param.iter_size
        shown = bool(param.display) and self.iter % param.display == 0
        loss = self._forward_backward(shown)
        for _ in range(passes - 1):
            loss = loss + self._forward_backward(shown)
        self._smooth(loss / passes if passes > 1 else loss)
        if shown:
            self._display()
        self._tell("on_gradients_ready")
        self.apply_update()
        self._tell("on_updated")
        self.iter += 1
        request = self.actions.take()
        if (param.snapshot and self.iter % param.snapshot == 0) or request is Action.SNAPSHOT:
            self.snapshot()
            self._tell("on_snapshot")
        if request is Action.STOP:
            self.stopped = True

    def _forward_backward(self, shown: bool) -> Tensor:
        if shown and self.param.debug_info:
            return debug_info.forward_backward(self.net)
        return self.net.forward_backward()

    @torch.no_grad()
    def apply_update(self) -> None:
        """Turns the summed diffs into an update: clip, divide by iter_size, decay, hooks, rule, weights -= delta."""
        param = self.param
        before, self.current_step = self.current_step, lr_policy.next_step(param, self.iter, self.current_step)
        if param.lr_policy == "multistep" and self.current_step != before:
            log.info("MultiStep Status: Iteration %d, step = %d", self.iter, self.current_step)
        rate = np.float32(self._rate) if self._rate is not None else self.learning_rate()
        self.rate = float(rate)
        if param.display and self.iter % param.display == 0:
            log.info("Iteration %d, lr = %g", self.iter, rate)
        for group in self._groups:
            for index in group.indices:
                blob = self.learnable[index].blob
                if blob.grad is None:
                    blob.grad = torch.zeros_like(blob.tensor, requires_grad=False)
        if param.clip_gradients >= 0:
            self._clip()
        for group in self._groups:
            weights, grads = self._weights(group), self._grads(group)
            if param.iter_size > 1:
                torch._foreach_mul_(grads, 1 / param.iter_size)
            decay = self._decay(group)
            if decay and not self._folds_decay:
                self._regularize(grads, weights, decay)
        self._tell("on_regularize")
        for group in self._groups:
            history = [[self.history[index][slot] for index in group.indices] for slot in range(self.rule.slots)]
            self.rule.update(self._weights(group), self._grads(group), history, float(rate * np.float32(group.lr_mult)),
                             self._decay(group) if self._folds_decay else 0.0, self.iter)

    def _decay(self, group: _Group) -> float:
        decay = self.param.weight_decay if self._weight_decay is None else self._weight_decay
        return float(np.float32(decay) * np.float32(group.decay_mult))

    def learning_rate(self) -> np.float32:
        """What lr_policy gives at the current iteration."""
        return np.float32(LR_POLICIES.get(self.param.lr_policy)(self.param, self.iter, self.current_step))

    def _weights(self, group: _Group) -> list[Tensor]:
        return [self.learnable[index].blob.tensor for index in group.indices]

    def _grads(self, group: _Group) -> list[Tensor]:
        return [self.learnable[index].blob.grad for index in group.indices]

    def _clip(self) -> None:
        """Scales all diffs down to an L2 norm of clip_gradients; says so where asking costs no wait for the device."""
        grads = [learnable.blob.grad for learnable in self.learnable if learnable.blob.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
        limit = self.param.clip_gradients
        scale = (limit / norm).clamp(max=1)
        if self.device.type == "cpu" and norm > limit:
            log.info("Gradient clipping: scaling down gradients (L2 norm %g > %g) by scale factor %g", norm, limit, scale)
        torch._foreach_mul_(grads, scale)

    # -- test nets --------------------------------------------------------------------------------------------------

    def test_all(self) -> list[TestScores]:
        """Runs every test net over its test_iter batches with the current weights."""
        results = []
        for net_id in range(len(self.test_nets)):
            if self.stopped:
                break
            results.append(self.test(net_id))
        return results

    @torch.no_grad()
    def test(self, net_id: int = 0) -> TestScores:
        """Runs one test net; logs and returns the means of its outputs."""
        log.info("Iteration %d, Testing net (#%d)", self.iter, net_id)
        net, batches = self.test_nets[net_id], self.param.test_iter[net_id]
        net.share_with(self.net)
        totals: dict[str, Tensor] = {}
        loss = torch.zeros((), device=self.device)
        for _ in range(batches):
            self._obey_while_testing()
            if self.stopped:
                log.info("Test interrupted.")
                return TestScores(net_id, [], 0.0)
            net.run()
            if self.param.debug_info:
                debug_info.show_forward(net)
            for name in net.outputs:
                tensor = net.blobs[name].tensor
                totals[name] = totals[name] + tensor if name in totals else tensor
            if self.param.test_compute_loss:
                loss = loss + net.loss
        if self.param.test_compute_loss:
            log.info("Test loss: %g", loss / batches)
        means = [(name, value / batches) for name, total in totals.items() for value in total.flatten().tolist()]
        for i, (name, value) in enumerate(means):
            log.info("    Test net output #%d: %s", i, _output(name, value, net))
        scores = TestScores(net_id, means, float(loss) / batches)
        self._tell("on_tested", scores)
        return scores

    def _obey_while_testing(self) -> None:
        while (request := self.actions.take()) is not Action.NONE:
            if request is Action.SNAPSHOT:
                self.snapshot()
            else:
                self.stopped = True

    # -- what is shown ----------------------------------------------------------------------------------------------

    def _smooth(self, loss: Tensor) -> None:
        """Caffe's running mean over the last average_loss iterations, kept on the device."""
        length = self.param.average_loss
        if len(self._losses) < length:
            self._losses.append(loss)
            size = len(self._losses)
            self._smoothed = (self._smoothed * (size - 1) + loss) / size if size > 1 else loss
        else:
            index = (self.iter - self._start) % length
            self._smoothed = self._smoothed + (loss - self._losses[index]) / length if length > 1 else loss
            self._losses[index] = loss

    def _display(self) -> None:
        now, since = time.perf_counter(), self._clock
        done, seconds = self.iter - since[1], now - since[0]
        log.info("Iteration %d (%g iter/s, %gs/%d iters), loss = %g", self.iter, done / seconds if seconds else 0.0, seconds,
                 self.param.display, self._smoothed)
        self._clock = (now, self.iter)
        if not (self._diverged or self._smoothed.isfinite()):
            self._diverged = True
            log.warning("Iteration %d: training has diverged, the loss is not a number any more. Lower base_lr, set "
                        "clip_gradients, or start from other weights", self.iter)
        index = 0
        for name in self.net.outputs:
            for value in self.net.blobs[name].tensor.detach().flatten().tolist():
                log.info("    Train net output #%d: %s", index, _output(name, value, self.net))
                index += 1

    def _tell(self, event: str, *args: Any) -> None:
        for hook in self.hooks:
            getattr(hook, event)(self, *args)


def _output(name: str, value: float, net: Net) -> str:
    weight = net.loss_weights.get(name)
    return f"{name} = {value:g}" + (f" (* {weight:g} = {weight * value:g} loss)" if weight else "")
