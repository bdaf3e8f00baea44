"""The names of the `caffe` module, and scripts that import it under that name."""

from __future__ import annotations

import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest

import caffe_compat as caffe
from caffe_compat.errors import CaffeError

ROOT = Path(__file__).parents[2]
#: What scripts import from caffe.
NAMES = (
    "Net", "SGDSolver", "NesterovSolver", "AdaGradSolver", "RMSPropSolver", "AdaDeltaSolver", "AdamSolver", "NCCL",
    "Timer", "init_log", "log", "set_mode_cpu", "set_mode_gpu", "set_device", "Layer", "get_solver", "layer_type_list",
    "set_random_seed", "solver_count", "set_solver_count", "solver_rank", "set_solver_rank", "set_multiprocess",
    "has_nccl", "__version__", "TRAIN", "TEST", "Classifier", "Detector", "io", "layers", "params", "NetSpec", "to_proto",
    "proto", "net_spec", "classifier", "detector", "pycaffe",
)


@pytest.mark.parametrize("name", NAMES)
def test_names(name: str) -> None:
    assert hasattr(caffe, name)


@pytest.mark.parametrize("module", ["io", "net_spec", "coord_map", "draw", "classifier", "detector"])
def test_modules_are_there_once(module: str) -> None:
    assert import_module(f"caffe_compat.{module}") is import_module(f"caffe_compat.pycaffe.{module}")


def test_layers_make_layers_of_a_net_spec() -> None:
    from caffe_compat import layers as L
    from caffe_compat.layers import base

    n = caffe.NetSpec()
    n.data = L.Input(shape={"dim": [1]})
    n.relu = caffe.layers.ReLU(n.data)
    assert [layer.name for layer in n.to_proto().layer] == ["data", "relu"]
    assert L.base is base
    with pytest.raises(AttributeError):
        L.relu  # noqa: B018


SCRIPT = """
import sys
import caffe
import caffe.io
from caffe import layers as L, params as P
from caffe.proto import caffe_pb2
from caffe.coord_map import crop
from caffe.draw import draw_net
from caffe.pycaffe import Net
net = caffe.NetSpec()
net.data = L.Input(shape=dict(dim=[1, 1, 4, 4]))
net.pool = L.Pooling(net.data, pool=P.Pooling.AVE, kernel_size=2)
with open(sys.argv[1], "w") as file:
    file.write(str(net.to_proto()))
built = caffe.Net(sys.argv[1], caffe.TEST)
assert isinstance(built, Net) and isinstance(net.to_proto(), caffe_pb2.NetParameter)
built.blobs["data"].data[...] = 3
print(built.forward()["pool"].mean(), __name__, sys.argv[2:])
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """A script that knows nothing of this package."""
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return path


def run(*arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, check=False)


def test_scripts_run_as_they_are(script: Path, tmp_path: Path) -> None:
    result = run("-m", "caffe_compat.pycaffe", script, tmp_path / "net.prototxt", "more")
    assert result.stdout == "3.0 __main__ ['more']\n", result.stderr


def test_an_alias_is_enough_for_most(script: Path, tmp_path: Path) -> None:
    """As test runners do it: modules that are files of the package's folder are found."""
    modules = SCRIPT.replace("from caffe.pycaffe import Net\n", "").replace(
        "isinstance(built, Net) and isinstance(net.to_proto(), caffe_pb2.NetParameter)", "caffe_pb2.NetParameter")
    script.write_text(f"import sys, caffe_compat; sys.modules['caffe'] = caffe_compat\n{modules}")
    result = run("-c", f"import runpy, sys; sys.argv = ['x', '{tmp_path}/net.prototxt']; "
                       f"runpy.run_path('{script}', run_name='__main__')")
    assert result.stdout == "3.0 __main__ []\n", result.stderr


def test_no_script() -> None:
    result = run("-m", "caffe_compat.pycaffe", "gone.py")
    assert (result.returncode, result.stderr) == (1, "gone.py: there is no such script\n")
    result = run("-m", "caffe_compat.pycaffe")
    assert result.returncode == 1 and "script.py" in result.stderr


def test_one_solver_at_a_time() -> None:
    assert (caffe.solver_count(), caffe.solver_rank(), caffe.has_nccl()) == (1, 0, False)
    caffe.set_solver_count(1)
    caffe.set_solver_rank(0)
    caffe.set_multiprocess(True)
    for refused in (lambda: caffe.set_solver_count(2), lambda: caffe.set_solver_rank(1), caffe.NCCL.new_uid,
                    lambda: caffe.NCCL(None, "uid")):
        with pytest.raises(CaffeError, match="not supported"):
            refused()


def test_layer_types() -> None:
    found = caffe.layer_type_list()
    assert found == sorted(found) and {"Data", "Convolution", "Python", "LSTM"} <= set(found)


def test_timer() -> None:
    timer = caffe.Timer()
    assert timer.ms == 0
    timer.start()
    time.sleep(0.02)
    timer.stop()
    first = timer.ms
    assert 19 < first < 2000 and timer.ms == first


def test_log() -> None:
    result = run("-c", "import caffe_compat as caffe; caffe.log('before'); caffe.init_log(); caffe.log('%s after'); "
                       "caffe.init_log(1); caffe.log('hidden')")
    assert result.stderr.startswith("I") and result.stderr.endswith("] %s after\n") and result.stderr.count("\n") == 1
