"""Importance estimators: how much a filter matters, from its parameters and a statistic of them, one registry entry each.

Those that OrthoReg (Lubana and Dick, arXiv 2009.05014) compares with, as its authors' code computes them. What is not in
the papers' formulas: Fisher squares the sum of parameter times mean gradient (no mean of squared sample gradients); Taylor
takes batch normalization's scale alone, not its shift; RD normalizes each parameter tensor by its own mean and does not
multiply by the parameter. All take filters as they are left: pruned filters and columns cut away.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from caffe_compat.errors import SolverError
from caffe_compat.registry import Registry


@dataclass(frozen=True)
class Filters:
    """The parameters of one layer's filters, or a statistic of each of them.

    weight: (filters, columns)      bias: (filters,), None without one
    scale:  (filters,), the Scale behind the layer's BatchNorm, None without one
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: Tensor | None = None


#: (parameters, their statistic) -> one value a filter, the larger the more important.
Importance = Callable[[Filters, Filters], Tensor]


@dataclass(frozen=True)
class Estimator:
    """An importance and the statistic it is taken from: "" for none, "gradient", "curvature" (Hessian times gradient) or
    "sensitivity" (squared gradients of the log probabilities); see `statistics`."""

    importance: Importance
    statistic: str = ""
    needs_scale: bool = False

    def __call__(self, filters: Filters, statistic: Filters | None = None) -> Tensor:
        """The importance of each filter, (filters,). Raises `SolverError` where a Scale is needed and there is none."""
        if self.needs_scale and filters.scale is None:
            raise SolverError("this importance is that of a BatchNorm's scale, but no BatchNorm with a Scale follows")
        return self.importance(filters, filters if statistic is None else statistic)


ESTIMATORS: Registry[Estimator] = Registry("importance estimator")


def _estimator(name: str, statistic: str = "", needs_scale: bool = False) -> Callable[[Importance], Importance]:
    def register(importance: Importance) -> Importance:
        ESTIMATORS.add(name)(Estimator(importance, statistic, needs_scale))
        return importance

    return register


@_estimator("L1")
def l1(filters: Filters, _: Filters) -> Tensor:
    """sum |w| of the filter (Li et al., ICLR 2017)."""
    return filters.weight.abs().sum(1)


@_estimator("L2")
def l2(filters: Filters, _: Filters) -> Tensor:
    """The filter's L2 norm (He et al., IJCAI 2018)."""
    return torch.linalg.vector_norm(filters.weight, dim=1)


@_estimator("BNScale", needs_scale=True)
def bn_scale(filters: Filters, _: Filters) -> Tensor:
    """|scale| / columns of the filter (Liu et al., ICCV 2017; the division is OrthoReg's, in its VGG nets)."""
    return filters.scale.abs() / max(1, filters.weight.shape[1])


@_estimator("PlainBNScale", needs_scale=True)
def plain_bn_scale(filters: Filters, _: Filters) -> Tensor:
    """|scale|, as in OrthoReg's other nets."""
    return filters.scale.abs()


@_estimator("Taylor", "gradient", needs_scale=True)
def taylor(filters: Filters, gradient: Filters) -> Tensor:
    """(scale * its mean gradient)^2 (TFO; Molchanov et al., ICLR 2017 and CVPR 2019)."""
    return (filters.scale * gradient.scale).square()


@_estimator("Fisher", "gradient")
def fisher(filters: Filters, gradient: Filters) -> Tensor:
    """(sum over weights and bias of parameter * mean gradient)^2 (after Theis et al., arXiv 1801.05787)."""
    return _inner(filters, gradient).square()


@_estimator("GraSP", "curvature")
def grasp(filters: Filters, curvature: Filters) -> Tensor:
    """Signed: sum over weights and bias of parameter * (Hessian times gradient) (Wang et al., ICLR 2020). The most negative
    go first."""
    return _inner(filters, curvature)


@_estimator("RD", "sensitivity")
def rate_distortion(filters: Filters, sensitivity: Filters) -> Tensor:
    """Sum over weights and bias of the sensitivity, each tensor's divided by its mean (Gao et al., ICML 2019, KL form)."""
    total = _relative(sensitivity.weight).sum(1)
    return total if sensitivity.bias is None else total + _relative(sensitivity.bias)


def _inner(filters: Filters, statistic: Filters) -> Tensor:
    total = (filters.weight * statistic.weight).sum(1)
    return total if filters.bias is None else total.addcmul(filters.bias, statistic.bias)


def _relative(values: Tensor) -> Tensor:
    """Values by their mean; zeros where that is 0."""
    mean = values.mean()
    return values / torch.where(mean == 0, torch.ones_like(mean), mean)
