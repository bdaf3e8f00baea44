"""Pruning methods, one file each; every method is an entry of `METHODS`."""

from .afp import AFP
from .base import METHODS, PruneMethod, find_method, least, method_names, written
from .greg import GReg1, GReg2
from .one_shot import L1, L2, Largest, Random
from .reg import Goal, Reg
from .reg_row_reference import RegRowAsReference
from .regspa import RegSpa, RegSpaAsReference, nearest_rectangle
from .soft import ASFP, ASRFP, SFP, SRFP

__all__ = [
    "AFP", "ASFP", "ASRFP", "L1", "L2", "METHODS", "SFP", "SRFP", "GReg1", "GReg2", "Goal", "Largest", "PruneMethod",
    "Random", "Reg", "RegRowAsReference", "RegSpa", "RegSpaAsReference", "find_method", "least", "method_names",
    "nearest_rectangle", "written",
]
