"""Binary files: against plain protobuf, which holds every value in the message, and against files that Caffe wrote."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from messages import messages

from caffe_compat import proto
from caffe_compat.errors import CaffeError, ParseError, WeightError
from caffe_compat.proto import Document

VALUES = ("data", "diff", "double_data", "double_diff")
QUICK = settings(max_examples=60, deadline=None, derandomize=True,
                 suppress_health_check=[HealthCheck.function_scoped_fixture])


def net(dialect: proto.Dialect = proto.BVLC):
    """A small net with one blob of four values, held in the message."""
    message = dialect.message("NetParameter")(name="n")
    blob = message.layer.add(name="conv", type="Convolution").blobs.add(data=[1, 2, 3, 4])
    blob.shape.dim.extend([2, 2])
    return message


def stored(tmp_path: Path, content: bytes | object) -> Path:
    """A file with the content: bytes, or a message as plain protobuf writes it."""
    path = tmp_path / "stored"
    path.write_bytes(content if isinstance(content, bytes) else content.SerializeToString())
    return path


def fails(path: Path, kind: str = "NetParameter", **options) -> str:
    with pytest.raises(ParseError) as caught:
        proto.read_binary(path, kind, **options)
    assert str(path) in str(caught.value)
    return str(caught.value)


def varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)


def field(number: int, content: bytes) -> bytes:
    """A length-delimited field on the wire."""
    return varint(number << 3 | 2) + varint(len(content)) + content


# -- against plain protobuf -----------------------------------------------------------------------------------------

arrays = hnp.arrays(st.sampled_from([np.float32, np.float64]), hnp.array_shapes(max_dims=4, max_side=4),
                    elements=st.floats(-1024, 1024, width=32))


def fill(message, values: np.ndarray, diff: bool) -> None:
    name = ("double_" if values.dtype == np.float64 else "") + ("diff" if diff else "data")
    getattr(message, name).extend(values.ravel().tolist())
    if not diff:
        message.shape.dim.extend(values.shape)


@QUICK
@given(blobs=st.lists(arrays, min_size=1, max_size=4), with_diff=st.booleans(), data=st.data())
@pytest.mark.parametrize(("dialect", "kind"), [(proto.BVLC, "NetParameter"), (proto.INCREG, "NetParameter"),
                                               (proto.INCREG, "SolverState"), (proto.BVLC, "BlobProto")])
def test_reads_what_protobuf_reads_and_writes_what_protobuf_writes(
    dialect: proto.Dialect, kind: str, blobs: list[np.ndarray], with_diff: bool, data: st.DataObject, tmp_path: Path,
) -> None:
    message, expected = dialect.message(kind)(), {}
    if kind == "BlobProto":
        expected[()] = blobs[0]
        targets = [(message, blobs[0])]
    elif kind == "SolverState":
        targets = [((message.history if i % 2 else message.history_punish).add(), blob) for i, blob in enumerate(blobs)]
        expected = {("history" if i % 2 else "history_punish", i // 2): blob for i, blob in enumerate(blobs)}
    else:
        targets = []
        for i, blob in enumerate(blobs):
            message.layer.append(data.draw(messages(dialect, "LayerParameter", without=("blobs",))))
            targets.append((message.layer[i].blobs.add(), blob))
            expected["layer", i, "blobs", 0] = blob
    for target, blob in targets:
        fill(target, blob, diff=False)
        if with_diff:
            fill(target, blob * 2, diff=True)
    path = stored(tmp_path, message)
    document = proto.read_binary(path, kind, dialect, upgrade=False)
    assert document.arrays.keys() == expected.keys()
    assert document.diffs.keys() == (expected.keys() if with_diff else set())
    for key, blob in expected.items():
        assert document.arrays[key].dtype == blob.dtype
        np.testing.assert_array_equal(document.arrays[key], blob, strict=True)
        if with_diff:
            np.testing.assert_array_equal(document.diffs[key], blob * 2, strict=True)
    proto.write_binary(tmp_path / "written", document)
    assert (tmp_path / "written").read_bytes() == message.SerializeToString()
    for target, _ in targets:
        for name in VALUES:
            target.ClearField(name)
    assert document.message == message


def test_files_of_caffe_come_back_byte_for_byte(real_files: Path, tmp_path: Path) -> None:
    for path in sorted(real_files.iterdir()):
        kind = "SolverState" if path.suffix == ".solverstate" else "NetParameter"
        document = proto.read_binary(path, kind, upgrade=False)
        proto.write_binary(tmp_path / "out", document)
        assert (tmp_path / "out").read_bytes() == path.read_bytes(), path.name
        assert document.dialect is proto.BVLC
        plain = proto.BVLC.message(kind).FromString(path.read_bytes())
        if kind == "SolverState":
            assert [list(array.ravel()) for array in document.arrays.values()] == [list(b.data) for b in plain.history]


def test_doubles_are_float64(real_files: Path) -> None:
    document = proto.read_binary(real_files / "double_data.caffemodel", "NetParameter")
    assert {array.dtype for array in document.arrays.values()} == {np.dtype(np.float64)}


def test_arrays_are_read_only_views_of_the_file(tmp_path: Path) -> None:
    array = proto.read_binary(stored(tmp_path, net()), "NetParameter").arrays["layer", 0, "blobs", 0]
    assert not array.flags.writeable
    assert not array.flags.owndata
    (tmp_path / "stored").unlink()
    assert array.tolist() == [[1, 2], [3, 4]]


# -- other encodings of the same ------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoded", [
    b"".join(b"\x2d" + np.float32(x).tobytes() for x in range(6)),
    field(5, np.arange(4, dtype="<f4").tobytes()) + field(5, np.arange(4, 6, dtype="<f4").tobytes()),
    field(5, np.arange(5, dtype="<f4").tobytes()) + b"\x2d" + np.float32(5).tobytes(),
    b"\xad\x00" + np.float32(0).tobytes() + field(5, np.arange(1, 6, dtype="<f4").tobytes()),
    b"".join(b"\x2d" + np.float32(x).tobytes() + b"\x35" + np.float32(x).tobytes() for x in range(6)),
], ids=["one by one", "in two packed chunks", "packed and single", "a key longer than needed", "data, diff, data..."])
def test_encodings_of_values(tmp_path: Path, encoded: bytes) -> None:
    path = stored(tmp_path, encoded + field(7, field(1, b"\x02\x03")))
    document = proto.read_binary(path, "BlobProto")
    assert document.arrays[()].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert list(proto.BVLC.message("BlobProto").FromString(path.read_bytes()).data) == [0, 1, 2, 3, 4, 5]


def test_single_values_beyond_the_first_window(tmp_path: Path) -> None:
    values = np.arange(1000, dtype="<f8")
    encoded = b"".join(b"\x41" + value.tobytes() for value in values)
    document = proto.read_binary(stored(tmp_path, encoded), "BlobProto")
    np.testing.assert_array_equal(document.arrays[()], values, strict=True)


def test_a_message_split_on_the_wire_is_one(tmp_path: Path) -> None:
    parts = [field(1, field(50, field(5, np.float32(x).tobytes()))) for x in (1, 2)]  # V1's `layer`, V0's `blobs`
    document = proto.read_binary(stored(tmp_path, field(2, b"".join(parts))), "NetParameter", upgrade=False)
    assert len(document.message.layers[0].layer.blobs) == 2
    assert {key: float(array) for key, array in document.arrays.items()} == \
        {("layers", 0, "layer", "blobs", 0): 1, ("layers", 0, "layer", "blobs", 1): 2}


def test_unknown_fields_survive_at_every_depth(tmp_path: Path) -> None:
    unknown = varint(5000 << 3) + b"\x07" + field(5001, b"text") + varint(5002 << 3 | 3) + field(1, b"in a group") \
        + varint(5002 << 3 | 4)
    blob = field(5, np.float32(1).tobytes()) + unknown
    content = field(1, b"n") + field(100, field(1, b"l") + field(7, blob) + field(106, unknown) + unknown) + unknown
    document = proto.read_binary(stored(tmp_path, content), "NetParameter")
    proto.write_binary(tmp_path / "out", document)
    assert (tmp_path / "out").read_bytes().count(unknown) == 4
    assert proto.read_binary(tmp_path / "out", "NetParameter").arrays.keys() == document.arrays.keys()


# -- shapes ---------------------------------------------------------------------------------------------------------


def blob(dims: tuple[int, ...] | None, count: int, **legacy: int):
    message = proto.BVLC.message("BlobProto")(data=[1.0] * count, **legacy)
    if dims is not None:
        message.shape.dim.extend(dims)
    return message


@pytest.mark.parametrize(("message", "shape"), [
    (blob((2, 3), 6), (2, 3)),
    (blob(None, 6, num=1, channels=2, height=1, width=3), (1, 2, 1, 3)),
    (blob((6,), 6, num=6, channels=1, height=1, width=1), (6, 1, 1, 1)),  # as in Caffe, the old shape comes first
    (blob(None, 1), ()),
    (blob(None, 3), (3,)),
    (blob(None, 0), (0,)),
    (blob((0, 3), 0), (0, 3)),
])
def test_shapes(tmp_path: Path, message, shape: tuple[int, ...]) -> None:
    net = proto.BVLC.message("NetParameter")()
    net.layer.add().blobs.append(message)
    assert proto.read_binary(stored(tmp_path, net), "NetParameter").arrays["layer", 0, "blobs", 0].shape == shape


@pytest.mark.parametrize(("dims", "count", "words"), [
    ((2, 3), 5, "the shape is 2 3 (6), but 5 values of data are stored"),
    ((1 << 20, 1 << 20), 4, "(1099511627776), but 4 values"),
    ((1 << 62, 4), 4, "but 4 values"),
    ((-1, -4), 4, "the shape is -1 -4"),
    ((4,), 0, "but 0 values"),
])
def test_shapes_that_the_values_contradict(tmp_path: Path, dims: tuple[int, ...], count: int, words: str) -> None:
    message = net()
    message.layer[0].blobs[0].CopyFrom(blob(dims, count))
    error = fails(stored(tmp_path, message))
    assert 'layer "conv", blobs 0: ' in error
    assert words in error


def test_a_diff_of_another_size(tmp_path: Path) -> None:
    message = net()
    message.layer[0].blobs[0].diff.append(1)
    assert "but 1 values of diff are stored" in fails(stored(tmp_path, message))


# -- writing --------------------------------------------------------------------------------------------------------


def test_arrays_of_all_kinds_are_written(tmp_path: Path) -> None:
    given_arrays = [np.arange(12, dtype=np.float32).reshape(3, 4).T, np.arange(4, dtype=np.float16), np.arange(3),
                    np.float32(2.5) * np.ones(()), np.zeros((0,), np.float32), np.arange(2, dtype=">f4"),
                    np.arange(3, dtype=np.float64)]
    message = proto.BVLC.message("NetParameter")()
    message.layer.add().blobs.extend([proto.BVLC.message("BlobProto")()] * len(given_arrays))
    document = Document(message, proto.BVLC, arrays={("layer", 0, "blobs", i): a for i, a in enumerate(given_arrays)})
    proto.write_binary(tmp_path / "out", document)
    again = proto.read_binary(tmp_path / "out", "NetParameter")
    for i, array in enumerate(given_arrays):
        found = again.arrays["layer", 0, "blobs", i]
        assert found.dtype == (np.float64 if array.dtype == np.float64 else np.float32)
        np.testing.assert_array_equal(found, array.astype(found.dtype), strict=True)
    assert not message.layer[0].blobs[0].HasField("shape"), "writing must not change the caller's message"


def test_arrays_take_the_place_of_values_and_shapes(tmp_path: Path) -> None:
    message = net()
    message.layer[0].blobs[0].num = 4
    document = Document(message, proto.BVLC, arrays={("layer", 0, "blobs", 0): np.full((5,), 7.0)})
    proto.write_binary(tmp_path / "out", document)
    written = proto.BVLC.message("NetParameter").FromString((tmp_path / "out").read_bytes()).layer[0].blobs[0]
    assert (list(written.double_data), list(written.data), list(written.shape.dim)) == ([7] * 5, [], [5])
    assert not written.HasField("num")
    assert list(message.layer[0].blobs[0].data) == [1, 2, 3, 4]


def test_a_message_of_its_own_keeps_its_values(tmp_path: Path) -> None:
    proto.write_binary(tmp_path / "out", net())
    assert (tmp_path / "out").read_bytes() == net().SerializeToString()


@pytest.mark.parametrize("key", [("layer", 0, "blobs", 1), ("layer", 7, "blobs", 0), ("history", 0), ()])
def test_an_array_without_a_place(tmp_path: Path, key: tuple) -> None:
    document = Document(net(), proto.BVLC, arrays={key: np.zeros(1, np.float32)})
    with pytest.raises(WeightError, match="there is no BlobProto"):
        proto.write_binary(tmp_path / "out", document)
    assert list(tmp_path.iterdir()) == []


def test_a_file_can_be_written_over_while_its_views_are_in_use(tmp_path: Path) -> None:
    path = stored(tmp_path, net())
    document = proto.read_binary(path, "NetParameter")
    document.message.name = "changed"
    proto.write_binary(path, document)
    assert document.arrays["layer", 0, "blobs", 0].tolist() == [[1, 2], [3, 4]]
    again = proto.read_binary(path, "NetParameter")
    assert again.message.name == "changed"
    assert again.arrays["layer", 0, "blobs", 0].tolist() == [[1, 2], [3, 4]]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = stored(tmp_path, net())
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CaffeError, match="stored: cannot be written: No space left on device"):
        proto.write_binary(path, Document(net(), proto.BVLC, arrays={("layer", 0, "blobs", 0): np.zeros(4)}))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupt_while_writing_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), proto.replacing(tmp_path / "out") as temporary:
        temporary.write_bytes(b"half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder" / "real")
    proto.write_binary(tmp_path / "link", net())
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "folder" / "real").read_bytes() == net().SerializeToString()


# -- the dialect ----------------------------------------------------------------------------------------------------


def in_dialect(dialect: proto.Dialect, kind: str, text: str) -> bytes:
    return proto.parse_text(text, kind, dialect=dialect, upgrade=False).message.SerializeToString()


@pytest.mark.parametrize(("dialect", "kind", "text"), [
    (proto.BVLC, "NetParameter", 'layer { type: "Clip" clip_param { min: 0 max: 6 } }'),
    (proto.BVLC, "NetParameter", 'layer { type: "Swish" swish_param { beta: 2 } }'),
    (proto.BVLC, "NetParameter", 'layer { type: "Pooling" pooling_param { round_mode: FLOOR } }'),
    (proto.BVLC, "NetParameter", 'layer { type: "ReLU" }'),
    (proto.BVLC, "SolverState", "iter: 5 history { data: 1 }"),
    (proto.INCREG, "NetParameter", 'layer { type: "Convolution" prune_param { prune_ratio: 0.9 } }'),
    (proto.INCREG, "NetParameter", 'layer { type: "Convolution" prune_param { } blobs { data: 1 } }'),
    (proto.INCREG, "NetParameter", "layer { prune_param { prune_ratio: 1 IF_update_row_col: false } }"),
    (proto.INCREG, "NetParameter", 'layer { type: "CenterLoss" center_loss_param { num_output: 3 } }'),
    (proto.INCREG, "NetParameter", 'layer { type: "Pooling" pooling_param { kernel_shape { dim: 3 } } }'),
    (proto.INCREG, "NetParameter", "layer { blobs { data: 1 length: 1 } }"),
    (proto.INCREG, "SolverState", "iter: 5 history { data: 1 } history_score { data: 1 } history_score { }"),
    (proto.SSD, "SolverState", "iter: 5 history { data: 1 } minimum_loss: 0.5"),
    (proto.SSD, "NetParameter", 'layer { type: "Normalize" norm_param { across_spatial: false } blobs { data: 1 } }'),
    (proto.INCREG, "SolverState", 'iter: 5 prune_state: "prune" prune_stage: 2'),
])
def test_the_dialect_is_told_from_the_contents(tmp_path: Path, dialect: proto.Dialect, kind: str, text: str) -> None:
    document = proto.read_binary(stored(tmp_path, in_dialect(dialect, kind, text)), kind)
    assert document.dialect is dialect


def test_a_named_dialect_is_obeyed(tmp_path: Path) -> None:
    path = stored(tmp_path, in_dialect(proto.INCREG, "SolverState", "iter: 5 history_score { data: 1 }"))
    document = proto.read_binary(path, "SolverState", dialect=proto.BVLC)
    assert document.dialect is proto.BVLC
    assert document.arrays == {}
    proto.write_binary(tmp_path / "out", document)
    assert (tmp_path / "out").read_bytes() == path.read_bytes()


def test_every_dialect_has_our_extra_state(tmp_path: Path) -> None:
    for dialect in (proto.BVLC, proto.INCREG):
        message = dialect.message("SolverState")(iter=3)
        message.extra.add(name="data", value=b"\xff\x00")
        proto.write_binary(tmp_path / "out", message)
        again = proto.read_binary(tmp_path / "out", "SolverState", dialect)
        assert [(extra.name, extra.value) for extra in again.message.extra] == [("data", b"\xff\x00")]


# -- files that are something else ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("content", "words"), [
    (b"", "this file is empty (0 bytes)"),
    (b"\x89PNG\r\n\x1a\n....", "this is a PNG image"),
    (b"\x89HDF\r\n\x1a\n....", "this is an HDF5 file. Caffe's HDF5 weights and states are recognised by the endings"),
    (b"PK\x03\x04....", "this is a zip archive"),
    (b"version https://git-lfs.github.com/spec/v1\n", "this is a Git LFS pointer"),
    (b'name: "net"\nlayer { name: "a" }\n', "this is text; a prototxt is given with --model or --solver"),
    (b"\xff" * 40, "not a complete NetParameter: a number is longer than 64 bits"),
    (field(100, field(1, b"abc"))[:-1], "bytes are missing"),
    (b"\x0f", "wire type 7 cannot be"),
    (b"\x00\x00", "field number 0 cannot be"),
    (field(100, field(7, field(5, b"\0" * 7))), "data has 7 bytes, which is no multiple of 4 (in layer 0 blobs 0)"),
    (field(100, field(7, b"\x29" + b"\0" * 8)), "data has values of 8 bytes, expected 4"),
    (field(1, b"\xff\xfe"), "name is b'\\xff\\xfe', which is no text in UTF-8"),
    (field(100, field(1, b"\xff")), "layer 0, name is b'\\xff'"),
    (varint(900 << 3 | 3) + b"\x0c", "a group is closed by another's end"),
])
def test_files_that_are_no_weights(tmp_path: Path, content: bytes, words: str) -> None:
    assert words in fails(stored(tmp_path, content))


def test_files_of_another_kind(tmp_path: Path, real_files: Path) -> None:
    state = real_files / "resume_sgd_bin_iter_10.solverstate"
    assert "this is a solver's state (.solverstate), which is given with --snapshot" in fails(state)
    weights = real_files / "double_data.caffemodel"
    assert "this is a net's weights (.caffemodel), which are given with --weights" in fails(weights, "SolverState")
    assert "this is a net's weights" in fails(weights, "BlobProto")
    mean = stored(tmp_path, blob((1, 3), 3))
    assert "this is a single array (.binaryproto), such as a mean image" in fails(mean)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    assert "no such file" in fails(tmp_path / "no.caffemodel")
    assert "this is a folder" in fails(tmp_path)


def test_mixed_layers(tmp_path: Path) -> None:
    content = field(100, field(1, b"new")) + field(2, field(4, b"old"))
    assert 'mixes 1 "layer" and 1 of the older "layers"' in fails(stored(tmp_path, content))


def test_cut_off_anywhere(real_files: Path, tmp_path: Path) -> None:
    whole = (real_files / "legacy_v1_upgraded.caffemodel").read_bytes()
    whole_arrays = proto.read_binary(real_files / "legacy_v1_upgraded.caffemodel", "NetParameter").arrays
    complete = 0
    for length in range(1, len(whole)):
        try:
            document = proto.read_binary(stored(tmp_path, whole[:length]), "NetParameter")
        except ParseError:
            continue
        complete += 1  # cut between two layers, which cannot be told from a shorter net
        assert len(document.message.layer) < 4
        for key, array in document.arrays.items():
            np.testing.assert_array_equal(array, whole_arrays[key])
    assert complete <= 6


@QUICK
@given(data=st.data())
def test_damaged_anywhere(real_files: Path, tmp_path: Path, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(sorted(real_files.iterdir())))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, min(len(content), 400) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ParseError):
        proto.read_binary(stored(tmp_path, bytes(content)), data.draw(st.sampled_from(["NetParameter", "SolverState"])))


# -- the real thing -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "kind", "dialect", "count"), [
    ("golden/increg/col_demo/reference_iter_1000.caffemodel", "NetParameter", proto.INCREG, 8),
    ("golden/increg/col_demo/reference_iter_1000.solverstate", "SolverState", proto.INCREG, 27),
    ("data/lenet5/baseline_lenet5.caffemodel", "NetParameter", proto.BVLC, 8),
    ("data/mtcnn/det3.caffemodel", "NetParameter", proto.BVLC, 21),
    ("data/ilsvrc12/imagenet_mean.binaryproto", "BlobProto", proto.BVLC, 1),
])
def test_real_models(shared: Path, tmp_path: Path, name: str, kind: str, dialect: proto.Dialect, count: int) -> None:
    path = shared / name
    if not path.exists():
        pytest.skip(f"needs {name} of the shared data")
    document = proto.read_binary(path, kind, upgrade=False)
    assert document.dialect is dialect
    assert len(document.arrays) == count
    proto.write_binary(tmp_path / "out", document)
    assert (tmp_path / "out").read_bytes() == path.read_bytes()
