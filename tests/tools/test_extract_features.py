"""extract_features: what a net makes of its data, as records of floats; and draw_net."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from caffe_compat import cli, proto
from caffe_compat.db import datum_image, open_database, parse_datum
from caffe_compat.net import Net

FOLDER = Path(__file__).parents[1] / "golden" / "logs"
WEIGHTS, MODEL = "snap/run_iter_60.caffemodel", "net.prototxt"


@pytest.fixture(autouse=True)
def in_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """The net names its data from there."""
    monkeypatch.chdir(FOLDER)


def expected(batches: int, *blobs: str) -> dict[str, np.ndarray]:
    net = Net(MODEL, "TEST")
    net.copy_from(WEIGHTS)
    found: dict[str, list[np.ndarray]] = {name: [] for name in blobs}
    for _ in range(batches):
        net.run()
        for name in blobs:
            found[name].append(np.atleast_1d(net.blobs[name].data.copy()))
    return {name: np.concatenate(values) for name, values in found.items()}


def test_features(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Records of every blob, in the order of the batches; axes that a blob does not have are 1."""
    shapes = {"pool1": (24, 5, 5), "fc": (10, 1, 1), "label": (1, 1, 1), "accuracy": (1, 1, 1)}
    paths = {name: tmp_path / name for name in shapes}
    databases = ",".join(map(str, paths.values()))
    assert cli.main(["extract_features", WEIGHTS, MODEL, ",".join(shapes), databases, "3", "lmdb", "CPU"]) == 0
    assert "Extracted features of 30 query images for feature blob fc" in capfd.readouterr().err
    wanted = expected(3, *shapes)
    for name, shape in shapes.items():
        records = [(key, parse_datum(value)) for key, value in open_database(paths[name]).records()]
        assert [key for key, _ in records] == [b"%010d" % i for i in range(3 if name == "accuracy" else 30)]
        assert not any(datum.data or datum.HasField("label") for _, datum in records)
        images = np.stack([datum_image(datum) for _, datum in records])
        assert images.dtype == np.float32 and images.shape[1:] == shape
        np.testing.assert_array_equal(images, wanted[name].reshape(images.shape))


def test_features_feed_a_data_layer(tmp_path: Path) -> None:
    assert cli.main(["extract_features", WEIGHTS, MODEL, "fc", str(tmp_path / "fc"), "2", "lmdb"]) == 0
    data = f'source: "{tmp_path}/fc" batch_size: 20 backend: LMDB'
    net = Net(proto.parse_text(f'layer {{ name: "d" type: "Data" top: "x" data_param {{ {data} }} }}', "NetParameter"))
    net.run()
    np.testing.assert_array_equal(net.blobs["x"].data[:, :, 0, 0], expected(2, "fc")["fc"])


WRONG = {
    "unknown blob": (["pool2", "db", "1", "lmdb"], 'has no blob "pool2" (did you mean "pool1"?)'),
    "one database for two": (["fc,label", "db", "1", "lmdb"], "each blob has a database of its own"),
    "one twice": (["fc,label", "db,db", "1", "lmdb"], "each blob has a database of its own"),
    "no batches": (["fc", "db", "0", "lmdb"], "1 or more"),
    "unknown kind": (["fc", "db", "1", "sqlite"], 'unknown database backend "SQLITE"'),
    "no folder": (["fc", "nowhere/db", "1", "lmdb"], "there is no folder nowhere"),
    "neither CPU nor GPU": (["fc", "db", "1", "lmdb", "TPU"], "TPU"),
}


@pytest.mark.parametrize("case", WRONG)
def test_refused(case: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """One line, status 1, and no database, not even a half of one."""
    arguments, message = WRONG[case]
    arguments[1] = ",".join(str(tmp_path / name) for name in arguments[1].split(","))
    try:
        status = cli.main(["extract_features", WEIGHTS, MODEL, *arguments])
    except SystemExit as stop:
        status = stop.code
    assert status == 1 and not list(tmp_path.iterdir())
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "error: " in line]
    assert message in line.replace(f"{tmp_path}/", "")


def test_draw_net(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The layers of a phase, or all; the format is the ending of the file's name."""
    texts = {}
    for phase in ("TRAIN", "TEST", "ALL"):
        path = tmp_path / f"{phase}.dot"
        assert cli.main(["draw_net", MODEL, str(path), "--rankdir=TB", "-phase", phase, "--display_lrm"]) == 0
        texts[phase] = path.read_text()
    assert f"Drawing net to {tmp_path}/ALL.dot" in capsys.readouterr().out
    assert "rankdir" in texts["ALL"] and "conv1" in texts["ALL"]
    assert {phase: ("train_data" in text, "accuracy" in text) for phase, text in texts.items()} == {
        "TRAIN": (True, False), "TEST": (False, True), "ALL": (True, True)}
    assert cli.main(["draw_net", MODEL, str(tmp_path / "nowhere" / "net.dot")]) == 1
