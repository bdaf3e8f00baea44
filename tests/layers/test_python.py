"""Python layers: what their class sees and may do, and when a file may name one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import caffe_compat as caffe
from caffe_compat import proto
from caffe_compat.errors import CaffeError, NetError
from caffe_compat.layers.python import BlobVec
from caffe_compat.net import Net

HERE = "here"


def spec(name: str, bottoms: str, tops: str, cls: str, more: str = "", param: str = "") -> str:
    ends = " ".join([*(f'bottom: "{blob}"' for blob in bottoms.split()), *(f'top: "{blob}"' for blob in tops.split())])
    text = f' param_str: "{param}"' if param else ""
    return (f'layer {{ name: "{name}" type: "Python" {ends} {more} '
            f'python_param {{ module: "{HERE}" layer: "{cls}"{text} }} }}\n')


def source(name: str, *shape: int) -> str:
    dims = " ".join(f"dim: {dim}" for dim in shape)
    return f'layer {{ name: "{name}" type: "Input" top: "{name}" input_param {{ shape {{ {dims} }} }} }}\n'


def build(text: str, phase: str = "TRAIN", **options: Any) -> caffe.Net:
    return caffe.Net(proto.parse_text(text, "NetParameter"), phase, **options)


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts this module where network files look for it."""
    monkeypatch.setitem(sys.modules, HERE, sys.modules[__name__])


class Scaled(caffe.Layer):
    """Bottom times the number in param_str."""

    def setup(self, bottom: list, top: list) -> None:
        assert len(bottom) == len(top) == 1
        self.factor = float(self.param_str)

    def reshape(self, bottom: list, top: list) -> None:
        top[0].reshape(*bottom[0].shape)

    def forward(self, bottom: list, top: list) -> None:
        top[0].data[...] = self.factor * bottom[0].data

    def backward(self, top: list, propagate_down: list, bottom: list) -> None:
        bottom[0].diff[...] = self.factor * top[0].diff


class Distance(caffe.Layer):
    """Half the squared distance of two bottoms, divided by the batch size; as EuclideanLoss."""

    def setup(self, bottom: list, top: list) -> None:
        if len(bottom) != 2:
            raise ValueError("two bottoms are needed")

    def reshape(self, bottom: list, top: list) -> None:
        self.difference = np.zeros_like(bottom[0].data, dtype=np.float32)
        top[0].reshape(1)

    def forward(self, bottom: list, top: list) -> None:
        self.difference[...] = bottom[0].data - bottom[1].data
        top[0].data[...] = np.sum(self.difference**2) / bottom[0].num / 2

    def backward(self, top: list, propagate_down: list, bottom: list) -> None:
        self.asked = list(propagate_down)
        for k, sign in ((0, 1), (1, -1)):
            if propagate_down[k]:
                bottom[k].diff[...] = sign * top[0].diff * self.difference / bottom[k].num


class Biased(caffe.Layer):
    """Bottom plus a parameter for each column."""

    def setup(self, bottom: list, top: list) -> None:
        self.blobs.add_blob(bottom[0].channels)
        self.blobs[0].data[...] = 1

    def reshape(self, bottom: list, top: list) -> None:
        top[0].reshape(*bottom[0].data.shape)

    def forward(self, bottom: list, top: list) -> None:
        top[0].data[...] = bottom[0].data + self.blobs[0].data

    def backward(self, top: list, propagate_down: list, bottom: list) -> None:
        self.blobs[0].diff[...] += top[0].diff.sum(0)
        if propagate_down[0]:
            bottom[0].diff[...] = top[0].diff


class Counter(caffe.Layer):
    """A source that counts its passes, and remembers the count."""

    def setup(self, bottom: list, top: list) -> None:
        self.count = 0
        top[0].reshape(2, 1)
        top[1].reshape(1)

    def forward(self, bottom: list, top: list) -> None:
        self.count += 1
        top[0].data[...] = [[self.count], [-self.count]]
        top[1].data[...] = self.phase

    def state(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state(self, state: dict[str, Any]) -> None:
        self.count = state["count"]

    def rewind(self) -> None:
        self.count = 0


class Squared(caffe.Layer):
    """Squares in place, and so needs no reshape."""

    def forward(self, bottom: list, top: list) -> None:
        self.bottom = bottom[0].data.copy()
        top[0].data[...] = self.bottom**2

    def backward(self, top: list, propagate_down: list, bottom: list) -> None:
        bottom[0].diff[...] = 2 * self.bottom * top[0].diff


class Partial(caffe.Layer):
    """Keeps what its top held."""

    def reshape(self, bottom: list, top: list) -> None:
        top[0].reshape(3)

    def forward(self, bottom: list, top: list) -> None:
        top[0].data[int(bottom[0].data)] += 1


class Broken(caffe.Layer):
    """Raises where param_str says."""

    def setup(self, bottom: list, top: list) -> None:
        self._maybe("setup")

    def reshape(self, bottom: list, top: list) -> None:
        top[0].reshape(*bottom[0].shape)
        self._maybe("reshape")

    def forward(self, bottom: list, top: list) -> None:
        self._maybe("forward")

    def backward(self, top: list, propagate_down: list, bottom: list) -> None:
        self._maybe("backward")

    def _maybe(self, where: str) -> None:
        if self.param_str == where:
            raise ZeroDivisionError(where)


class Nothing(caffe.Layer):
    """Defines nothing."""


class NoLayer:
    """Derives from nothing."""


def test_forward_and_backward(device: torch.device) -> None:
    net = build(source("x", 2, 3) + spec("a", "x", "y", "Scaled", param="3") + spec("b", "y", "z", "Scaled", param="-2")
                + 'force_backward: true', device=device)
    net.blobs["z"].diff[...] = 1
    net.backward()  # before any forward pass
    assert (net.blobs["x"].diff == -6).all()
    net.blobs["x"].data[...] = np.arange(6).reshape(2, 3)
    found = net.forward(blobs=["y"])
    np.testing.assert_array_equal(found["z"], -6.0 * np.arange(6).reshape(2, 3))
    net.blobs["z"].diff[...] = np.arange(6).reshape(2, 3)
    np.testing.assert_array_equal(net.backward()["x"], -6.0 * np.arange(6).reshape(2, 3))
    net.blobs["x"].reshape(4, 1)
    net.blobs["x"].data[...] = 1
    assert net.forward()["z"].tolist() == [[-6.0]] * 4


@pytest.mark.parametrize("solver_rounds", [1, 2])
def test_a_loss_layer_equals_the_built_in_one(solver_rounds: int, device: torch.device) -> None:
    head = (source("x", 4, 3) + source("t", 4, 2) + 'layer { name: "fc" type: "InnerProduct" bottom: "x" top: "fc" '
            'inner_product_param { num_output: 2 weight_filler { type: "gaussian" std: 1 } } }')
    nets = [build(head + spec("loss", "fc t", "loss", "Distance", "loss_weight: 0.5"), seed=1, device=device),
            build(head + 'layer { name: "loss" type: "EuclideanLoss" bottom: "fc" bottom: "t" top: "loss" '
                  "loss_weight: 0.5 }", seed=1, device=device)]
    rng = np.random.default_rng(0)
    x, t = rng.standard_normal((4, 3)), rng.standard_normal((4, 2))
    for net in nets:
        for _ in range(solver_rounds):
            net.forward(x=x, t=t)
            net.backward()
    np.testing.assert_allclose(nets[0].blobs["loss"].data, [nets[1].blobs["loss"].data], rtol=1e-5)
    for name in ("fc",):
        np.testing.assert_allclose(nets[0].blobs[name].diff, nets[1].blobs[name].diff, rtol=1e-5, atol=1e-7)
    for ours, theirs in zip(nets[0].params["fc"], nets[1].params["fc"], strict=True):
        np.testing.assert_allclose(ours.diff, theirs.diff, rtol=1e-4, atol=1e-6)
    assert nets[0].layer_dict["loss"].asked == [True, False]
    assert float(nets[0].loss) == pytest.approx(float(nets[1].loss))


def test_losses_of_several_passes_are_summed() -> None:
    """The class writes into the same top again; what was taken from it before stays."""
    net = build(source("x", 1, 2) + source("t", 1, 2) + spec("loss", "x t", "loss", "Distance", "loss_weight: 1"))
    losses = []
    for value in (2, 4):
        net.blobs["x"].data[...] = value
        losses.append(net.forward_backward())
    assert [float(loss) for loss in losses] == [4, 16]


def test_parameters(tmp_path: Path, device: torch.device) -> None:
    text = source("x", 2, 3) + spec("bias", "x", "y", "Biased", 'param { lr_mult: 2 }') + (
        'layer { name: "sum" type: "Reduction" bottom: "y" top: "sum" loss_weight: 1 }')
    net = build(text, device=device)
    assert net.params["bias"][0].tensor.device.type == device.type
    for _ in range(2):
        net.forward(x=np.zeros((2, 3)))
        net.backward()
    assert net.blobs["sum"].data == 6
    assert net.params["bias"][0].diff.tolist() == [4, 4, 4]
    assert net.layers[1].blobs[0] is net.params["bias"][0]
    net.params["bias"][0].data[...] = [1, 2, 3]
    net.save(tmp_path / "w.caffemodel")
    other = build(text, device=device)
    other.copy_from(tmp_path / "w.caffemodel")
    assert other.forward(x=np.zeros((2, 3)))["sum"] == 12
    (learnable,) = net.learnable
    assert learnable.lr_mult == 2


def test_a_source_of_data() -> None:
    text = spec("count", "", "n phase", "Counter")
    for phase in ("TRAIN", "TEST"):
        net = build(text, phase)
        assert net.blobs["n"].shape == (2, 1)
        for n in (1, 2):
            found = net.forward()
            assert found["n"].tolist() == [[n], [-n]] and found["phase"] == getattr(caffe, phase)
        net.layers[0].count = 9  # the user's own object
        assert net.forward()["n"][0] == 10
        assert isinstance(net.layer_dict["count"], Counter)


def test_a_source_is_resumed(tmp_path: Path) -> None:
    (tmp_path / "net.prototxt").write_text(
        spec("count", "", "n phase", "Counter") +
        'layer { name: "fc" type: "InnerProduct" bottom: "n" top: "fc" inner_product_param { num_output: 1 } }'
        'layer { name: "sum" type: "Reduction" bottom: "fc" top: "sum" loss_weight: 1 }')
    (tmp_path / "solver.prototxt").write_text(
        f'net: "{tmp_path}/net.prototxt" base_lr: 0.1 lr_policy: "fixed" max_iter: 2 snapshot_prefix: "{tmp_path}/s"')
    solver = caffe.SGDSolver(tmp_path / "solver.prototxt")
    solver.solve()
    resumed = caffe.SGDSolver(tmp_path / "solver.prototxt")
    resumed.restore(tmp_path / "s_iter_2.solverstate")
    assert resumed.net.layers[0].count == 2


def test_in_place() -> None:
    net = build(source("x", 3) + 'layer { name: "two" type: "Power" bottom: "x" top: "y" power_param { scale: 2 } }'
                + spec("square", "y", "y", "Squared") + "force_backward: true")
    assert net.forward(x=np.arange(3))["y"].tolist() == [0, 4, 16]
    net.blobs["y"].diff[...] = 1
    assert net.backward()["x"].tolist() == [0, 8, 16]


def test_a_top_keeps_its_values() -> None:
    net = build(source("i") + spec("count", "i", "n", "Partial"))
    for i in (0, 2, 2):
        net.blobs["i"].data[...] = i
        net.forward()
    assert net.blobs["n"].data.tolist() == [1, 0, 2]


@pytest.mark.parametrize("where", ["setup", "reshape", "forward", "backward"])
def test_exceptions_arrive_as_they_are(where: str, device: torch.device) -> None:
    with pytest.raises(ZeroDivisionError, match=where):
        net = build(source("x", 2) + spec("broken", "x", "y", "Broken", param=where) + "force_backward: true",
                    device=device)
        net.forward()
        net.backward()


def test_classes_that_cannot_be() -> None:
    net = build(source("x", 2) + spec("nothing", "x", "y", "Nothing"))
    with pytest.raises(NetError, match=r"nothing: the class Nothing of this Python layer does not define forward\("):
        net.forward()
    for cls, message in (("Scald", r'no class "Scald" .*did you mean "Scaled"\?\); it has Scaled, Distance'),
                         ("NoLayer", 'no class "NoLayer" that derives from caffe.Layer')):
        with pytest.raises(NetError, match=message):
            build(source("x", 2) + spec("a", "x", "y", cls))
    with pytest.raises(TypeError):
        BlobVec().add_blob(dim=2)


# -- permission -----------------------------------------------------------------------------------------------------

CODE = """
import caffe_compat as caffe
class Layer(caffe.Layer):
    def reshape(self, bottom, top): top[0].reshape(1)
    def forward(self, bottom, top): top[0].data[...] = 5
"""


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A net that names a module which nobody has imported."""
    (tmp_path / "elsewhere_layers.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "elsewhere_layers", raising=False)
    monkeypatch.setattr("caffe_compat.layers.python._allowed", False)
    path = tmp_path / "net.prototxt"
    path.write_text(spec("a", "", "y", "Layer").replace(HERE, "elsewhere_layers"))
    return str(path)


@pytest.mark.parametrize("cls", [caffe.Net, Net])
def test_files_do_not_run_code_unasked(cls: type, elsewhere: str) -> None:
    message = r"a \(.*net.prototxt:1\): the Python layer elsewhere_layers.Layer is code that .*allow_python_layers"
    with pytest.raises(NetError, match=message):
        cls(elsewhere, "TEST")
    assert "elsewhere_layers" not in sys.modules


def test_a_module_that_is_imported_may_be_named(elsewhere: str) -> None:
    import elsewhere_layers  # noqa: F401

    assert caffe.Net(elsewhere, "TEST").forward()["y"] == 5


def test_allowed(elsewhere: str) -> None:
    caffe.allow_python_layers()
    assert caffe.Net(elsewhere, "TEST").forward()["y"] == 5
    caffe.allow_python_layers(False)
    sys.modules.pop("elsewhere_layers")
    with pytest.raises(NetError, match="allow_python_layers"):
        caffe.Net(elsewhere, "TEST")


def test_a_module_that_is_not_there(elsewhere: str) -> None:
    caffe.allow_python_layers()
    Path(elsewhere).write_text(Path(elsewhere).read_text().replace("elsewhere_layers", "nowhere_layers"))
    with pytest.raises(NetError, match='there is no module "nowhere_layers"'):
        caffe.Net(elsewhere, "TEST")


def test_the_flag_of_the_command_line(elsewhere: str, capsys: pytest.CaptureFixture) -> None:
    from caffe_compat.cli import main

    arguments = ["time", "--model", elsewhere, "--iterations", "1"]
    assert main(arguments) == 1
    assert "give --allow_python_layers" in capsys.readouterr().err
    assert main([*arguments, "--allow_python_layers"]) == 0


def test_core_nets_run_them_too() -> None:
    core = Net(proto.parse_text(source("x", 2) + spec("a", "x", "y", "Scaled", param="3"), "NetParameter"), "TEST")
    core.blobs["x"].data[...] = 2
    assert core.forward()["y"].tolist() == [6, 6]
    assert core.layer_dict["a"].type == "Python"


def test_errors_are_caffe_errors() -> None:
    assert issubclass(NetError, CaffeError)
