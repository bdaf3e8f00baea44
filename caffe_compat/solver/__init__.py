"""Caffe's solvers: the training loop, update rules, lr policies, snapshots, hooks."""

from .hooks import SolverHook
from .solver import Solver, TestScores

__all__ = ["Solver", "SolverHook", "TestScores"]
