"""Caffe on PyTorch: reads Caffe's prototxt, solver and weight files, runs and trains them as Caffe does.

As a script of Caffe's Python module does, with numpy arrays in and out (`caffe_compat.pycaffe`):

>>> import caffe_compat as caffe
>>> net = caffe.Net("deploy.prototxt", caffe.TEST, weights="weights.caffemodel")
>>> probabilities = net.forward(data=images)["prob"]
>>> solver = caffe.get_solver("solver.prototxt")
>>> solver.solve()

The core, on torch tensors, is `caffe_compat.net.Net`, and `Solver`, which `create_solver` makes with the plug-ins
that a solver's settings ask for.
"""

from . import proto
from .errors import CaffeError
from .graph import TEST, TRAIN
from .plugins import create_solver
from .pycaffe import *  # noqa: F403
from .pycaffe import __all__ as _pycaffe
from .pycaffe import __version__, classifier, detector, net_spec
from .solver import Solver, SolverHook

__all__ = [
    "TEST", "TRAIN", "CaffeError", "Solver", "SolverHook", "__version__", "classifier", "create_solver", "detector",
    "net_spec", "proto", *_pycaffe,
]
