"""The model file itself: plain, safe whatever the net's names are, and free of us."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from caffe_compat import proto
from caffe_compat.convert import TORCH, Graph, Options, convert, to_caffe, to_torch
from caffe_compat.convert.torch_module import _source
from caffe_compat.convert.torch_source import Model
from caffe_compat.convert.torch_target import caffe_names, load_module, run_torch, to_module
from caffe_compat.errors import CaffeError, WeightError
from caffe_compat.net import Net

INPUT = 'layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 2 dim: 4 dim: 6 dim: 6 } } }'
CONV = 'convolution_param { num_output: 4 kernel_size: 3 pad: 1 weight_filler { type: "xavier" } bias_filler { value: 0.1 } }'


def net_of(text: str, phase: str = "TEST") -> Net:
    net = Net(proto.parse_text(text, "NetParameter"), phase, seed=2)
    net.blobs["x"].data[...] = np.random.RandomState(3).standard_normal(net.blobs["x"].shape)
    return net


def call(made: nn.Module, net: Net) -> dict[str, torch.Tensor] | torch.Tensor:
    with torch.no_grad():
        return made(torch.from_numpy(net.blobs["x"].data.copy()))


HOSTILE = ['a\\"b', "a'b", "a\\nimport os", "{x}", "conv/1.a", "1st", "class", "forward", "training", "x", "_", "ümlaut",
           "F", "Tensor", "self", 'a\\"\\"\\"b', "%s", "nn", "\\\\"]


@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_only_names(name: str) -> None:
    """Of nets, layers and blobs: whatever is in them, the file is the same program."""
    net = net_of(f"""name: "{name}" {INPUT}
        layer {{ name: "{name}" type: "Convolution" bottom: "x" top: "{name}0" {CONV} }}
        layer {{ name: "{name}.2" type: "ReLU" bottom: "{name}0" top: "{name}0" }}
        layer {{ name: "{name}/2" type: "TanH" bottom: "{name}0" top: "{name}2" }}
        layer {{ name: "sum" type: "Eltwise" bottom: "{name}0" bottom: "{name}2" top: "{name}3" }}
        layer {{ name: "end" type: "Sigmoid" bottom: "{name}0" top: "{name}4" }}""")
    source = Model(Graph.of(net)).source("load")
    tree = ast.parse(source)
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported <= {"__future__", "torch", "torch.nn.functional"}
    found = call(to_torch(net), net)
    expected = net.forward()
    assert set(found) == set(expected)
    for blob, values in expected.items():
        torch.testing.assert_close(found[blob], values, rtol=1e-5, atol=1e-6)
    layers = {net_layer.name for net_layer in net.layers if not net_layer.is_source and net_layer.type != "Split"}
    names = caffe_names(source)
    assert {names.get(attribute, attribute) for attribute, _ in to_torch(net).named_children()} == layers


def test_helpers_stand_alone() -> None:
    """Every class that a file may contain needs torch alone."""
    for name in TORCH.names():
        home = sys.modules[getattr(TORCH.get(name), "__module__", __name__)]
        for cls in vars(home).values():
            if isinstance(cls, type) and issubclass(cls, nn.Module) and cls.__module__ == home.__name__:
                source, used = _source(cls)
                known = {other.__name__ for other in used} | {cls.__name__, "nn", "torch", "F", "math", "Tensor", "Any"}
                names = {node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)}
                taken = {key for key in vars(home) if key in names} - known
                assert not {key for key in taken if key.isupper() or key[0].isupper()}, f"{cls.__name__} uses {taken}"


def test_runs_without_us(tmp_path: Path) -> None:
    """In a process that cannot import caffe_compat, from the folder alone."""
    net = net_of(INPUT + f'layer {{ name: "c/1" type: "Convolution" bottom: "x" top: "y" {CONV} }}'
                 'layer { name: "p" type: "Power" bottom: "y" top: "z" power_param { power: 2 } }')
    net.save(tmp_path / "net.caffemodel")
    proto.write_text(tmp_path / "net.prototxt", Graph.of(net).to_document(weights=False).message)
    convert(tmp_path / "net.prototxt", tmp_path / "net.caffemodel", "torch", tmp_path / "out")
    script = ("import sys; sys.modules['caffe_compat'] = None; import torch, model\n"
              "net = model.Net()\nnet.load_state_dict(torch.load('weights.pth', weights_only=True))\n"
              "print(float(net.eval()(torch.ones(1, 4, 9, 7)).sum()))")
    result = subprocess.run([sys.executable, "-c", script], cwd=tmp_path / "out", capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    net.blobs["x"].reshape(1, 4, 9, 7)
    net.blobs["x"].data[...] = 1
    assert float(result.stdout) == pytest.approx(float(net.forward()["z"].sum()), rel=1e-5)


def test_shared_parameters_are_one(tmp_path: Path) -> None:
    """In the module, in either file, and when they are read back."""
    shared = 'param { name: "w" } param { name: "b" } ' + CONV
    net = net_of(INPUT + f"""layer {{ name: "a" type: "Convolution" bottom: "x" top: "a" {shared} }}
                             layer {{ name: "b" type: "Convolution" bottom: "a" top: "b" {shared} }}""")
    made = to_torch(net)
    assert made.b.weight is made.a.weight and len(list(made.parameters())) == 2
    expected = net.forward()["b"]
    torch.testing.assert_close(call(made, net), expected, rtol=1e-5, atol=1e-6)
    document = Graph.of(net).to_document()
    for options in (Options(), Options(safetensors=True)):
        convert(document, document, "torch", tmp_path / "out", options=options)
        assert len(list((tmp_path / "out").glob("weights.*"))) == 1
        loaded = load_module(tmp_path / "out")
        assert loaded.b.bias is loaded.a.bias
        torch.testing.assert_close(call(loaded, net), expected, rtol=1e-5, atol=1e-6)
        back = Net(to_caffe(tmp_path / "out", tmp_path / "back")[0])
        back.copy_from(tmp_path / "back.caffemodel")
        assert back.params["a"][0] is back.params["b"][0]
        np.testing.assert_array_equal(back.params["a"][0].data, net.params["a"][0].data)


def test_values_are_kept_no_longer_than_needed() -> None:
    """A variable that is not read any more is let go."""
    net = net_of(INPUT + """
        layer { name: "a" type: "ReLU" bottom: "x" top: "y" }
        layer { name: "drop" type: "Dropout" bottom: "y" top: "kept" }
        layer { name: "b" type: "TanH" bottom: "y" top: "z" }
        layer { name: "c" type: "Power" bottom: "z" top: "z" power_param { scale: 3 } }
        layer { name: "sum" type: "Eltwise" bottom: "kept" bottom: "z" top: "sum" }
        layer { name: "end" type: "Sigmoid" bottom: "sum" top: "end" }""")
    from caffe_compat.convert.passes import drop_identities

    graph = Graph.of(net).run([drop_identities])
    source = Model(graph).source("load")
    assert "del " in source and "y = self.a(x)" in source
    torch.testing.assert_close(call(to_module(graph), net), net.forward()["end"], rtol=1e-5, atol=1e-6)


# -- training ---------------------------------------------------------------------------------------------------------


def test_trains_as_caffe_does() -> None:
    """Losses kept, in the TRAIN phase: the gradient of each parameter, and BatchNorm's sums after two passes."""
    text = INPUT + f"""
        layer {{ name: "label" type: "Input" top: "label" input_param {{ shape {{ dim: 2 }} }} }}
        layer {{ name: "conv" type: "Convolution" bottom: "x" top: "y" {CONV} }}
        layer {{ name: "bn" type: "BatchNorm" bottom: "y" top: "y" batch_norm_param {{ moving_average_fraction: 0.8 }} }}
        layer {{ name: "scale" type: "Scale" bottom: "y" top: "y" scale_param {{ bias_term: true }} }}
        layer {{ name: "relu" type: "ReLU" bottom: "y" top: "y" relu_param {{ negative_slope: 0.1 }} }}
        layer {{ name: "ip" type: "InnerProduct" bottom: "y" top: "ip"
                 inner_product_param {{ num_output: 3 weight_filler {{ type: "xavier" }} }} }}
        layer {{ name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }}"""
    aux = 'layer { name: "aux" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "aux" loss_weight: 0.3 }'
    source = Model(Graph.of(net_of(text + aux, "TRAIN"))).source("load")
    assert "Returns a dict of aux (weight 0.3 in the loss), loss." in source
    net = net_of(text, "TRAIN")
    net.blobs["label"].data[...] = [0, 2]
    made = to_torch(net, options=Options(keep_losses=True))
    assert made.training
    for _ in range(2):
        net.clear_param_diffs()
        net.forward_backward()
        made.zero_grad()
        loss = made(torch.from_numpy(net.blobs["x"].data), torch.from_numpy(net.blobs["label"].data))
        loss.backward()
    assert loss.item() == pytest.approx(float(net.loss), rel=1e-5)
    for name, blobs in net.params.items():
        if name != "bn":
            for blob, parameter in zip(blobs, made.get_submodule(name).parameters(), strict=True):
                torch.testing.assert_close(parameter.grad, torch.from_numpy(blob.diff), rtol=1e-4, atol=1e-5)
    state = {key: value.numpy() for key, value in made.bn.state_dict().items()}
    for blob, values in zip(net.params["bn"], Model(Graph.of(net)).modules["bn"].blobs(state), strict=True):
        np.testing.assert_allclose(values, blob.data, rtol=1e-5)


def test_trained_weights_go_back(tmp_path: Path) -> None:
    """What torch learned is in the caffemodel, and Caffe's net computes the same with it."""
    net = net_of(INPUT + f"""
        layer {{ name: "c/1" type: "Convolution" bottom: "x" top: "y" {CONV} }}
        layer {{ name: "bn" type: "BatchNorm" bottom: "y" top: "y" }}
        layer {{ name: "ip" type: "InnerProduct" bottom: "y" top: "ip"
                 inner_product_param {{ num_output: 3 transpose: true weight_filler {{ type: "xavier" }} }} }}""")
    document = Graph.of(net).to_document()
    convert(document, document, "torch", tmp_path / "out", options=Options(rename={"c/1": "first"}))
    made = load_module(tmp_path / "out").train()
    optimizer = torch.optim.SGD(made.parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        made(torch.randn(4, 4, 6, 6)).square().sum().backward()
        optimizer.step()
    torch.save(made.state_dict(), tmp_path / "out" / "weights.pth")
    prototxt, weights = to_caffe(tmp_path / "out", tmp_path / "back.h5")
    back = Net(prototxt)
    back.copy_from(weights)
    assert weights.name == "back.caffemodel.h5" and set(back.params) == {"c_1", "bn", "ip"}  # HDF5 names have no slashes
    assert not np.allclose(back.params["c_1"][0].data, net.params["c/1"][0].data)
    back.blobs["x"].data[...] = net.blobs["x"].data
    torch.testing.assert_close(call(made.eval(), net), back.forward()["ip"], rtol=1e-4, atol=1e-5)


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    """Going back reads no code, and says what is wrong with what it reads."""
    document = Graph.of(net_of(INPUT + f'layer {{ name: "c" type: "Convolution" bottom: "x" top: "y" {CONV} }}')).to_document()
    convert(document, document, "torch", tmp_path / "out")
    source = tmp_path / "out" / "model.py"
    source.write_text(source.read_text() + "\nraise SystemExit('this was run')\n")
    to_caffe(tmp_path / "out", tmp_path / "back")
    torch.save({"c.weight": torch.zeros(1)}, tmp_path / "out" / "weights.pth")
    with pytest.raises(WeightError, match="c.weight should be .4, 4, 3, 3."):
        to_caffe(tmp_path / "out", tmp_path / "back")
    (tmp_path / "out" / "weights.pth").write_bytes(b"junk")
    with pytest.raises(WeightError, match="not a state dict"):
        to_caffe(tmp_path / "out", tmp_path / "back")
    for text in ("CAFFE_NAMES = {", "CAFFE_NAMES = {f(): 1}", "CAFFE_NAMES = 3"):
        source.write_text(text)
        with pytest.raises(CaffeError, match="model.py: cannot be read"):
            to_caffe(tmp_path / "out", tmp_path / "back")
    convert(document, document, "torch", tmp_path / "out")
    source.write_text("class Net: pass")
    with pytest.raises(CaffeError, match="model.py: cannot be used with its weights"):
        load_module(tmp_path / "out")
    with pytest.raises(CaffeError, match="there is no such file"):
        to_caffe(tmp_path / "nowhere", tmp_path / "back")


# -- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["kernel_size: 3 stride: 2", "kernel_size: 2 stride: 3",
                                  "kernel_size: 3 stride: 2 pad: 2 pool: AVE",
                                  "kernel_size: 2 stride: 2 pad: 1 pool: AVE", "global_pooling: true pool: AVE"])
def test_any_size(pool: str, tmp_path: Path) -> None:
    """A converted net takes images of every size, and pools each as Caffe does."""
    net = net_of(INPUT + f"""layer {{ name: "c" type: "Convolution" bottom: "x" top: "y" {CONV} }}
        layer {{ name: "p" type: "Pooling" bottom: "y" top: "p" pooling_param {{ {pool} }} }}""")
    made = to_torch(net)
    for height in range(4, 12):
        net.blobs["x"].reshape(3, 4, height, 15 - height)
        net.blobs["x"].data[...] = np.random.RandomState(height).standard_normal(net.blobs["x"].shape)
        torch.testing.assert_close(call(made, net), net.forward()["p"], rtol=1e-5, atol=1e-6)


# -- types from elsewhere ----------------------------------------------------------------------------------------------


def test_a_type_of_ones_own(hard_swish: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example of docs/convert-types.md: a type is refused until it has an entry, then written with its class."""
    text = (Path(__file__).parents[2] / "docs" / "convert-types.md").read_text()
    (tmp_path / "myfork_convert.py").write_text(text.split("```python")[1].split("```")[0])
    monkeypatch.syspath_prepend(tmp_path)
    net = net_of(INPUT + hard_swish)
    document = Graph.of(net).to_document()
    with pytest.raises(CaffeError, match="act.*HardSwish layer cannot be converted to torch"):
        convert(document, None, "torch", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    import_module("myfork_convert")
    convert(document, None, "torch", tmp_path / "out")
    with pytest.raises(CaffeError, match="takes x; no values were given for x"):
        run_torch(tmp_path / "out", {})
    found = run_torch(tmp_path / "out", {"x": net.blobs["x"].data})["y"]
    np.testing.assert_allclose(found, net.forward()["y"].numpy(), rtol=1e-6)
