"""Sums of |w| and w^2 over the rows or the columns of a weight matrix.

They go through a large matrix in parts on a CPU, parts that stay in its cache: half the time and less.
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


def over_rows(matrix: Tensor, function: Function, in_order: bool = False) -> Tensor:
    """The sum of the rows of function(matrix), (columns,); with `in_order` added one after the other."""
    if in_order or _at_once(matrix):
        return sum_of_rows(function(matrix))
    step = max(8, PART // matrix.shape[1])
    part, ones, total = matrix.new_empty(step, matrix.shape[1]), matrix.new_ones(step), matrix.new_zeros(matrix.shape[1])
    across = part.T
    for rows in matrix.split(step):
        if len(rows) < step:  # the last one
            part, across, ones = part[:len(rows)], across[:, :len(rows)], ones[:len(rows)]
        function(rows, out=part)
        total.addmv_(across, ones)
    return total


def in_rows(matrix: Tensor, function: Function, in_order: bool = False) -> Tensor:
    """The sum of function(matrix) over each row, (rows,); with `in_order` added one column after the other."""
    if in_order:
        parts = [matrix] if _at_once(matrix) else matrix.split(max(8, PART // matrix.shape[1]))
        return torch.cat([sum_of_rows(function(rows.T.contiguous())) for rows in parts])
    if function is torch.square:
        return torch.linalg.vector_norm(matrix, dim=1).square_()
    if _at_once(matrix):
        return function(matrix).sum(1)
    return torch.cat([function(rows).sum(1) for rows in matrix.split(max(1, PART // matrix.shape[1]))])


def _at_once(matrix: Tensor) -> bool:
    return matrix.device.type != "cpu" or matrix.numel() <= PART
