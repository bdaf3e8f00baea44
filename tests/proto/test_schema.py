"""Our schemas against the originals, and the parser of .proto files against protoc."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet

from caffe_compat import proto
from caffe_compat.errors import ParseError
from caffe_compat.proto import schema

CAFFE_PROTO = Path(proto.__file__).parent / "caffe.proto"
#: The addition of ours that every dialect has.
OURS = {"ExtraState.name 1 optional string", "ExtraState.value 2 optional bytes",
        "SolverState.extra 10001 repeated ExtraState"}


def table(dialect: proto.Dialect) -> set[str]:
    """Every field and enum of a dialect, a line each, as in the recorded tables."""
    lines = set()

    def short(descriptor) -> str:
        return descriptor.full_name.removeprefix("caffe.")

    def add_enum(enum) -> None:
        values = sorted(enum.values, key=lambda value: value.number)
        lines.add(f"enum {short(enum)}: " + " ".join(f"{value.name}={value.number}" for value in values))

    for message in dialect.messages.values():
        for enum in message.enum_types:
            add_enum(enum)
        specs = DescriptorProto()
        message.CopyToProto(specs)
        for field, spec in zip(message.fields, specs.field, strict=True):
            label = "packed" if spec.options.packed else {1: "optional", 2: "required", 3: "repeated"}[spec.label]
            kind = field.message_type or field.enum_type
            name = short(kind) if kind else FieldDescriptorProto.Type.Name(field.type)[5:].lower()
            default = f" = {field.default_value!r}" if field.has_default_value else ""
            lines.add(f"{short(message)}.{field.name} {field.number} {label} {name}{default}")
    for enum in message.file.enum_types_by_name.values():
        add_enum(enum)
    return lines


def test_bvlc_has_exactly_the_fields_of_caffe(golden: Path) -> None:
    recorded = set((golden / "proto" / "schema_bvlc.txt").read_text().splitlines())
    assert table(proto.BVLC) - OURS == recorded
    assert table(proto.BVLC) >= OURS


def test_increg_differs_exactly_as_the_fork_does(golden: Path) -> None:
    changes = (golden / "proto" / "schema_increg.txt").read_text().splitlines()
    removed = {line[2:] for line in changes if line[0] == "-"}
    added = {line[2:] for line in changes if line[0] == "+"}
    assert {line for line in table(proto.INCREG) if not beyond(line)} == (table(proto.BVLC) - removed) | added


def beyond(line: str) -> bool:
    """Whether a line is of what increg has beyond the fork: SolverParameter's fields from 1000 on, and their types."""
    name, number = line.removeprefix("enum ").split()[:2]
    messages = ("PruneRatio", "PruneTarget", "GRegParameter", "SoftPruneParameter", "AFPParameter", "OneShotParameter",
                "DSAParameter", "OrthoRegParameter", "RankParameter", "CoupledRows:")
    ours = name.startswith("SolverParameter.") and number.isdigit() and int(number) >= 1000
    return name.split(".")[0] in messages or ours


def test_ssd_has_the_fields_of_the_fork(golden: Path) -> None:
    added = set((golden / "proto" / "schema_ssd.txt").read_text().splitlines())
    collided = {"SolverParameter.layer_wise_reduce 41 optional bool = True",
                "SolverParameter.weights 42 repeated string"}
    assert table(proto.SSD) == (table(proto.BVLC) - collided) | added


def test_parser_agrees_with_protoc(tmp_path: Path) -> None:
    protoc = pytest.importorskip("grpc_tools.protoc")
    target = tmp_path / "caffe.pb"
    assert protoc.main(["", f"-I{CAFFE_PROTO.parent}", f"--descriptor_set_out={target}", "caffe.proto"]) == 0
    theirs = FileDescriptorSet.FromString(target.read_bytes()).file[0]
    ours = schema.to_file(schema.read_schema(CAFFE_PROTO), "caffe.proto", "caffe.proto")
    for file in (ours, theirs):
        normalize(file)
    assert ours == theirs


def normalize(file: FileDescriptorProto) -> None:
    """The same spelling of what may be spelled in several ways."""
    file.syntax = "proto2"
    for message in file.message_type:
        for field in message.field:
            field.ClearField("json_name")
            if field.HasField("default_value") and field.type == FieldDescriptorProto.TYPE_FLOAT:
                field.default_value = repr(float(field.default_value))


def parse(tmp_path: Path, text: str) -> schema.DescriptorProto:
    path = tmp_path / "some.proto"
    path.write_text(text)
    return schema.read_schema(path)


BASE = """
package p;
enum Color { RED = 0; BLUE = 1; }
message Inner { optional int32 x = 1; enum E { A = 0; B = 1; } message Deep { optional int32 y = 1; } }
message Outer { optional Inner inner = 1; repeated float f = 2 [packed = true]; optional Inner.E e = 3 [default = B]; }
message Gone { optional Color c = 1; }
"""


def test_overlay_replaces_by_number_and_by_name_adds_and_drops(tmp_path: Path) -> None:
    change = """
    package p;
    message Outer {
      optional string by_number = 1;       // takes the place of inner
      optional bool f = 9;                 /* takes the place of f = 2 */
      optional Fresh fresh = 4;
      reserved "e";
    }
    message Inner { reserved 1; enum E { C = 1; D = 2; } message Deep { optional int32 z = 2; } }
    message Fresh { optional Color c = 1; }
    reserved "Gone";
    """
    merged = schema.merge(parse(tmp_path, BASE), parse(tmp_path, change))
    messages = {message.name: message for message in merged.nested_type}
    assert sorted(messages) == ["Fresh", "Inner", "Outer"]
    assert {field.name: field.number for field in messages["Outer"].field} == {"by_number": 1, "f": 9, "fresh": 4}
    assert not messages["Inner"].field
    assert {value.name: value.number for value in messages["Inner"].enum_type[0].value} == {"A": 0, "C": 1, "D": 2}
    assert [field.name for field in messages["Inner"].nested_type[0].field] == ["y", "z"]
    file = schema.to_file(merged, "f.proto", "f.proto")
    assert file.message_type[-1].field[0].type_name == ".p.Color"


@pytest.mark.parametrize(("text", "line", "words"), [
    ("package p;\nmessage M { optional int32 x = 1 }", 2, 'expected ";"'),
    ("package p;\nmessage M { optional int32 x = one; }", 2, "expected a number"),
    ("package p;\nmessage M { optional int32 x = 1; optional int32 y = 1; }", 2, "field number 1 is given twice"),
    ("package p;\nmessage M { oneof a { } }", 2, '"oneof" is not part'),
    ("package p;\nimport 'x.proto';", 2, '"import" is not part'),
    ("package p;\nmessage M { optional int32 x = 1 [defualt = 2]; }", 2, 'did you mean "default"'),
    ("package p;\nmessage M {\n  optional", 3, "the file ends within a statement"),
    ("package p;\n\n§", 3, "unexpected"),
    ("message M { }", None, 'no "package"'),
    ('syntax = "proto3";', 1, "proto2"),
])
def test_mistakes_in_a_schema_are_placed(tmp_path: Path, text: str, line: int | None, words: str) -> None:
    with pytest.raises(ParseError) as caught:
        parse(tmp_path, text)
    assert caught.value.line == line
    assert words in str(caught.value)
    assert "some.proto" in str(caught.value)


def test_unknown_type_names_the_field_and_what_was_meant(tmp_path: Path) -> None:
    root = parse(tmp_path, "package p; message Inner { } message M { optional Iner i = 1; }")
    with pytest.raises(ParseError, match=r'field i of message M has the unknown type Iner \(did you mean "Inner"'):
        schema.to_file(root, "f.proto", "some")
