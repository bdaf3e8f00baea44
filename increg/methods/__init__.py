"""Pruning methods, one file each; every method is an entry of `METHODS`."""

from .base import METHODS, Goal, PruneMethod
from .reg import RegCol, RegRow
from .reg_row_reference import RegRowAsReference
from .regspa import RegSpaCol, RegSpaColAsReference, nearest_rectangle

__all__ = [
    "METHODS", "Goal", "PruneMethod", "RegCol", "RegRow", "RegRowAsReference", "RegSpaCol", "RegSpaColAsReference",
    "nearest_rectangle",
]
