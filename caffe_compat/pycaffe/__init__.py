"""What the `caffe` Python module offers, under its names; `import caffe_compat as caffe` shows all of it.

`python -m caffe_compat.pycaffe script.py` runs a script that says `import caffe` as it is.
"""

from ..blob import Blob
from ..layers.python import PythonLayer as Layer
from ..layers.python import allow_python_layers
from . import io
from .classifier import Classifier
from .detector import Detector
from .mode import (
    NCCL,
    Timer,
    has_nccl,
    init_log,
    layer_type_list,
    log,
    set_device,
    set_mode_cpu,
    set_mode_gpu,
    set_multiprocess,
    set_random_seed,
    set_solver_count,
    set_solver_rank,
    solver_count,
    solver_rank,
)
from .net import Net
from .net_spec import NetSpec, params, to_proto
from .solver import (
    AdaDeltaSolver,
    AdaGradSolver,
    AdamSolver,
    NesterovSolver,
    RMSPropSolver,
    SGDSolver,
    get_solver,
)

#: The Caffe release that this behaves like.
__version__ = "1.0.0"

__all__ = [
    "NCCL", "AdaDeltaSolver", "AdaGradSolver", "AdamSolver", "Blob", "Classifier", "Detector", "Layer",
    "NesterovSolver", "Net", "NetSpec", "RMSPropSolver", "SGDSolver", "Timer", "__version__", "allow_python_layers",
    "get_solver", "has_nccl", "init_log", "io", "layer_type_list", "log", "params", "set_device", "set_mode_cpu",
    "set_mode_gpu", "set_multiprocess", "set_random_seed", "set_solver_count", "set_solver_rank", "solver_count",
    "solver_rank", "to_proto",
]
