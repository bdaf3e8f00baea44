"""Sums of |w| and w^2 over the rows or the columns of a weight matrix.

Sums over each row go through a large matrix in parts on a CPU, parts that stay in its cache: half the time and less.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

#: torch.abs or torch.square.
Function = Callable[..., Tensor]
#: How many values are worked on at once on a CPU.
PART = 1 << 17


@cache
def _all_rows(count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.arange(count, device=device), torch.zeros(1, dtype=torch.long, device=device)


def sum_of_rows(matrix: Tensor) -> Tensor:
    """The sum of the rows of a contiguous matrix, (columns,).

    They are added one after the other, as the reference adds norms. `torch.sum` adds in another order, which changes the
    ranks of nearly equal groups; this operation does not, and is as fast.
    """
    return torch.embedding_bag(matrix, *_all_rows(len(matrix), matrix.device))[0][0]


def over_rows(matrix: Tensor, function: Function) -> Tensor:
    """The sum of the rows of function(matrix), (columns,), added one after the other."""
    return sum_of_rows(function(matrix))


def in_rows_in_order(matrix: Tensor, function: Function) -> Tensor:
    """The sum of function(matrix) over each row, (rows,), added one column after the other."""
    if _at_once(matrix):
        return sum_of_rows(function(matrix).T.contiguous())
    return torch.cat([sum_of_rows(function(rows.T.contiguous())) for rows in matrix.split(max(8, PART // matrix.shape[1]))])


def in_rows(matrix: Tensor, function: Function) -> Tensor:
    """The sum of function(matrix) over each row, (rows,), in any order."""
    if function is torch.square:
        return torch.linalg.vector_norm(matrix, dim=1).square_()
    if _at_once(matrix):
        return function(matrix).sum(1)
    return torch.cat([function(rows).sum(1) for rows in matrix.split(max(1, PART // matrix.shape[1]))])


def _at_once(matrix: Tensor) -> bool:
    return matrix.device.type != "cpu" or matrix.numel() <= PART
