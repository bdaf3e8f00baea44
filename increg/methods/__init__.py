"""Pruning methods, one file each; every method is an entry of `METHODS`."""

from .base import METHODS, PruneMethod, find_method, least, method_names, written
from .one_shot import L1, L2, Largest, OneShot, Random
from .reg import Goal, Reg
from .reg_row_reference import RegRowAsReference
from .regspa import RegSpa, RegSpaAsReference, nearest_rectangle

__all__ = [
    "L1", "L2", "METHODS", "Goal", "Largest", "OneShot", "PruneMethod", "Random", "Reg", "RegRowAsReference", "RegSpa",
    "RegSpaAsReference", "find_method", "least", "method_names", "nearest_rectangle", "written",
]
