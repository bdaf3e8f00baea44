"""Caffe's learning rate policies (SolverParameter.lr_policy), one function each, in float32 as Caffe computes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import SolverError
from ..registry import Registry

#: A policy maps (SolverParameter, iteration, step of multistep) to a rate.
Policy = Callable[[Any, int, int], np.float32]
LR_POLICIES: Registry[Policy] = Registry("lr_policy")

_one = np.float32(1)


@LR_POLICIES.add("fixed")
def fixed(param: Any, iteration: int, step: int) -> np.float32:
    """base_lr"""
    return np.float32(param.base_lr)


@LR_POLICIES.add("step")
def step(param: Any, iteration: int, step: int) -> np.float32:
    """base_lr * gamma ^ floor(iter / stepsize)"""
    return np.float32(param.base_lr) * np.float32(param.gamma) ** np.float32(iteration // param.stepsize)


@LR_POLICIES.add("exp")
def exp(param: Any, iteration: int, step: int) -> np.float32:
    """base_lr * gamma ^ iter"""
    return np.float32(param.base_lr) * np.float32(param.gamma) ** np.float32(iteration)


@LR_POLICIES.add("inv")
def inv(param: Any, iteration: int, step: int) -> np.float32:
    """base_lr * (1 + gamma * iter) ^ -power"""
    return np.float32(param.base_lr) * (_one + np.float32(param.gamma) * np.float32(iteration)) ** -np.float32(param.power)


@LR_POLICIES.add("multistep")
def multistep(param: Any, iteration: int, step: int) -> np.float32:
    """base_lr * gamma ^ (number of stepvalues reached)"""
    return np.float32(param.base_lr) * np.float32(param.gamma) ** np.float32(step)


@LR_POLICIES.add("poly")
def poly(param: Any, iteration: int, step: int) -> np.float32:
    """base_lr * (1 - iter / max_iter) ^ power"""
    left = _one - np.float32(iteration) / np.float32(param.max_iter)
    if left < 0 and not float(param.power).is_integer():
        raise SolverError(f"lr_policy poly is not defined past max_iter ({param.max_iter}) with power {param.power:g}: "
                          f"iteration {iteration}; raise max_iter")
    return np.float32(param.base_lr) * left ** np.float32(param.power)


@LR_POLICIES.add("sigmoid")
def sigmoid(param: Any, iteration: int, step: int) -> np.float32:
    """base_lr / (1 + exp(-gamma * (iter - stepsize))); gamma >= 0, so the rate rises"""
    exponent = -np.float32(param.gamma) * (np.float32(iteration) - np.float32(param.stepsize))
    with np.errstate(over="ignore"):
        return np.float32(param.base_lr) * (_one / (_one + np.exp(exponent)))


def next_step(param: Any, iteration: int, step: int) -> int:
    """SolverState.current_step at `iteration`: multistep advances by at most one step an iteration, as in Caffe."""
    if param.lr_policy == "step":
        return iteration // param.stepsize
    if param.lr_policy == "multistep" and step < len(param.stepvalue) and iteration >= param.stepvalue[step]:
        return step + 1
    return step


#: What a policy needs from the solver; Caffe reads a missing field as 0 (or fails at the first update).
_REQUIRED = {"step": ("gamma", "stepsize"), "exp": ("gamma",), "inv": ("gamma", "power"), "multistep": ("gamma",),
             "poly": ("power", "max_iter"), "sigmoid": ("gamma", "stepsize")}


def check(param: Any, where: str) -> None:
    """Raises if the policy is unknown or lacks one of its settings."""
    LR_POLICIES.get(param.lr_policy, where)
    if not param.HasField("base_lr"):
        raise SolverError(f"{where}: base_lr is not set")
    for name in _REQUIRED.get(param.lr_policy, ()):
        if not param.HasField(name):
            raise SolverError(f"{where}: lr_policy {param.lr_policy} needs {name}, which is not set")
    if param.HasField("gamma") and param.gamma < 0:
        raise SolverError(f"{where}: gamma is {param.gamma:g}, expected 0 or more")
    if "stepsize" in _REQUIRED.get(param.lr_policy, ()) and param.stepsize <= 0:
        raise SolverError(f"{where}: stepsize is {param.stepsize}, expected more than 0")
