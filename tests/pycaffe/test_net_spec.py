"""NetSpec against programs run by pycaffe: each gives the recorded message, or fails where pycaffe fails."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from caffe_compat import proto
from caffe_compat.errors import CaffeError
from caffe_compat.pycaffe import net_spec
from caffe_compat.pycaffe.net_spec import NetSpec, assign_proto, layers, params, to_proto

FOLDER = Path(__file__).parents[1] / "golden" / "netspec"
CASES = json.loads((FOLDER / "programs.json").read_text())["cases"]
PHASES = {"TRAIN": 0, "TEST": 1}


class Program:
    """Runs the statements of a recorded program."""

    def __init__(self) -> None:
        self.spec = NetSpec()
        self.variables: dict[str, Any] = {}

    def run(self, case: dict[str, Any]) -> Any:
        for statement in case["program"]:
            if "alias" in statement:
                self._assign([statement["alias"]], self._read(statement["of"]))
            else:
                inputs = [self._read(name) for name in statement["inputs"]]
                made = getattr(layers, statement["call"])(*inputs, **self._value(statement["kwargs"]))
                self._assign(statement["assign"], made)
        place, _, arguments = case["result"].partition("to_proto(")
        if place == "n.":
            return self.spec.to_proto()
        tops = [self._read(name.strip()) for name in arguments.rstrip(")").split(",") if name]
        return self._read(place.rstrip(".")).to_proto() if place else to_proto(*tops)

    def _read(self, name: Any) -> Any:
        if isinstance(name, dict):
            return name["literal"]
        return getattr(self.spec, name[2:]) if name.startswith("n.") else self.variables[name]

    def _assign(self, names: list[str | None], made: Any) -> None:
        for name, top in zip(names, [made] if len(names) == 1 else made, strict=True):
            if name and name.startswith("n."):
                setattr(self.spec, name[2:], top)
            elif name:
                self.variables[name] = top

    def _value(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._value(item) for item in value]
        if not isinstance(value, dict):
            return value
        if set(value) != {"enum"}:
            return {key: self._value(item) for key, item in value.items()}
        message, _, name = value["enum"].rpartition(".")
        return getattr(getattr(params, message), name) if message else PHASES[name]


@pytest.mark.parametrize("case", [case for case in CASES if not case["error"]], ids=lambda case: case["name"])
def test_recorded_programs_give_the_recorded_message(case: dict[str, Any]) -> None:
    found = Program().run(case)
    expected = proto.read_text(FOLDER / case["text"], "NetParameter", proto.BVLC).message
    assert len(expected.layer) > 0
    assert proto.dump_text(found) == proto.dump_text(expected)


@pytest.mark.parametrize("case", [case for case in CASES if case["error"]], ids=lambda case: case["name"])
def test_recorded_errors_are_of_the_same_class_and_ours(case: dict[str, Any]) -> None:
    recorded = {"TypeError": TypeError, "AttributeError": AttributeError}[case["error"].split(":")[0]]
    with pytest.raises(recorded) as caught:
        Program().run(case)
    assert isinstance(caught.value, CaffeError)


def test_deep_nets_need_no_deep_stack() -> None:
    top = layers.Input(shape={"dim": [1]})
    for _ in range(3000):
        top = layers.ReLU(top)
    message = to_proto(top)
    assert [message.layer[0].name, message.layer[1].name, message.layer[-1].name] == ["Input1", "ReLU1", "ReLU3000"]


def test_messages_of_another_dialect() -> None:
    n = NetSpec()
    n.data = layers.Input(shape={"dim": [1, 4]})
    n.ip = layers.InnerProduct(n.data, num_output=2, prune_param={"prune_ratio": 0.5})
    assert n.to_proto(proto.INCREG).layer[1].prune_param.prune_ratio == 0.5
    with pytest.raises(AttributeError, match=r'InnerProduct layer "ip": .*prune_param'):
        n.to_proto()


def test_what_a_value_may_be() -> None:
    spec = proto.BVLC.message("LayerParameter")()
    assign_proto(spec, "bottom", "a")
    assign_proto(spec, "bottom", ["b", "c"])
    assert list(spec.bottom) == ["a", "b", "c"]
    assign_proto(spec, "param", [{"lr_mult": 1}, {}])
    assert [param.lr_mult for param in spec.param] == [1, 1] and not spec.param[1].HasField("lr_mult")
    assign_proto(spec, "scale_param", {"filler": {}})
    assert not spec.HasField("scale_param")  # as in pycaffe: a message without fields is not written


@pytest.mark.parametrize(("name", "value", "message"), [
    ("nmae", "x", r'LayerParameter has no field nmae \(did you mean "name"\?\)'),
    ("name", ["x"], r"LayerParameter\.name holds one value, not a list"),
    ("name", {"x": 1}, r"LayerParameter\.name takes a plain value, not \{'x': 1\}"),
    ("name", 3, r"cannot set LayerParameter\.name to 3: "),
    ("param", 3, r"LayerParameter\.param takes a dict of ParamSpec's fields, not 3"),
    ("pooling_param", {"pool": "MAX"}, r"PoolingParameter\.pool takes one of params\.Pooling\.MAX, .*not 'MAX'"),
    ("pooling_param", {"pad": -1}, r"cannot set PoolingParameter\.pad to -1: "),
])
def test_what_a_value_may_not_be(name: str, value: Any, message: str) -> None:
    with pytest.raises(CaffeError, match=message):
        assign_proto(proto.BVLC.message("LayerParameter")(), name, value)


def test_errors_name_the_layer() -> None:
    n = NetSpec()
    n.conv1 = layers.Convolution(num_outputs=3)
    with pytest.raises(net_spec.NoSuchName, match=r'Convolution layer "conv1": .*no.* has a field num_outputs '
                                                  r'\(did you mean "num_output"\?\)') as caught:
        n.to_proto()
    assert caught.value.layer == "conv1"


def test_unknown_names() -> None:
    n = NetSpec()
    n.conv1 = layers.Convolution()
    with pytest.raises(KeyError, match=r'no top "conv2" was assigned \(did you mean "conv1"\?\)'):
        _ = n["conv2"]
    assert not hasattr(n, "conv2")
    with pytest.raises(AttributeError, match=r"PoolingParameter has no value MAXIMUM.*AVE"):
        _ = params.Pooling.MAXIMUM
    with pytest.raises(AttributeError, match="PoolngParameter"):
        _ = params.Poolng
    with pytest.raises(TypeError, match="several tops"):
        n.data = layers.Data(ntop=2)


def test_the_makers_of_layers_and_values_can_be_copied() -> None:
    """copy and inspect probe private names, which must not be taken for layer types."""
    assert not hasattr(layers, "__wrapped__") and not hasattr(params, "__wrapped__")
    assert copy.copy(params).Pooling.AVE == params.Pooling.AVE == 1


def test_arguments_are_left_as_they_are() -> None:
    fields = {"ntop": 2, "in_place": False, "batch_size": 3}
    data, label = layers.Data(**fields)
    function = net_spec.Function("Data", (), fields)
    assert set(fields) == {"ntop", "in_place", "batch_size"}
    assert function.params == {"batch_size": 3} == data.fn.params
    assert (data.n, label.n) == (0, 1)
