"""Pruning methods, one file each; every method is an entry of `METHODS`."""

from .base import METHODS, PruneMethod, find_method, least, method_names, written
from .dsa import DSA
from .one_shot import L1, L2, Largest, OneShot, Random
from .orthoreg import OrthoReg
from .ranked import RD, BNScale, Fisher, GlobalL1, GlobalL2, GraSP, Ranked, Taylor
from .reg import Goal, Reg
from .reg_row_reference import RegRowAsReference
from .regspa import RegSpa, RegSpaAsReference, nearest_rectangle

__all__ = [
    "DSA", "L1", "L2", "METHODS", "RD", "BNScale", "Fisher", "GlobalL1", "GlobalL2", "Goal", "GraSP", "Largest", "OneShot",
    "OrthoReg", "PruneMethod", "Random", "Ranked", "Reg", "RegRowAsReference", "RegSpa", "RegSpaAsReference", "Taylor",
    "find_method", "least", "method_names", "nearest_rectangle", "written",
]
