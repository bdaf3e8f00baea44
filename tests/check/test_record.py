"""record: the script that records real Caffe, here with this package in its place; and what check makes of recordings."""

from __future__ import annotations

import ast
import io
import os
import re
import runpy
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from small import PROTOTXT, SPEC, write_onnx, write_small

import caffe_compat
from caffe_compat.check import compare, recorder
from caffe_compat.check.recording_file import read_recording
from caffe_compat.cli import main
from caffe_compat.errors import CaffeError
from caffe_compat.tools.record import recorded_iterations, write_script

ROOT = Path(__file__).parents[2]
SOLVERS = ROOT / "tests" / "golden" / "solvers"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: the small net, and a package `caffe` that is this one."""
    (tmp_path / "python" / "caffe").mkdir(parents=True)
    (tmp_path / "python" / "caffe" / "__init__.py").write_text(
        "from caffe_compat import *\nfrom caffe_compat import __version__\n")
    write_small(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_script(path: str, *arguments: str) -> str:
    """Runs a script in this process, with this package as `caffe`; returns what it prints."""
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as printed:
        patch.setattr(sys, "argv", [path, *arguments])
        patch.setitem(sys.modules, "caffe", caffe_compat)
        runpy.run_path(path, run_name="__main__")
    return printed.getvalue()


def run_script_apart(path: str, *arguments: str) -> str:
    """Runs a script as its user does, with the package `caffe` of the folder; returns what it prints."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, path, "--caffe", "python", *arguments], env=environment, text=True,
                          capture_output=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def recording(folder: Path) -> Path:
    """small.npz: the small net with gradients."""
    assert main(["record", "small.prototxt", "--weights", "small.caffemodel", "--gradients"]) == 0
    assert "Wrote small.npz" in run_script("record_small.py")
    return folder / "small.npz"


def tampered(path: Path, key: str, change: float) -> str:
    """A copy of the recording with one value changed."""
    with np.load(path) as file:
        arrays = dict(file)
    arrays[key].ravel()[3] += change
    np.savez("tampered.npz", **arrays)
    return "tampered.npz"


def test_what_is_recorded_compares_equal(recording: Path, capsys: pytest.CaptureFixture) -> None:
    """With the net that the recording holds, with files, with an export; values, parameters' diffs, blobs' diffs."""
    about, arrays = read_recording(str(recording))
    assert about["kind"] == "net" and about["prototxt"] == PROTOTXT and about["force_backward"]
    assert about["blobs"] == ["conv1.v0", "conv1", "pool1", "ip"]
    expected = {"input/data", "output_diff/ip", "blob_diff/data", "blob_diff/conv1", "blob_diff/pool1",
                *(f"{kind}/{name}/{j}" for kind in ("param", "param_diff") for name in ("conv1", "ip") for j in (0, 1)),
                *(f"blob/{name}" for name in about["blobs"])}
    assert set(arrays) == expected
    report = compare("small.npz")
    assert report.equal and report.worst == 0
    assert [item.key for item in report.differences] == [
        "blob/conv1.v0", "blob/conv1", "blob/pool1", "blob/ip", "param_diff/ip/0", "param_diff/ip/1", "blob_diff/pool1",
        "blob_diff/conv1", "param_diff/conv1/0", "param_diff/conv1/1", "blob_diff/data"]
    for other in (SPEC, "small.prototxt", "small.prototxt:small.npz", "small.npz"):
        assert compare("small.npz", other).equal and compare(other, "small.npz").equal
    assert main(["check", "small.npz"]) == 0
    assert "equals small.npz in 11 values" in capsys.readouterr().out


@pytest.mark.parametrize(("key", "layer"), [("blob/conv1", "relu1"), ("param_diff/ip/0", "ip"), ("blob/conv1.v0", "conv1")])
def test_a_tampered_recording_is_found(key: str, layer: str, recording: Path) -> None:
    report = compare(tampered(recording, key, 0.5))
    assert [item.key for item in report.beyond] == [key]
    assert report.first.max_error == pytest.approx(0.5)
    assert report.first.layer.startswith(f"{layer} (")


def test_a_recording_is_for_its_inputs_alone(recording: Path) -> None:
    np.save("x.npy", np.zeros((2, 3, 8, 8), np.float32))
    with pytest.raises(CaffeError, match="was recorded with another data"):
        compare("small.npz", SPEC, "x.npy")
    run_script("record_small.py", "--input", "x.npy", "--output", "zeros.npz")
    assert compare("zeros.npz", SPEC, "x.npy").equal
    with pytest.raises(CaffeError, match="was recorded with another data"):
        compare("zeros.npz", "small.npz")


def test_onnx_against_a_recording(recording: Path) -> None:
    pytest.importorskip("onnxruntime")
    from caffe_compat.net import Net

    net = Net("small.prototxt")
    net.copy_from("small.caffemodel")
    write_onnx(Path("small.onnx"), net)
    report = compare("small.npz", "small.onnx")
    assert report.equal and len(report.differences) == 4 and "param_diff/ip/0" in report.only_a


def test_data_layers_are_replayed(folder: Path) -> None:
    """A recorded net with data layers needs no data: what they gave is in the recording. Its loss starts the backward."""
    shutil.copytree(SOLVERS, folder / "s")
    os.chdir("s")
    write_script("r.py", "net_a.prototxt", output="a.npz", weights="init_net_a.caffemodel", phase="TRAIN", gradients=True)
    run_script("r.py")
    about, arrays = read_recording("a.npz")
    assert about["phase"] == "TRAIN" and not about["force_backward"] and "input/label" in arrays
    os.rename("data", "gone")
    report = compare("a.npz")
    assert report.equal and any(item.key.startswith("param_diff/") for item in report.differences)
    assert "blob/loss" in [item.key for item in report.differences]


@pytest.mark.parametrize(("solver", "has_data"), [("sgd_multistep_m09_L2", True), ("adam_inv_is3_L2", False)])
def test_solvers(solver: str, has_data: bool, folder: Path) -> None:
    """Iteration by iteration from the recorded parameters; with iter_size the data must be there."""
    shutil.copytree(SOLVERS, folder / "s")
    os.chdir("s")
    shutil.copy(f"prototxt/{solver}.prototxt", ".")
    assert main(["record", f"{solver}.prototxt", "--weights", "init_net_a.caffemodel", "--iterations", "4"]) == 0
    out = run_script(f"record_{solver}.py")
    assert ("iter_size is 3" in out) != has_data
    about, arrays = read_recording(f"{solver}.npz")
    assert about["kind"] == "solver" and about["iterations"] == [1, 2, 3, 4]
    assert ("iter/4/input/data" in arrays) == has_data
    if has_data:
        os.rename("data", "gone")
    for specs in ([f"{solver}.npz"], [f"{solver}.prototxt", f"{solver}.npz"]):
        report = compare(*specs, tolerance=1e-5)
        assert report.equal and {f"iter/{k}/blob/loss" for k in range(1, 5)} < {item.key for item in report.differences}
    changed = compare(tampered(Path(f"{solver}.npz"), "iter/3/param/ip/0", 0.1))
    assert [item.key for item in changed.beyond] == ["iter/3/param/ip/0"] and "ip" in changed.first.layer


def test_a_recorded_trajectory_of_real_caffe(folder: Path) -> None:
    """golden/solvers, from BVLC Caffe, put in the format: parameters as far as its README lets them be apart."""
    import json

    shutil.copytree(SOLVERS, folder / "s")
    os.chdir("s")
    cases = json.loads(Path("cases.json").read_text())["cases"]
    case = next(case for case in cases if case["name"] == "sgd_multistep_m09_L2")
    about = {"format": "caffe-recording", "version": 1, "kind": "solver", "phase": "TRAIN", "layers": [], "blobs": [],
             "solver": Path(case["solver"]).read_text(), "prototxt": Path(case["net"]).read_text()}
    with np.load(case["trajectory"]) as file:
        arrays = {f"iter/{int(key[2:5])}/param/{key[6:]}": file[key] for key in file.files
                  if re.match(r"it\d", key)}
    np.savez("real.npz", recording=np.array(json.dumps(about)), **arrays)
    report = compare("real.npz", tolerance=1e-4)
    assert report.equal and any(item.key.startswith("iter/30/") for item in report.differences)


# -- the script and the format ----------------------------------------------------------------------------------------


def test_the_script_is_for_python_2_too() -> None:
    """No syntax, no names that Python 2.7 does not have: what it has is listed, as there is no such Python to ask."""
    text = Path(recorder.__file__).read_text()
    tree = ast.parse(text)
    allowed = {"argparse", "json", "os", "re", "sys", "tempfile", "numpy", "__future__", "caffe"}
    for node in ast.walk(tree):
        where = f"line {getattr(node, 'lineno', '?')}: {type(node).__name__}"
        assert not isinstance(node, ast.JoinedStr | ast.NamedExpr | ast.AnnAssign | ast.AsyncFunctionDef | ast.Nonlocal
                              | ast.MatMult | ast.YieldFrom | ast.Match | ast.Await), where
        assert not any(isinstance(item, ast.Starred) for item in getattr(node, "elts", ())), where
        if isinstance(node, ast.FunctionDef):
            assert node.returns is None and not node.args.kwonlyargs and not node.args.posonlyargs, where
            assert all(argument.annotation is None for argument in node.args.args), where
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module] if isinstance(node, ast.ImportFrom) else [name.name for name in node.names]
            assert set(names) <= allowed, where
        elif isinstance(node, ast.Raise):
            assert node.cause is None, where
        elif isinstance(node, ast.Call):  # f(*a, b=1) is new, and so are these names
            assert getattr(node.func, "id", "") not in ("super", "breakpoint") or node.args, where
            assert getattr(node.func, "attr", "") not in ("replace_", "makedirs"), where
    assert text.isascii()
    assert not re.search(r"\b(os\.replace|exist_ok|encoding=|pathlib|subprocess|nonlocal)\b|\d_\d|\bu?r?f[\"']", text)
    assert "from __future__ import print_function" in text


def test_names_survive_the_script(folder: Path) -> None:
    """Whatever characters paths have, they arrive as they are."""
    name = """it's a "net" \\n é.prototxt"""
    Path(name).write_text(PROTOTXT)
    write_script("r.py", name, output="o'ut.npz", weights="small.caffemodel")
    namespace: dict = {"__name__": "script"}
    exec(compile(Path("r.py").read_text(), "r.py", "exec"), namespace)
    assert namespace["SETTINGS"]["model"] == name and namespace["SETTINGS"]["output"] == "o'ut.npz"
    assert "Wrote o'ut.npz" in run_script_apart("r.py")
    assert compare("o'ut.npz").equal


def test_which_iterations() -> None:
    assert recorded_iterations(4) == [1, 2, 3, 4]
    assert recorded_iterations(120) == [1, 2, 3, 5, 10, 20, 30, 50, 100, 120]


@pytest.mark.parametrize(("arguments", "message"), [
    (["none.prototxt"], "no such file"), (["small.prototxt", "--iterations", "3"], "is a net's"),
    (["solver.prototxt", "--gradients"], "is a solver's"), (["empty.prototxt"], "neither a net with layers nor a solver"),
])
def test_what_cannot_be_recorded(arguments: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture) -> None:
    Path("solver.prototxt").write_text('net: "small.prototxt"')
    Path("empty.prototxt").write_text('name: "nothing"')
    assert main(["record", *arguments]) == 1
    assert message in capsys.readouterr().err
    assert not list(folder.glob("record_*"))


def write_npz(about: object, **arrays: np.ndarray) -> None:
    np.savez("broken.npz", recording=np.array(about), **arrays)


@pytest.mark.parametrize(("about", "message"), [
    ("nonsense", "not as caffe-recording has it"), ("{}", "not as caffe-recording has it"),
    ('{"format": "caffe-recording", "version": 2}', "of version 2, expected caffe-recording of version 1"),
    ('{"format": "caffe-recording", "version": 1, "kind": "cat", "phase": "TEST"}', "its kind is 'cat'"),
    ('{"format": "caffe-recording", "version": 1, "kind": "net", "phase": "TEST"}', "holds no net definition"),
])
def test_broken_recordings(about: str, message: str, folder: Path) -> None:
    write_npz(about)
    with pytest.raises(CaffeError, match=f"broken.npz: .*{message}"):
        compare("broken.npz")
