"""Older definitions: equal in meaning to what Caffe's upgrade tools wrote, with lines and arrays that follow."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from caffe_compat import proto
from caffe_compat.errors import ParseError

CASES = json.loads((Path(__file__).parents[1] / "golden" / "proto" / "upgrade.json").read_text())["cases"]
GOOD = [case for case in CASES if case["output"] is not None]
BAD = {case["name"]: case for case in CASES if case["output"] is None}


@pytest.mark.parametrize("case", GOOD, ids=lambda case: case["name"])
def test_equal_to_caffe(case: dict) -> None:
    document = proto.parse_text(case["input"], case["kind"], upgrade=False)
    lost = proto.upgrade(document)
    assert document.message == proto.parse_text(case["output"], case["kind"], upgrade=False).message
    assert bool(lost) == (case["exit_status"] != 0)
    assert set(lost) <= set(document.notes)
    assert bool(document.notes) == (not case["name"].endswith("current"))


@pytest.mark.parametrize("case", GOOD, ids=lambda case: case["name"])
def test_reading_upgrades_and_today_s_form_stays(case: dict) -> None:
    document = proto.parse_text(case["input"], case["kind"])
    again = proto.parse_text(proto.dump_text(document.message), case["kind"])
    assert again.message == document.message
    assert again.notes == []


@pytest.mark.parametrize(("name", "line", "words"), [
    ("bad_mixed", 3, "mixes"),
    ("bad_pad_into_relu", 5, 'padding layer "pd" feeds layer "r" of type relu'),
    ("bad_solver_both", 3, "both solver_type and type (line 2) are given"),
    ("bad_syntax", 2, 'unknown field "no_such_field"'),
    ("bad_v0_unknown_type", 2, 'layer "q": unknown V0 layer type "quantum"'),
])
def test_what_caffe_aborts_on_is_an_error(name: str, line: int, words: str) -> None:
    case = BAD[name]
    with pytest.raises(ParseError) as caught:
        proto.parse_text(case["input"], case["kind"])
    assert caught.value.line == line
    assert words in str(caught.value)


def test_every_recorded_refusal_is_tested() -> None:
    assert set(BAD) == {"bad_mixed", "bad_pad_into_relu", "bad_solver_both", "bad_syntax", "bad_v0_unknown_type"}


def test_lines_follow_the_layers() -> None:
    text = """input: "x"
input_dim: [1, 2, 8, 8]
layers { layer { name: "pad" type: "padding" pad: 2 } bottom: "x" top: "p" }
layers { layer { name: "conv" type: "conv" } bottom: "p" top: "c" }

layers { layer { name: "relu" type: "relu" } bottom: "c" top: "c" }"""
    document = proto.parse_text(text, "NetParameter")
    assert [layer.name for layer in document.message.layer] == ["input", "conv", "relu"]
    assert document.lines == {("layer", 0): 1, ("layer", 1): 4, ("layer", 2): 6}
    assert document.message.layer[1].convolution_param.pad == [2]


@pytest.mark.parametrize("version", ["v0", "v1"])
def test_weights_are_upgraded_as_caffe_does_byte_for_byte(version: str, real_files: Path, tmp_path: Path) -> None:
    document = proto.read_binary(real_files / f"legacy_{version}.caffemodel", "NetParameter")
    upgraded = real_files / f"legacy_{version}_upgraded.caffemodel"
    assert document.message.layer[1].blobs[0].HasField("num")  # the old shape is kept: Caffe matches it leniently
    assert document.arrays["layer", 1, "blobs", 0].ndim == 4
    for key, array in proto.read_binary(upgraded, "NetParameter").arrays.items():
        np.testing.assert_array_equal(document.arrays[key], array)
    proto.write_binary(tmp_path / "out", document)
    assert (tmp_path / "out").read_bytes() == upgraded.read_bytes()


def test_diffs_follow_too_and_values_outside_of_v0_layers_are_dropped() -> None:
    old = proto.parse_text('layers { layer { type: "padding" } } layers { layer { type: "conv" blobs { } } blobs { } }',
                           "NetParameter", upgrade=False)
    value, other = np.ones(1, np.float32), np.zeros(1, np.float32)
    for values in (old.arrays, old.diffs):
        values.update({("layers", 1, "layer", "blobs", 0): value, ("layers", 1, "blobs", 0): other})
    proto.upgrade(old)
    for values in (old.arrays, old.diffs):
        assert list(values) == [("layer", 0, "blobs", 0)]
        assert values["layer", 0, "blobs", 0] is value


def test_nets_inside_a_solver() -> None:
    document = proto.parse_text("""solver_type: ADAM
        net_param { layers { type: RELU name: "r" } } test_net_param { input: "x" input_shape { dim: 2 } }""",
                                "SolverParameter")
    assert document.message.type == "Adam"
    assert document.message.net_param.layer[0].type == "ReLU"
    assert document.message.test_net_param[0].layer[0].input_param.shape[0].dim == [2]
    assert len(document.notes) == 3


@pytest.mark.parametrize(("text", "words"), [
    ('input: "a" input: "b" input_shape { dim: 1 }', "found 2 input and 1 input_shape"),
    ('input: "a" input_dim: 1 input_dim: 2', "found 1 input and 2 input_dim"),
    ('layers { layer { type: "padding" } bottom: "a" bottom: "b" top: "p" } '
     'layers { layer { type: "conv" } bottom: "p" top: "c" }', "must have one bottom each"),
])
def test_contradictions(text: str, words: str) -> None:
    with pytest.raises(ParseError, match=words):
        proto.parse_text(text, "NetParameter", "net.prototxt")


def test_batch_norm_with_other_than_three_params_is_left_alone() -> None:
    document = proto.parse_text('layer { type: "BatchNorm" param { lr_mult: 1 } param { lr_mult: 2 } }', "NetParameter")
    assert [spec.lr_mult for spec in document.message.layer[0].param] == [1, 2]
    assert document.notes == []
