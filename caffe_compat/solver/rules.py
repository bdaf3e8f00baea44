"""The six update rules (SolverParameter.type), in Caffe's arithmetic: the learning rate goes into the history.

A rule turns the diffs of several parameters of one rate into the deltas that are subtracted from their values, with
torch's multi-tensor operations: no loop over parameters on the GPU.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import SolverError
from ..registry import Registry
from .regularize import l2

Tensors = list[Tensor]


class UpdateRule:
    """One solver type. `slots` is the number of history tensors a parameter needs.

    With `fused` it may go through memory once where Caffe goes several times, which rounds a little differently, and
    takes L2 weight decay upon itself if it `folds_decay`.
    """

    slots: ClassVar[int] = 1
    #: Whether a history changes although its parameter's rate is 0.
    moves_when_frozen: ClassVar[bool] = True
    folds_decay: ClassVar[bool] = False

    def __init__(self, param: Any, where: str, fused: bool = False) -> None:
        self.param = param
        self.where = where
        self.fused = fused
        self.check()

    def check(self) -> None:
        """Raises `SolverError` for settings that the rule does not allow."""

    def update(self, weights: Tensors, grads: Tensors, history: list[Tensors], rate: float, decay: float,
               iteration: int) -> None:
        """Subtracts the deltas from `weights`, in place, after adding `decay` times the weights to `grads`; the rest is
        as in `deltas`."""
        if decay:
            l2(grads, weights, decay)
        torch._foreach_sub_(weights, self.deltas(grads, history, rate, iteration))

    def deltas(self, grads: Tensors, history: list[Tensors], rate: float, iteration: int) -> Tensors:
        """What to subtract from the parameters. `history` holds one list of tensors a slot, updated in place; `grads`
        may be overwritten; `rate` is the learning rate times lr_mult."""
        raise NotImplementedError


RULES: Registry[type[UpdateRule]] = Registry("solver type")


@RULES.add("SGD")
class SGD(UpdateRule):
    """h = momentum * h + rate * g;  delta = h"""

    moves_when_frozen = False
    folds_decay = hasattr(torch, "_fused_sgd_")

    def update(self, weights: Tensors, grads: Tensors, history: list[Tensors], rate: float, decay: float,
               iteration: int) -> None:
        # torch's kernel keeps no buffer without momentum, and takes all three for laid out alike, which gradients need not be
        alike = all(w.stride() == g.stride() == h.stride() for w, g, h in zip(weights, grads, history[0]))
        if not (self.fused and self.folds_decay and self.param.momentum and alike):
            super().update(weights, grads, history, rate, decay, iteration)
            return
        # Caffe's h is rate times torch's momentum buffer: scaling the gradient makes it so, with a rate of 1
        torch._fused_sgd_(weights, grads, history[0], weight_decay=rate * decay, momentum=self.param.momentum, lr=1.0,
                          dampening=0.0, nesterov=False, maximize=False, is_first_step=False,
                          grad_scale=self._inverse(rate, weights[0].device))

    @cache  # noqa: B019 - a run knows few rates, and a rule lives as long as its solver
    def _inverse(self, rate: float, device: torch.device) -> Tensor:
        return torch.tensor(1 / rate if rate else math.inf, device=device)

    def deltas(self, grads: Tensors, history: list[Tensors], rate: float, iteration: int) -> Tensors:
        torch._foreach_mul_(history[0], self.param.momentum)
        torch._foreach_add_(history[0], grads, alpha=rate)
        return history[0]


@RULES.add("Nesterov")
class Nesterov(UpdateRule):
    """h' = momentum * h + rate * g;  delta = (1 + momentum) * h' - momentum * h"""

    moves_when_frozen = False

    def deltas(self, grads: Tensors, history: list[Tensors], rate: float, iteration: int) -> Tensors:
        momentum = self.param.momentum
        before = torch._foreach_mul(history[0], momentum)
        torch._foreach_mul_(history[0], momentum)
        torch._foreach_add_(history[0], grads, alpha=rate)
        delta = torch._foreach_mul(history[0], 1 + momentum)
        torch._foreach_sub_(delta, before)
        return delta


class _WithoutMomentum(UpdateRule):
    def check(self) -> None:
        if self.param.momentum:
            raise SolverError(f"{self.where}: momentum is {self.param.momentum:g}, which {type(self).__name__} does not "
                              "use; take it out")


@RULES.add("AdaGrad")
class AdaGrad(_WithoutMomentum):
    """h += g^2;  delta = rate * g / (sqrt(h) + delta)"""

    def deltas(self, grads: Tensors, history: list[Tensors], rate: float, iteration: int) -> Tensors:
        torch._foreach_addcmul_(history[0], grads, grads)
        return _scaled_by_root(grads, history[0], rate, self.param.delta)


@RULES.add("RMSProp")
class RMSProp(_WithoutMomentum):
    """h = rms_decay * h + (1 - rms_decay) * g^2;  delta = rate * g / (sqrt(h) + delta)"""

    def check(self) -> None:
        super().check()
        if not 0 <= self.param.rms_decay < 1:
            raise SolverError(f"{self.where}: rms_decay is {self.param.rms_decay:g}, expected 0 <= rms_decay < 1")

    def deltas(self, grads: Tensors, history: list[Tensors], rate: float, iteration: int) -> Tensors:
        decay = self.param.rms_decay
        torch._foreach_mul_(history[0], decay)
        torch._foreach_addcmul_(history[0], grads, grads, 1 - decay)
        return _scaled_by_root(grads, history[0], rate, self.param.delta)


@RULES.add("AdaDelta")
class AdaDelta(UpdateRule):
    """h1 = m * h1 + (1 - m) * g^2;  u = g * sqrt((h2 + delta) / (h1 + delta));  h2 = m * h2 + (1 - m) * u^2;
    delta = rate * u"""

    slots = 2

    def deltas(self, grads: Tensors, history: list[Tensors], rate: float, iteration: int) -> Tensors:
        momentum, delta = self.param.momentum, self.param.delta
        torch._foreach_mul_(history[0], momentum)
        torch._foreach_addcmul_(history[0], grads, grads, 1 - momentum)
        ratio = torch._foreach_add(history[1], delta)
        torch._foreach_div_(ratio, torch._foreach_add(history[0], delta))
        torch._foreach_sqrt_(ratio)
        torch._foreach_mul_(grads, ratio)
        torch._foreach_mul_(history[1], momentum)
        torch._foreach_addcmul_(history[1], grads, grads, 1 - momentum)
        torch._foreach_mul_(grads, rate)
        return grads


@RULES.add("Adam")
class Adam(UpdateRule):
    """m = b1 * m + (1 - b1) * g;  v = b2 * v + (1 - b2) * g^2;
    delta = rate * sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + delta), with b1 = momentum, b2 = momentum2, t = iter + 1.
    Caffe adds `delta` to the uncorrected root."""

    slots = 2

    def check(self) -> None:
        for name in ("momentum", "momentum2"):
            if not 0 <= getattr(self.param, name) < 1:  # the correction divides by 0, or takes the root of less
                raise SolverError(f"{self.where}: {name} is {getattr(self.param, name):g}, expected 0 <= {name} < 1")

    def deltas(self, grads: Tensors, history: list[Tensors], rate: float, iteration: int) -> Tensors:
        first, second, t = self.param.momentum, self.param.momentum2, iteration + 1
        torch._foreach_mul_(history[0], first)
        torch._foreach_add_(history[0], grads, alpha=1 - first)
        torch._foreach_mul_(history[1], second)
        torch._foreach_addcmul_(history[1], grads, grads, 1 - second)
        correction = math.sqrt(1 - second**t) / (1 - first**t)
        return _scaled_by_root(history[0], history[1], rate * correction, self.param.delta)


def _scaled_by_root(values: Tensors, squares: Tensors, rate: float, delta: float) -> Tensors:
    root = torch._foreach_sqrt(squares)
    torch._foreach_add_(root, delta)
    result = torch._foreach_div(values, root)
    torch._foreach_mul_(result, rate)
    return result
