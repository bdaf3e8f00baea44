"""Commands that show things: `show`, `explain`, `layers`, `time`; and the upgrade tools."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest

from caffe_compat import cli, proto
from caffe_compat.layers import LAYERS

GOLDEN = Path(__file__).parents[1] / "golden"
SOLVERS = GOLDEN / "solvers"


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs a command in the folder of the recorded solvers; returns what it printed."""
    monkeypatch.chdir(SOLVERS)

    def run(*argv: str) -> str:
        capsys.readouterr()
        assert cli.main(argv) == 0
        return capsys.readouterr().out

    return run


def cells(line: str) -> list[str]:
    return re.split(r"\s{2,}", line.strip())


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    module = import_module(f"caffe_compat.tools.{command}")
    assert module.HELP and module.__doc__
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0
    assert "usage: caffe-compat " + command in capsys.readouterr().out


def test_show_net(shown) -> None:
    lines = shown("show", "net_a.prototxt").splitlines()
    assert lines[0] == "net_a.prototxt: net, dialect bvlc"
    conv1 = next(cells(line) for line in lines if line.startswith("conv1 "))
    # 6 kernels of 1x3x3 with a bias each, used at 10x10 places
    assert conv1 == ["conv1", "Convolution", "data", "conv1", "10 6 10 10", "60", "5,400", "24,000"]
    assert any(line.startswith("7 layers, 1,230 parameters, ") for line in lines)


def test_show_a_net_whose_data_are_not_there(shown, tmp_path: Path) -> None:
    path = tmp_path / "net.prototxt"
    path.write_text('layer { name: "d" type: "Data" top: "x" data_param { source: "nowhere" batch_size: 1 backend: LMDB } }\n'
                    'layer { name: "r" type: "ReLU" bottom: "x" top: "y" }')
    out = shown("show", str(path))
    assert "shapes are not known: d" in out and "nowhere" in out
    assert cells(out.splitlines()[-1]) == ["r", "ReLU", "x", "y"]


@pytest.mark.parametrize("name", ["resume_adam_bin_iter_10.caffemodel", "resume_adam_h5_iter_10.caffemodel.h5"])
def test_show_weights(name: str, shown) -> None:
    out = shown("show", f"snapshots/{name}")
    assert "6 1 3 3 (54); 6 (6)" in out
    assert out.splitlines()[-1].endswith("1,230 values")


def test_show_state(shown) -> None:
    out = shown("show", "snapshots/resume_adam_bin_iter_10.solverstate")
    assert "iter 10, current_step 0, weights in snapshots/resume_adam_bin_iter_10.caffemodel" in out
    assert sum(line.startswith("history/") for line in out.splitlines()) == 12


def test_show_solver_and_database(shown) -> None:
    assert 'lr_policy: "multistep"' in shown("show", "prototxt/sgd_multistep_m09_L2.prototxt")
    out = shown("show", str(GOLDEN / "data" / "data_layer" / "db_rgb"))
    assert re.search(r"db_rgb: LMDB, \d+ records", out)


def test_show_refuses_what_it_does_not_know(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
                                           tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "image.caffemodel").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(20))
    for name in ("folder", "image.caffemodel", "missing.prototxt"):
        assert cli.main(["show", str(tmp_path / name)]) == 1
        assert name in capsys.readouterr().err


def test_explain(shown) -> None:
    out = shown("explain", "prototxt/sgd_multistep_m09_L2.prototxt").splitlines()
    blobs = [cells(line) for line in out if re.match(r"(conv\d|ip)/", line)]
    # rates and decays are the solver's times the net's lr_mult and decay_mult
    assert [row[:4] for row in blobs[:4]] == [
        ["conv1/0", "6 1 3 3", "0.03", "0.004"], ["conv1/1", "6", "0.06", "0"],
        ["conv2/0", "8 6 3 3", "0.015", "0.008"], ["conv2/1", "8", "0.045", "0.002"]]
    rates = [cells(line) for line in out[out.index(next(line for line in out if line.startswith("from iteration"))) + 1:]]
    assert rates == [["0", "0.03"], ["4", "0.009"], ["9", "0.0027"], ["20", "0.00081"]]


def test_layers_lists_every_type_where_it_is(shown) -> None:
    lines = shown("layers").splitlines()
    assert [line.split()[0] for line in lines] == LAYERS.names()
    root = Path(__file__).parents[2]
    for line in lines:
        name, place = line.split()[0], line.split()[-1]
        path, number = place.split(":")
        source = (root / path).read_text().splitlines()[int(number) - 1]
        assert source.startswith(f'@layer("{name}"'), line
    assert "ConvolutionParameter" in shown("layers", "Convolution")


def test_time(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(SOLVERS)
    assert cli.main(["time", "--model=net_a.prototxt", "-weights=init_net_a.caffemodel", "--iterations=2"]) == 0
    lines = [line.split("] ", 1)[1] for line in capsys.readouterr().err.splitlines() if "] " in line]
    assert sum(bool(re.fullmatch(r"Iteration: [12] forward-backward time: \S+ ms\.", line)) for line in lines) == 2
    backward = {line.split()[0]: float(line.split()[2]) for line in lines if "\tbackward: " in line}
    assert backward["data"] == 0 and backward["conv1"] > 0 and backward["loss"] > 0


@pytest.mark.parametrize("command, source, kind", [
    ("upgrade_net_proto_text", "v1_net.prototxt", "NetParameter"),
    ("upgrade_solver_proto_text", "solver.prototxt", "SolverParameter"),
])
def test_upgrade(command: str, source: str, kind: str, shown, tmp_path: Path) -> None:
    old, new = tmp_path / source, tmp_path / "new.prototxt"
    old.write_text({"NetParameter": 'layers { name: "d" type: DUMMY_DATA top: "x" dummy_data_param { num: 1 channels: 1 '
                                    'height: 2 width: 2 } } layers { name: "r" type: RELU bottom: "x" top: "y" }',
                    "SolverParameter": 'net: "n" solver_type: ADAGRAD'}[kind])
    shown(command, str(old), str(new))
    message = proto.read_text(new, kind, upgrade=False).message
    if kind == "NetParameter":
        assert [layer.type for layer in message.layer] == ["DummyData", "ReLU"] and not message.layers
    else:
        assert message.type == "AdaGrad" and not message.HasField("solver_type")


def test_upgrade_binary(shown, tmp_path: Path) -> None:
    layers = proto.BVLC.message("NetParameter")()
    layers.layers.add(name="c", type=4, bottom=["x"], top=["y"])
    old, new = tmp_path / "old.caffemodel", tmp_path / "new.caffemodel"
    old.write_bytes(layers.SerializeToString())
    shown("upgrade_net_proto_binary", str(old), str(new))
    message = proto.read_binary(new, "NetParameter", upgrade=False).message
    assert [layer.type for layer in message.layer] == ["Convolution"]
