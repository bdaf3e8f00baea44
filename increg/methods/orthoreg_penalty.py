"""OrthoReg's regularizer (Lubana and Dick, arXiv 2009.05014): factor * sum over layers of c * ||P P^T - I||_1.

P has a filter in each row, its bias as the last column; the norm is the sum of absolute values of all entries, diagonal
included. The gradient is written out, 2 factor c sign(P P^T - I) P, which is two products of matrices and no graph. The
order of P's columns is nobody's business, so weights are read as they are stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor


@dataclass(frozen=True)
class Term:
    """How a layer enters the sum.

    by_filters: P P^T - I, else P^T P - I
    size:       its coefficient is proportional to this number's root
    like:       the index of a layer whose coefficient it takes instead of its own (which still counts in the sum)
    """

    by_filters: bool
    size: int
    like: int | None = None


def term(shape: Sequence[int], first: bool, depthwise: bool = False, like: int | None = None) -> Term:
    """The term of a convolution whose weight has `shape` (filters, inputs of a group, kernel...), by the authors' rules:
    the first one, depthwise and 1x1 ones by inputs; the root of the filters for the first and the depthwise, of the inputs
    for 1x1, of P's smaller side for the others."""
    filters, inputs, positions = shape[0], shape[1], 1
    for size in shape[2:]:
        positions *= size
    if first or depthwise:
        return Term(False, filters, like)
    if positions == 1:
        return Term(False, inputs, like)
    return Term(True, min(filters, inputs * positions), like)


def coefficients(terms: Sequence[Term]) -> list[float]:
    """c of every layer: its root by the sum of all roots."""
    total = sum(sqrt(one.size) for one in terms)
    own = [sqrt(one.size) / total for one in terms]
    return [own[i if one.like is None else one.like] for i, one in enumerate(terms)]


def stored_matrix(weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """P: (filters, columns), columns in the order they are stored, a view; with a bias one more column, a copy."""
    stored = weight.permute(0, 2, 3, 1) if weight.dim() == 4 and not weight.is_contiguous() else weight
    matrix = stored.flatten(1)
    return matrix if bias is None else torch.cat([matrix, bias[:, None]], 1)


def deviation(matrix: Tensor, by_filters: bool) -> Tensor:
    """P P^T - I or P^T P - I."""
    gram = matrix @ matrix.T if by_filters else matrix.T @ matrix
    gram.diagonal().sub_(1)
    return gram


def value(weight: Tensor, bias: Tensor | None, by_filters: bool) -> Tensor:
    """The layer's sum of absolute values, before its coefficient; a scalar."""
    return deviation(stored_matrix(weight, bias), by_filters).abs().sum()


def add_gradient(weight: Tensor, bias: Tensor | None, by_filters: bool, scale: float, grad: Tensor,
                 bias_grad: Tensor | None) -> None:
    """Adds the gradient of scale * value to `grad` and `bias_grad`, which are shaped as weight and bias, in place."""
    matrix = stored_matrix(weight, bias)
    sign = deviation(matrix, by_filters).sign_()
    change = sign @ matrix if by_filters else matrix @ sign
    if bias is not None:
        bias_grad.add_(change[:, -1], alpha=2 * scale)
        change = change[:, :-1]
    if weight.dim() == 4 and not weight.is_contiguous():
        change = change.unflatten(1, (*weight.shape[2:], weight.shape[1])).permute(0, 3, 1, 2)
    grad.add_(change.view_as(weight) if bias is None else change.reshape(weight.shape), alpha=2 * scale)
