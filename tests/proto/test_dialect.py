"""Dialects: private pools, built when first used, and added by users as an overlay file and a registry entry."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from google.protobuf import descriptor_pool

from caffe_compat import proto
from caffe_compat.errors import ParseError, UnknownType
from caffe_compat.proto import Dialect

OVERLAY = """
package caffe;
message LayerParameter { optional TurnParameter turn_param = 3202; }
message TurnParameter { repeated uint32 order = 1; }
"""


@pytest.fixture
def turn(tmp_path: Path) -> Dialect:
    path = tmp_path / "turn.proto"
    path.write_text(OVERLAY)
    return Dialect.from_overlay("turn", path)


def test_a_users_dialect_reads_files_of_its_own(dialects, turn: Dialect, tmp_path: Path) -> None:
    text = 'layer { name: "p" type: "Turn" turn_param { order: 0 order: 2 order: 1 } }'
    with pytest.raises(ParseError, match='unknown field "turn_param"'):
        proto.parse_text(text, "NetParameter")
    dialects.add("turn")(turn)
    document = proto.parse_text(text, "NetParameter")
    assert document.dialect is turn
    assert list(document.message.layer[0].turn_param.order) == [0, 2, 1]
    proto.write_binary(tmp_path / "p.caffemodel", document)
    assert proto.read_binary(tmp_path / "p.caffemodel", "NetParameter").dialect is turn


def test_hint_at_the_dialect_that_knows_a_field(dialects, turn: Dialect) -> None:
    dialects.add("turn")(turn)
    with pytest.raises(ParseError, match=r'"turn_param" in LayerParameter \(known in dialect turn, while this file'):
        proto.parse_text("layer { turn_param { order: 0 } }", "NetParameter", dialect=proto.BVLC)


def test_an_overlay_can_lie_over_another_dialect(turn: Dialect, tmp_path: Path) -> None:
    both = Dialect.from_overlay("both", turn.paths[-1], base=proto.INCREG)
    fields = both.descriptor("LayerParameter").fields_by_name
    assert "prune_param" in fields
    assert "turn_param" in fields
    assert "clip_param" not in fields


def test_pools_are_private_and_numbers_may_collide() -> None:
    with pytest.raises(KeyError):
        descriptor_pool.Default().FindMessageTypeByName("caffe.NetParameter")
    bvlc, increg = (dialect.descriptor("LayerParameter").fields_by_number for dialect in (proto.BVLC, proto.INCREG))
    assert (bvlc[148].name, increg[148].name) == ("clip_param", "prune_param")


def test_dialect_of_nested_messages() -> None:
    for dialect in (proto.BVLC, proto.INCREG):
        layer = dialect.message("NetParameter")().layer.add()
        assert proto.dialect_of(layer.pooling_param) is dialect


def test_nothing_is_read_before_it_is_needed(tmp_path: Path) -> None:
    dialect = Dialect.from_overlay("late", tmp_path / "missing.proto")
    with pytest.raises(ParseError, match=r"missing\.proto: cannot read this schema"):
        dialect.message("NetParameter")


def test_a_schema_that_protobuf_refuses_is_our_error(tmp_path: Path) -> None:
    path = tmp_path / "bad.proto"
    path.write_text('package caffe; message BlobShape { optional int32 n = 5 [default = "many"]; }')
    with pytest.raises(ParseError, match=r"bad\.proto"):
        Dialect.from_overlay("bad", path).message("BlobShape")


def test_threads_share_one_pool(turn: Dialect) -> None:
    barrier, found = threading.Barrier(8), []

    def use() -> None:
        barrier.wait()
        found.append(turn.message("NetParameter"))

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1


def test_unknown_message() -> None:
    with pytest.raises(UnknownType, match='dialect bvlc: unknown message "NetParam"'):
        proto.BVLC.message("NetParam")


def test_enum_name() -> None:
    layer = proto.BVLC.message("LayerParameter")()
    assert proto.enum_name(layer.pooling_param, "pool") == "MAX"
    layer.pooling_param.pool = 1
    assert proto.enum_name(layer.pooling_param, "pool") == "AVE"


def test_caffe_pb2() -> None:
    from caffe_compat.proto import caffe_pb2

    assert (caffe_pb2.TRAIN, caffe_pb2.TEST, caffe_pb2.Phase.Name(1)) == (0, 1, "TEST")
    assert caffe_pb2.PoolingParameter.AVE == 1
    assert caffe_pb2.NetParameter is proto.BVLC.message("NetParameter")
    assert {"Datum", "TEST"} <= set(dir(caffe_pb2))
    with pytest.raises(AttributeError):
        _ = caffe_pb2.NoSuchParameter
