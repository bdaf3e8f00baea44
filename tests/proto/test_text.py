"""Prototxt in and out: round trips, the lines of fields, the dialect, and every mistake with its place and a remedy."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from messages import messages

from caffe_compat import proto
from caffe_compat.errors import CaffeError, ParseError

NET = """# a comment with "quotes" and { braces
name: "net" layer { name: "one" type: "Input" }

layer {  # layer { not counted }
  name: "two # no comment"
  type: 'ReLU' bottom: "one"; top: "two"
}
layer: [ { name: "three" },
         { name: "four" top: ["a", 'b'] } ]
layer < name: "five" loss_weight: [1, 2.5] > input_dim: -1
"""


def fails(text: str, kind: str = "NetParameter", **options) -> ParseError:
    with pytest.raises(ParseError) as caught:
        proto.parse_text(text, kind, "net.prototxt", **options)
    return caught.value


# -- what can be read -----------------------------------------------------------------------------------------------


def test_the_whole_grammar_and_its_lines() -> None:
    document = proto.parse_text(NET, "NetParameter", upgrade=False)
    assert [layer.name for layer in document.message.layer] == ["one", "two # no comment", "three", "four", "five"]
    assert list(document.message.layer[3].top) == ["a", "b"]
    assert list(document.message.layer[4].loss_weight) == [1, 2.5]
    assert document.lines == {("name",): 2, ("layer", 0): 2, ("layer", 1): 4, ("layer", 2): 8, ("layer", 3): 9,
                              ("layer", 4): 10, ("input_dim", 0): 10}
    assert (document.dialect, document.path, document.arrays, document.notes) == (proto.BVLC, None, {}, [])


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
@pytest.mark.parametrize(("dialect", "kind"), [(proto.BVLC, "LayerParameter"), (proto.INCREG, "LayerParameter"),
                                               (proto.BVLC, "V1LayerParameter"), (proto.INCREG, "SolverParameter")])
def test_round_trip(dialect: proto.Dialect, kind: str, data: st.DataObject) -> None:
    nets = ("net_param", "train_net_param", "test_net_param")
    message = data.draw(messages(dialect, kind, without=nets))
    text = proto.dump_text(message)
    assert proto.parse_text(text, kind, dialect=dialect, upgrade=False).message == message


def test_blobs_in_text_keep_their_values_in_the_message() -> None:
    document = proto.parse_text("shape { dim: 2 } data: 1.5 data: -2", "BlobProto")
    assert list(document.message.data) == [1.5, -2]
    assert document.arrays == {}


@pytest.mark.parametrize(("text", "dialect"), [
    ('layer { type: "Clip" clip_param { min: 0 max: 1 } }', proto.BVLC),
    ('layer { type: "Convolution" prune_param { prune_ratio: 0.9 } }', proto.INCREG),
    ('layer { type: "Pooling" pooling_param { round_mode: FLOOR } }', proto.BVLC),
    ('layer { type: "Pooling" pooling_param { pad_shape { dim: 1 } } }', proto.INCREG),
    ('layer { type: "Permute" permute_param { order: 0 } }', proto.SSD),
    ('layer { type: "DetectionOutput" detection_output_param { code_type: CENTER_SIZE } }', proto.SSD),
    ('layer { type: "ReLU" }', proto.BVLC),
])
def test_the_dialect_is_told_from_the_fields(text: str, dialect: proto.Dialect) -> None:
    assert proto.parse_text(text, "NetParameter").dialect is dialect


def test_solver_of_the_fork() -> None:
    document = proto.parse_text('net: "n" prune_method: "Reg_Col" AA: 0.00025', "SolverParameter")
    assert document.dialect is proto.INCREG
    assert document.message.compRatio == 10000


def test_a_named_dialect_is_obeyed() -> None:
    text = 'layer { type: "ReLU" }'
    assert proto.parse_text(text, "NetParameter", dialect=proto.INCREG).dialect is proto.INCREG
    assert "known in dialect bvlc" in str(fails("layer { clip_param { min: 0 max: 1 } }", dialect=proto.INCREG))


def test_allow_unknown_leaves_fields_out_and_says_so() -> None:
    document = proto.parse_text('layer { name: "a" quux { x: 1 y { } } }\nlayer { name: "b" }', "NetParameter",
                                allow_unknown=True)
    assert [layer.name for layer in document.message.layer] == ["a", "b"]
    assert document.notes == ['line 1: unknown field "quux" in LayerParameter: left out']
    assert "pool has no value" in str(fails("layer { foo: 1 pooling_param { pool: MXA } }", allow_unknown=True))


# -- mistakes in the text -------------------------------------------------------------------------------------------


def test_all_unknown_fields_are_listed_at_once() -> None:
    error = fails('layer {\n  convolution_parm { }\n  top: "x"\n}\n\nfroce_backward: true\nlayer { zzz: 3 }')
    assert str(error).splitlines() == [
        'net.prototxt:2: unknown field "convolution_parm" in LayerParameter (did you mean "convolution_param"?)',
        'net.prototxt:6: unknown field "froce_backward" in NetParameter (did you mean "force_backward"?)',
        'net.prototxt:7: unknown field "zzz" in LayerParameter',
    ]
    assert (error.path, error.line) == ("net.prototxt", 2)


def test_a_long_list_is_cut() -> None:
    lines = str(fails("\n".join(f"unknown{i}: 1" for i in range(50)))).splitlines()
    assert len(lines) == 21
    assert lines[-1] == "... and 30 more"


@pytest.mark.parametrize(("text", "line", "words"), [
    # what stands where nothing of the kind can
    ("layer {\n name: \"a\"\n", 1, 'layer is opened here and never closed: a "}" is missing'),
    ("layer {\n}\n}", 3, 'nothing is open, found "}"'),
    ("layer {\n name: \"a\" >", 2, 'expected "}" for layer of line 1, found ">"'),
    ("layer\n}", 2, 'expected ":" or "{" after layer, found "}"'),
    ("name: \"a\nb\"", 1, "this string is not closed on its line"),
    ("name: }", 1, 'expected a value for name, found "}"'),
    ("name:", 1, "expected a value for name, found the end of the file"),
    ("\n\nname = 3", 3, "unexpected '='"),
    ("3: 4", 1, 'expected the name of a field, found "3"'),
    ("input_dim: [1 2]", 1, 'expected "," or "]" in the values of input_dim, found "2"'),
    ("input_dim: [1, 2", 1, "found the end of the file"),
    ("[a.b]: 1", 1, 'unknown field "[a.b]"'),
    ("layer {" * 200, 1, "nested more than 100 deep"),
    # values of the wrong kind
    ("layer { pooling_param { pool: MAXX } }", 1, 'pool has no value "MAXX" (did you mean "MAX"?); known: MAX, AVE,'),
    ("layer { pooling_param { pool: 7 } }", 1, 'pool has no value "7"'),
    ('layer { pooling_param { pool: "AVE" } }', 1, 'pool is "AVE", expected AVE, without quotes'),
    ("layer { type: CONVOLUTION }", 1, 'names like CONVOLUTION belong in the older "layers { ... }"'),
    ('layers { type: "Convolution" }', 1, 'or the newer "layer { ... }" with a type in quotes'),
    ("layer: 3", 1, "layer is a message: write layer { ... }, found 3"),
    ("name { }", 1, "name takes a value, found a message"),
    ("layer {\n pooling_param { kernel_size: 1.5 } }", 2, "Couldn't parse integer: 1.5"),
    ("layer { loss_weight: much }", 1, "much"),
    ("layer { include { phase: TRIAN } }", 1, 'did you mean "TRAIN"'),
    # contradictions
    ('name: "a"\nname: "b"', 2, 'should not have multiple "name" fields'),
    ("layer { }\nlayer { clip_param { min: 1 } }", 2, "required but not given: layer[1].clip_param.max"),
    ("layer { }\n\nlayers { }\nlayer { }", 3,
     'mixes "layer" (first on line 1) and the older "layers" (first on line 3)'),
])
def test_mistakes_are_placed_and_explained(text: str, line: int, words: str) -> None:
    error = fails(text)
    assert str(error).startswith(f"net.prototxt:{line}: ")
    assert words in str(error)
    assert error.line == line


def test_mixed_layers_inside_a_solver() -> None:
    error = fails("base_lr: 1\nnet_param {\n layers { }\n layer { } }", "SolverParameter")
    assert error.line == 4
    assert "(first on line 4)" in str(error)
    assert "(first on line 3)" in str(error)


def test_a_solver_where_a_net_is_expected() -> None:
    assert str(fails('net: "n.prototxt"\nbase_lr: 1')) == \
        "net.prototxt: expected a NetParameter, but this is a SolverParameter, which is given with --solver"


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.text(alphabet="layers {}<>[]:;,.#\"'\\-+0aNX\n\t_é", max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(ParseError):
        proto.parse_text(text, "NetParameter")


# -- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("content", "words"), [
    (b"", "this file is empty"),
    (b" \n", "this file is empty"),
    (b"\x0a\x03net\xa2\x06\x02\x0a\x00", "this is a binary file. Weights (.caffemodel) are given with --weights"),
    (b"\x89PNG\r\n\x1a\n....", "this is a PNG image"),
    (b"\x89HDF\r\n\x1a\n....", "this is an HDF5 file"),
    (b"PK\x03\x04....", "this is a zip archive"),
    ('name: "net"'.encode("utf-16"), "this text is in UTF-16: save it as UTF-8"),
    (b"<!DOCTYPE html>", "this is a web page: the download went wrong"),
    (b'name: "\xc4\xe3"', "name is not in UTF-8"),
])
def test_files_that_are_no_prototxt(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "net.prototxt"
    path.write_bytes(content)
    with pytest.raises(ParseError) as caught:
        proto.read_text(path, "NetParameter")
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


def test_comments_in_other_encodings_and_byte_order_marks_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "net.prototxt"
    path.write_bytes(b'\xef\xbb\xbf# \xc4\xe3\xba\xc3\r\nname: "n\xc3\xa9t"\r\n')
    assert proto.read_text(path, "NetParameter").message.name == "nét"


def test_files_that_are_not_there(tmp_path: Path) -> None:
    for path, words in ((tmp_path / "no.prototxt", "no such file"), (tmp_path, "this is a folder"),
                        (tmp_path / "a" / "b.prototxt", f"there is no folder {tmp_path / 'a'}")):
        with pytest.raises(ParseError) as caught:
            proto.read_text(path, "NetParameter")
        assert words in str(caught.value)


def test_write_and_read_back(tmp_path: Path) -> None:
    message = proto.parse_text(NET, "NetParameter", upgrade=False).message
    proto.write_text(tmp_path / "net.prototxt", message)
    assert proto.read_text(tmp_path / "net.prototxt", "NetParameter", upgrade=False).message == message
    assert [path.name for path in tmp_path.iterdir()] == ["net.prototxt"]


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    with pytest.raises(CaffeError, match=f"cannot be written: there is no folder {tmp_path / 'a'}"):
        proto.write_text(tmp_path / "a" / "net.prototxt", proto.BVLC.message("NetParameter")())
