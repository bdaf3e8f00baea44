"""Weight decay (SolverParameter.regularization_type): what is added to the diffs before the update rule."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..registry import Registry

#: A regularization adds decay times its derivative to `grads` in place: (grads, weights, decay).
Regularization = Callable[[list[Tensor], list[Tensor], float], None]
REGULARIZATIONS: Registry[Regularization] = Registry("regularization_type")


@REGULARIZATIONS.add("L2")
def l2(grads: list[Tensor], weights: list[Tensor], decay: float) -> None:
    """g += decay * w"""
    torch._foreach_add_(grads, weights, alpha=decay)


@REGULARIZATIONS.add("L1")
def l1(grads: list[Tensor], weights: list[Tensor], decay: float) -> None:
    """g += decay * sign(w)"""
    torch._foreach_add_(grads, torch._foreach_sign(weights), alpha=decay)
