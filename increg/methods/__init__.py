"""Pruning methods, one file each; every method is an entry of `METHODS`."""

from .afp import AFP
from .base import METHODS, PruneMethod, find_method, least, method_names, written
from .dsa import DSA
from .greg import GReg1, GReg2
from .one_shot import L1, L2, Largest, OneShot, Random
from .orthoreg import OrthoReg
from .ranked import RD, BNScale, Fisher, GlobalL1, GlobalL2, GraSP, Taylor
from .reg import Goal, Reg
from .reg_row_reference import RegRowAsReference
from .regspa import RegSpa, RegSpaAsReference, nearest_rectangle
from .soft import ASFP, ASRFP, SFP, SRFP

__all__ = [
    "AFP", "ASFP", "ASRFP", "DSA", "L1", "L2", "METHODS", "RD", "SFP", "SRFP", "BNScale", "Fisher", "GReg1", "GReg2",
    "GlobalL1", "GlobalL2", "Goal", "GraSP", "Largest", "OneShot", "OrthoReg", "PruneMethod", "Random", "Reg",
    "RegRowAsReference", "RegSpa", "RegSpaAsReference", "Taylor", "find_method", "least", "method_names",
    "nearest_rectangle", "written",
]
