"""The gathered convolution against torch's, and nets exported with it."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from test_coupling import INPUT, conv, inner, simple

from caffe_compat import Net, proto
from caffe_compat.convert.graph import Graph
from caffe_compat.convert.torch_target import load_module
from increg.cli import main
from increg.slim import export as slim_export
from increg.slim import gathered as module
from increg.slim.export import BLOCKS, TYPE, export, gather
from increg.slim.gathered import BlockMaxPool2d, GatheredConv2d, gathered


def pruned(shape: tuple[int, ...], share: float, seed: int) -> torch.Tensor:
    """A weight of which that share of columns is left."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator)
    return weight * (torch.rand(shape[1:], generator=generator) < share)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.integers(1, 3), st.integers(1, 3), st.tuples(*[st.integers(1, 3)] * 2), st.tuples(*[st.integers(1, 2)] * 2),
       st.tuples(*[st.integers(0, 3)] * 4), st.tuples(*[st.integers(1, 2)] * 2), st.sampled_from((0.0, 0.2, 0.8)),
       st.booleans())
def test_same_as_a_convolution(batch: int, groups: int, kernel: tuple[int, int], stride: tuple[int, int],
                               padding: tuple[int, int, int, int], dilation: tuple[int, int], share: float,
                               tiles: bool) -> None:
    """All settings, in one tile and in many."""
    weight, bias = pruned((2 * groups, 2, *kernel), share, batch), torch.randn(2 * groups)
    made = gathered(weight, bias, stride, padding, dilation, groups)
    made.tile = 8 if tiles else made.tile
    x = torch.randn(batch, 2 * groups, 7, 8)
    top, left, bottom, right = padding
    expected = F.conv2d(F.pad(x, (left, right, top, bottom)), weight, bias, stride, 0, dilation, groups)
    torch.testing.assert_close(made(x), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(made(x.to(memory_format=torch.channels_last)), expected, atol=1e-5, rtol=1e-5)


def test_on_devices(device: torch.device) -> None:
    weight, x = pruned((8, 6, 3, 3), 0.2, 1), torch.randn(3, 6, 9, 10)
    made = gathered(weight, None, padding=(1, 1, 1, 1)).to(device)
    torch.testing.assert_close(made(x.to(device)).cpu(), F.conv2d(x, weight, padding=1), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("size", [(2, 2), (1, 3), (3, 2)])
def test_block_maximum(size: tuple[int, int], device: torch.device) -> None:
    """In every format, and for images that blocks do not fill."""
    pool = BlockMaxPool2d(size)
    for shape in ((2, 3, 6, 12), (1, 2, 7, 5)):
        x = torch.randn(shape, device=device)
        expected = F.max_pool2d(x, size, size, ceil_mode=True)
        assert torch.equal(pool(x), expected)
        assert torch.equal(pool(x.to(memory_format=torch.channels_last)), expected)


def test_gradients_pass_through() -> None:
    weight, x = pruned((4, 3, 3, 3), 0.3, 2), torch.randn(2, 3, 6, 6, requires_grad=True)
    (found,) = torch.autograd.grad(gathered(weight)(x).square().sum(), x)
    (expected,) = torch.autograd.grad(F.conv2d(x, weight).square().sum(), x)
    torch.testing.assert_close(found, expected)


def test_state_and_text() -> None:
    """A state dict of its columns alone, which loads into a new one; and a source that needs nothing but torch."""
    made = gathered(pruned((4, 3, 3, 3), 0.3, 3), torch.ones(4))
    other = GatheredConv2d(3, 4, (3, 3), (len(made.kept0),))
    other.load_state_dict(made.state_dict())
    x = torch.randn(1, 3, 5, 5)
    assert torch.equal(made(x), other(x))
    assert f"columns={len(made.kept0)} of 27" in repr(made)
    imports = [node for node in ast.walk(ast.parse(inspect.getsource(module))) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in imports}
    assert {name.partition(".")[0] for name in names} == {"torch", "__future__"}


TEXT = INPUT + conv("a", "x", 6, 3, "pad: 1") + simple("ReLU", "r", "a", tops=("a",)) + conv(
    "b", "a", 4, 3, "group: 2 bias_term: false") + simple(
    "Pooling", "q", "b", more="pooling_param { kernel_size: 2 stride: 2 }") + conv("c", "q", 5, 1) + inner("f", "c")


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Net:
    """net.prototxt and pruned.caffemodel in the working folder; scattered columns are left in a and b, which are gathered
    although they are small."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(slim_export, "GATHERING", 0)
    Path("net.prototxt").write_text(TEXT)
    net = Net("net.prototxt", "TEST", seed=1)
    for name, share in (("a", 0.3), ("b", 0.25), ("c", 1), ("f", 1)):
        weight = net.params[name][0].tensor.data
        weight.copy_(pruned(tuple(weight.shape), share, 5))
    net.params["a"][1].data[...] = 0.5
    net.save("pruned.caffemodel")
    net.blobs["x"].data[...] = np.random.default_rng(1).normal(size=(2, 3, 6, 6))
    return net


def test_which_layers_are_gathered(files: Net) -> None:
    graph = Graph.of(files).run([gather])
    assert [node.name for node in graph.nodes if node.type == TYPE] == ["a", "b"]
    assert [node.name for node in graph.nodes if node.type == BLOCKS] == ["q"]
    assert files.layer_dict["a"].type == "Convolution"


@pytest.mark.parametrize(("rows", "kept", "gathered"), [(50, 25, True), (50, 26, False), (10, 8, True), (10, 9, False)])
def test_gathering_is_worth_while_for_many_rows(rows: int, kept: int, gathered: bool) -> None:
    """A column is as much work as 50 rows more: of 100 columns 25 take half the time with 50 rows, 8 with 10 rows."""
    net = Net(proto.parse_text(INPUT.replace("dim: 3", "dim: 100") + conv("a", "x", rows, 1), "NetParameter"), "TEST", seed=1)
    net.params["a"][0].tensor.data[:, :kept] = 1
    graph = Graph.of(net).run([gather])
    assert [node.type == TYPE for node in graph.nodes if node.name == "a"] == [gathered]
    assert slim_export.not_gathered(net) == ([] if gathered else ["a"])


def test_exports(files: Net, capsys: pytest.CaptureFixture[str]) -> None:
    """Both compute what the net does."""
    onnxruntime = pytest.importorskip("onnxruntime")
    words = ["--out", "small", "--batches", "2", "--to", "torch", "--to", "onnx"]
    assert main(["slim", "net.prototxt", "pruned.caffemodel", *words]) == 0
    said = capsys.readouterr().out
    assert said.count("written, and differs") == 2
    assert "PyTorch, cpu, batch 2: " in said
    expected = files.forward()["f"]
    exported = load_module("small/torch")
    assert sum(type(part).__name__ == "GatheredConv2d" for part in exported.modules()) == 2
    x = files.blobs["x"].tensor
    with torch.no_grad():
        np.testing.assert_allclose(exported(x), expected, rtol=1e-6, atol=1e-5)
    session = onnxruntime.InferenceSession("small/net.onnx", providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0], expected, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("more", ["", "transpose: true", "axis: -3 bias_term: false"])
def test_inner_products(more: str, tmp_path: Path) -> None:
    """Few columns left: both exports hold, and read, these alone."""
    onnxruntime = pytest.importorskip("onnxruntime")
    document = proto.parse_text(INPUT + inner("f", "x", 4, more) + inner("g", "f", 3), "NetParameter")
    net = Net(document, "TEST", seed=1)
    for blobs in net.params.values():
        for blob in blobs:
            blob.tensor.data.normal_(0, 0.3, generator=torch.Generator().manual_seed(2))
    weight = net.params["f"][0].tensor.data
    (weight if "transpose" in more else weight.T)[torch.arange(108) % 3 > 0] = 0
    net.blobs["x"].data[...] = np.random.default_rng(1).normal(size=(2, 3, 6, 6))
    expected, x = net.forward()["g"], net.blobs["x"].tensor
    for target in ("torch", "onnx"):
        export(net, document, target, tmp_path / target)
    exported = load_module(tmp_path / "torch")
    assert [part.in_features for part in exported.modules() if isinstance(part, torch.nn.Linear)] == [36, 4]
    with torch.no_grad():
        np.testing.assert_allclose(exported(x), expected, rtol=1e-6, atol=1e-5)
    session = onnxruntime.InferenceSession(tmp_path / "onnx", providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0], expected, rtol=1e-6, atol=1e-5)


def test_another_size_of_image(files: Net) -> None:
    """Where nothing fixes the size, the export leaves it open, too."""
    onnxruntime = pytest.importorskip("onnxruntime")
    text = TEXT.replace(inner("f", "c"), simple("Pooling", "p", "c", more="pooling_param { pool: AVE global_pooling: true }"))
    net = Net(proto.parse_text(text, "NetParameter"), "TEST")
    net.copy_from("pruned.caffemodel")
    document = proto.parse_text(text, "NetParameter")
    export(net, document, "onnx", Path("open.onnx"))
    net.blobs["x"].reshape(1, 3, 9, 8)
    net.blobs["x"].data[...] = np.random.default_rng(2).normal(size=(1, 3, 9, 8))
    session = onnxruntime.InferenceSession("open.onnx", providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: net.blobs["x"].data})[0]
    np.testing.assert_allclose(found, net.forward()["p"], rtol=1e-6, atol=1e-5)
