"""Caffe on PyTorch: reads Caffe's prototxt, solver and weight files, runs and trains them as Caffe does, on CPU or CUDA.

>>> net = caffe_compat.Net("deploy.prototxt", "TEST")
>>> net.copy_from("weights.caffemodel")
>>> solver = caffe_compat.create_solver("solver.prototxt")
>>> solver.solve()
"""

from .errors import CaffeError
from .graph import TEST, TRAIN
from .net import Net
from .plugins import create_solver
from .solver import Solver, SolverHook

__all__ = ["TEST", "TRAIN", "CaffeError", "Net", "Solver", "SolverHook", "create_solver"]
