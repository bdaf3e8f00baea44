"""Broken model files by the thousand (see `fuzzing`): no crash, no hang, no memory taken, only errors of ours.

CAFFE_COMPAT_FUZZ=N runs N times as many cases. All are seeded: a failure names its seed.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import fuzzing
import h5py
import numpy as np
import pytest

from caffe_compat import create_solver, hdf5, memory, proto
from caffe_compat.errors import CaffeError
from caffe_compat.net import Net
from caffe_compat.weights import read_weights

GOLDEN = Path(__file__).parent / "golden"
TIMES = float(os.environ.get("CAFFE_COMPAT_FUZZ", "1"))
#: No case may take longer (seconds), nor ask for more memory (bytes).
PATIENCE, MEMORY = 20, 64 << 20
WEIGHTS = [GOLDEN / "caffemodel" / name for name in ("net.caffemodel", "net.caffemodel.h5")] + sorted(
    (GOLDEN / "caffemodel" / "other").glob("*.caffemodel"))
STATES = sorted((GOLDEN / "solvers" / "snapshots").glob("*.solverstate*"))
BLOBS = sorted(GOLDEN.rglob("*.binaryproto"))


@pytest.fixture(autouse=True)
def little_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As on a small machine, in an empty folder."""
    monkeypatch.setattr(memory, "LIMIT", MEMORY)
    monkeypatch.chdir(tmp_path)


@contextmanager
def bounded(seed: int) -> Iterator[None]:
    """Interrupts a case that takes too long."""
    def late(*_: object) -> None:
        raise TimeoutError(f"seed {seed}: still running after {PATIENCE} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(PATIENCE)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def count(cases: int) -> range:
    return range(int(cases * TIMES))


@pytest.mark.parametrize("part", range(4))
def test_prototxts(part: int, tmp_path: Path) -> None:
    """Mutations of all recorded layer cases and filtering nets, built and run in both phases."""
    texts = [case["prototxt"] for case in json.loads((GOLDEN / "layers" / "cases.json").read_text())]
    texts += [path.read_text() for path in sorted((GOLDEN / "filtering" / "nets").glob("*.prototxt"))]
    for seed in count(400):
        rng = random.Random(f"prototxt {part} {seed}")
        text = fuzzing.mutate_text(rng.choice(texts), texts, rng)
        with bounded(seed), fuzzing.only_our_errors(lambda: f"part {part}, seed {seed}:\n{text}"):  # noqa: B023
            fuzzing.use_net(text, tmp_path)


def test_solvers(tmp_path: Path) -> None:
    """Mutations of recorded solvers, which then make a step. They say how long to train, so passes are counted first."""
    shutil.copytree(GOLDEN / "solvers", tmp_path / "s")
    os.chdir("s")
    texts = [path.read_text() for path in sorted(Path("prototxt").glob("*.prototxt"))]
    for seed in count(120):
        rng = random.Random(f"solver {seed}")
        text = fuzzing.mutate_text(rng.choice(texts), texts, rng)
        with bounded(seed), fuzzing.only_our_errors(lambda: f"seed {seed}:\n{text}"):  # noqa: B023
            document = proto.parse_text(text, "SolverParameter")
            document.message.snapshot_prefix = str(tmp_path / "snapshot")
            solver = create_solver(document, device="cpu")
            if document.message.iter_size < 100:
                solver.step(1)


@pytest.mark.parametrize(("files", "use", "cases"), [
    (WEIGHTS, "weights", 300), ([WEIGHTS[1]], "weights", 100), (STATES, "state", 200), (BLOBS, "blob", 100)],
    ids=["weights", "hdf5 weights", "states", "blobs"])
def test_binary_files(files: list[Path], use: str, cases: int, tmp_path: Path) -> None:
    """Mutations of files that real Caffe wrote, read and loaded."""
    data = {path: path.read_bytes() for path in files}
    assert data
    for seed in count(cases):
        rng = random.Random(f"{use} {seed}")
        path = rng.choice(files)
        broken = tmp_path / f"x{''.join(path.suffixes)}"
        broken.write_bytes(fuzzing.mutate_bytes(data[path], rng))
        target = GOLDEN / "caffemodel" / ("net.prototxt" if path.name.startswith("net") else "target.prototxt")
        run = {"weights": lambda: fuzzing.use_weights(broken, target), "state": lambda: fuzzing.use_state(broken),  # noqa: B023
               "blob": lambda: fuzzing.use_blob(broken)}[use]  # noqa: B023
        with bounded(seed), fuzzing.only_our_errors(lambda: f"{use}, seed {seed}, a mutation of {path}"):  # noqa: B023
            run()


def test_unchanged_files_are_taken(tmp_path: Path) -> None:
    """What the fuzzer mutates is good: otherwise it would look at nothing but parsers' first errors."""
    for case in json.loads((GOLDEN / "layers" / "cases.json").read_text())[::20]:
        if case["feed"] == "inputs" and not case["needs_cwd"]:
            proto.parse_text(case["prototxt"], "NetParameter")
            Net(proto.parse_text(case["prototxt"], "NetParameter"), case["phase"])
    fuzzing.use_weights(WEIGHTS[0], GOLDEN / "caffemodel" / "net.prototxt")
    for path in STATES:
        fuzzing.use_state(path)
    for path in BLOBS:
        fuzzing.use_blob(path)


# -- holes that were there, and sizes that files may claim ------------------------------------------------------------

INPUT = 'layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 dim: 8 dim: 8 } } }\n'
REFUSED = {
    "an input of 10^12": ('layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 1000000000000 } } }',
                          r"in \(net:1\): top blob \"x\": .*1,000,000,000,000 values"),
    "a negative input": ('layer { name: "in" type: "Input" top: "x" input_param { shape { dim: -1 dim: 3 } } }', "negative"),
    "more than the machine has": ('layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 100000000 } } }',
                                  "the net takes 0.4 GiB up to here; this machine has 0.1"),
    "2^31 outputs": (INPUT + 'layer { name: "l" type: "InnerProduct" bottom: "x" top: "y" inner_product_param { '
                     'num_output: 2147483648 } }', r"l \(net:2\): parameter 0: a blob of the shape 2147483648 192 has"),
    "2^32 - 1 filters": (INPUT + 'layer { name: "l" type: "Convolution" bottom: "x" top: "y" convolution_param { '
                         'num_output: 4294967295 kernel_size: 1 } }', r"l \(net:2\): parameter 0"),
    "a kernel of 10^9": (INPUT + 'layer { name: "l" type: "Convolution" bottom: "x" top: "y" convolution_param { '
                         'num_output: 1 kernel_size: 1000000000 pad: 1000000000 } }', r"l \(net:2\): parameter 0"),
    "padding of 10^9": (INPUT + 'layer { name: "l" type: "Im2col" bottom: "x" top: "y" convolution_param { kernel_size: 1 '
                        'stride: 1000000000 pad: 1000000000 } }', r"l \(net:2\): with the positions"),
    "pooling beyond the bottom": (INPUT + 'layer { name: "l" type: "Pooling" bottom: "x" top: "y" pooling_param { '
                                  'kernel_size: 1000000000 stride: 1000000000 } }', r"l \(net:2\): with the positions"),
    "a pyramid without end": (INPUT + 'layer { name: "l" type: "SPP" bottom: "x" top: "y" spp_param { '
                              'pyramid_height: 4000000000 } }', r"l \(net:2\): the padding"),
    "tiles": (INPUT + 'layer { name: "l" type: "Tile" bottom: "x" top: "y" tile_param { tiles: 2000000000 } }',
              r"l \(net:2\): top blob \"y\""),
    "dummy data": ('layer { name: "l" type: "DummyData" top: "y" dummy_data_param { shape { dim: 2000000000 } } }',
                   r"l \(net:1\): the net takes"),
    "one top twice": ('layer { name: "l" type: "DummyData" top: "y" top: "y" dummy_data_param { shape { dim: 2 } } }',
                      r"l \(net:1\): top blob \"y\" is already produced by this layer"),
    "another shape in place": (INPUT + 'layer { name: "l" type: "Convolution" bottom: "x" top: "x" convolution_param { '
                               'num_output: 3 kernel_size: 3 } }', r"l \(net:2\): cannot work in place"),
    "a negative eps": (INPUT + 'layer { name: "l" type: "BatchNorm" bottom: "x" top: "y" batch_norm_param { eps: -1 } }',
                       r"l \(net:2\): eps is -1"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused_before_memory_is_taken(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text, message = REFUSED[what]
    with pytest.raises(CaffeError, match=message):
        Net(proto.parse_text(text, "NetParameter", "net"))


def test_strides_that_crash_torch() -> None:
    """Found by fuzzing: a transposed convolution of stride 16384 ended the process."""
    text = """layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 1 dim: 1 dim: 3 } } }
        layer { name: "up" type: "Deconvolution" bottom: "x" top: "y" convolution_param { num_output: 1 kernel_size: 2
          stride: 16384 weight_filler { type: "constant" value: 2 } } }"""
    net = Net(proto.parse_text(text, "NetParameter"))
    net.blobs["x"].data[...] = [[[1, 2, 3]]]
    net.forward()
    y = net.blobs["y"].data.ravel()
    assert y.shape == (2 * 16384 + 2,) and np.flatnonzero(y).tolist() == [0, 1, 16384, 16385, 32768, 32769]
    assert y[[0, 16385, 32768]].tolist() == [2, 4, 6]


def test_a_blob_that_claims_more_than_it_has(tmp_path: Path) -> None:
    """2^40 values in 12 bytes."""
    message = proto.BVLC.message("NetParameter")()
    blob = message.layer.add(name="ip", type="InnerProduct").blobs.add()
    blob.shape.dim.extend([1 << 20, 1 << 20])
    blob.data.extend([1, 2, 3])
    (tmp_path / "x.caffemodel").write_bytes(message.SerializeToString())
    with pytest.raises(CaffeError, match=r'x.caffemodel: layer "ip", blobs 0: the shape is 1048576 1048576 .*but 3 values'):
        read_weights(tmp_path / "x.caffemodel")


def test_reshaping_a_blob_is_bounded_too() -> None:
    net = Net(proto.parse_text(INPUT, "NetParameter", "net"))
    with pytest.raises(CaffeError, match="Caffe's limit is"):
        net.blobs["x"].reshape(1 << 20, 1 << 20)


# -- HDF5 -------------------------------------------------------------------------------------------------------------


def _link(file: h5py.File) -> None:
    file.create_group("data/ip")["0"] = h5py.ExternalLink("other.h5", "/x")


def _linked_layer(file: h5py.File) -> None:
    file.create_group("data")["ip"] = h5py.ExternalLink("other.h5", "/layer")


def _linked_root(file: h5py.File) -> None:
    file["data"] = h5py.ExternalLink("other.h5", "/")


def _raw(file: h5py.File) -> None:
    file.create_dataset("data/ip/0", (8,), "u1", external=[("other.h5", 0, 8)])


def _virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((3,), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "x", (3,))
    file.create_virtual_dataset("data/ip/0", layout)


def _huge(file: h5py.File) -> None:
    file.create_dataset("data/ip/0", (1 << 40,), "f4", chunks=(1024,))


def _loop(file: h5py.File) -> None:
    file.create_group("data/ip")["0"] = h5py.SoftLink("/data/ip/0")


def _deep(file: h5py.File) -> None:
    file["data/" + "a/" * 200 + "0"] = np.zeros(3, np.float32)


def _empty(file: h5py.File) -> None:
    file["data/ip/0"] = h5py.Empty("f4")


@pytest.mark.parametrize(("make", "message"), [
    (_link, "is a link to other.h5, which is not opened"), (_linked_layer, "is a link to other.h5"),
    (_linked_root, "is a link to other.h5"), (_raw, "values lie in other files"), (_virtual, "values lie in other files"),
    (_huge, "claims 1,099,511,627,776 values .* but only 0 bytes are stored"), (_loop, "not a readable HDF5 file"),
    (_deep, "nested more than 100 deep"), (_empty, "not a readable HDF5 file")])
def test_hdf5_files_name_no_others_and_hold_what_they_claim(make: Callable, message: str, tmp_path: Path) -> None:
    with h5py.File("other.h5", "w") as file:
        file["x"] = file["layer/0"] = np.ones(3, np.float32)
    with h5py.File("x.h5", "w") as file:
        make(file)
    with pytest.raises(CaffeError, match=f"x.h5: .*{message}"):
        read_weights("x.h5")


def test_hdf5_in_circles_and_compressed() -> None:
    """Groups that hold themselves are walked once; zeros may be stored in almost no bytes."""
    with h5py.File("x.h5", "w") as file:
        file.create_dataset("data/ip/0", data=np.zeros((500, 500), np.float32), compression="gzip")
        file["data/again"] = file["data"]
    (values,) = read_weights("x.h5").arrays.values()
    assert values.shape == (500, 500)
    assert hdf5.list_data_sets("x.h5") == [("data/ip/0", (500, 500), "float32")]
