"""What a model file may name: within `confined_to` nothing outside of its folder is read, and nothing is written."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from caffe_compat import proto
from caffe_compat.cli import main
from caffe_compat.db import create_database, make_datum
from caffe_compat.errors import CaffeError, DataError
from caffe_compat.net import Net
from caffe_compat.trust import PATH_FIELDS, check_readable, confined_to

DATA = 'layer { name: "d" type: "Data" top: "x" data_param { source: "%s" batch_size: 1 backend: LMDB } %s }'
OTHERS = {
    "HDF5Data": 'layer { name: "d" type: "HDF5Data" top: "x" hdf5_data_param { source: "%s" batch_size: 1 } }',
    "ImageData": 'layer { name: "d" type: "ImageData" top: "x" top: "y" image_data_param { source: "%s" batch_size: 1 } }',
    "WindowData": 'layer { name: "d" type: "WindowData" top: "x" top: "y" window_data_param { source: "%s" batch_size: 1 }'
                  ' transform_param { crop_size: 2 } }',
    "InfogainLoss": 'layer { name: "i" type: "Input" top: "x" top: "y" input_param { shape { dim: 1 dim: 2 } } }'
                    'layer { name: "d" type: "InfogainLoss" bottom: "x" bottom: "y" infogain_loss_param { source: "%s" } }',
}


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The model's folder and another one, both with a database; the working folder is a third."""
    model, other, here = (tmp_path / name for name in ("model", "other", "here"))
    for folder in (model, other, here):
        folder.mkdir()
    for folder in (model, other):
        with create_database(folder / "db") as writer:
            writer.put(b"0", make_datum(np.full((1, 2, 2), 7, np.uint8), 0).SerializeToString())
    monkeypatch.chdir(here)
    return model, other


def write(model: Path, text: str) -> Path:
    (model / "net.prototxt").write_text(text)
    return model / "net.prototxt"


def test_training_reads_what_the_file_names(places: tuple[Path, Path]) -> None:
    """As in Caffe, wherever it is."""
    model, other = places
    net = Net(write(model, DATA % (other / "db", "")))
    net.forward()
    assert net.blobs["x"].data.max() == 7


@pytest.mark.parametrize("field", ["source", "mean"])
def test_outside_of_its_folder(field: str, places: tuple[Path, Path]) -> None:
    model, other = places
    mean = f'transform_param {{ mean_file: "{other}/mean.binaryproto" }}'
    path = write(model, DATA % (((other if field == "source" else model) / "db"), mean if field == "mean" else ""))
    with confined_to(path), pytest.raises(DataError, match=rf"d \(.*net.prototxt:1\): names {other}/.*not opened only to look"):
        Net(path)
    with confined_to(path, allow=True), pytest.raises(CaffeError) if field == "mean" else confined_to(path, allow=True):
        Net(path)  # only the mean file is not there


def test_inside_of_its_folder_and_of_the_working_folder(places: tuple[Path, Path]) -> None:
    model, _ = places
    path = write(model, DATA % (model / "db", ""))
    with confined_to(path):
        Net(path).forward()
    (model / "db").rename("db")
    path = write(model, DATA % ("db", ""))
    with confined_to(path):
        Net(path).forward()


@pytest.mark.parametrize("type", OTHERS)
def test_every_layer_that_names_files(type: str, places: tuple[Path, Path]) -> None:
    """Refused before it is looked whether there is such a file: an error must not tell that either."""
    model, other = places
    (other / "there").write_text("x 0")
    messages = []
    for name in ("there", "not_there"):
        path = write(model, OTHERS[type] % (other / name))
        with confined_to(path), pytest.raises(DataError, match="not opened only to look") as error:
            Net(path)
        messages.append(str(error.value).replace("not_there", "there"))
    assert messages[0] == messages[1]


def test_links_and_dots_lead_outside_too(places: tuple[Path, Path]) -> None:
    model, other = places
    (model / "link").symlink_to(other)
    for name in (model / "link" / "db", model / ".." / "other" / "db", Path("../other/db")):
        path = write(model, DATA % (name, ""))
        with confined_to(path), pytest.raises(DataError, match="not opened only to look"):
            Net(path)


def test_lists_of_files(places: tuple[Path, Path]) -> None:
    """A list in the folder may name files outside of it, which are no better."""
    model, other = places
    for type, line in (("HDF5Data", f"{other}/x.h5"), ("ImageData", f"{other}/x.png 0"), ("WindowData", f"# 0\n{other}/x.png\n"
                       "3 9 9\n2\n1 0.9 0 0 5 5\n0 0.1 0 0 5 5\n")):
        (model / "list.txt").write_text(line)
        path = write(model, OTHERS[type] % (model / "list.txt"))
        with confined_to(path), pytest.raises(DataError, match=f"names {other}/x"):
            Net(path)


def test_nothing_is_written(places: tuple[Path, Path]) -> None:
    """HDF5Output writes in training and testing, not when a net is compared."""
    model, _ = places
    path = write(model, 'layer { name: "i" type: "Input" top: "x" top: "y" input_param { shape { dim: 1 dim: 2 } } }\n'
                        'layer { name: "o" type: "HDF5Output" bottom: "x" bottom: "y" hdf5_output_param { file_name: "%s" } }'
                 % (model / "out.h5"))
    with confined_to(path), pytest.raises(DataError, match=r"o \(.*:2\): would write .*out.h5"):
        Net(path).forward()
    assert not (model / "out.h5").exists()
    Net(path).forward()
    with h5py.File(model / "out.h5") as file:
        assert set(file) == {"data", "label"}


def test_commands(places: tuple[Path, Path], capsys: pytest.CaptureFixture) -> None:
    """show lists such a net without its shapes; check does not open it; both do with a word."""
    model, other = places
    path = str(write(model, DATA % (other / "db", "")))
    assert main(["show", path]) == 0
    assert "shapes are not known" in capsys.readouterr().out
    assert main(["show", path, "--allow-paths"]) == 0
    assert "1 1 2 2" in capsys.readouterr().out
    np.savez("x.npz", x=np.zeros((1, 1, 2, 2)))
    assert main(["check", path, path]) == 1
    assert "not opened only to look" in capsys.readouterr().err
    assert main(["check", path, path, "--allow-paths"]) == 0


def test_python_layers_are_code(places: tuple[Path, Path]) -> None:
    model, _ = places
    (model / "evil.py").write_text("raise SystemExit('it ran')")
    path = write(model, 'layer { name: "p" type: "Python" top: "x" python_param { module: "evil" layer: "Evil" } }')
    with confined_to(path), pytest.raises(CaffeError, match="evil"):
        Net(path)


def test_nothing_is_checked_outside(tmp_path: Path) -> None:
    check_readable("/etc/passwd", "layer")
    with confined_to(None), pytest.raises(DataError):
        check_readable("/etc/passwd", "layer")
    check_readable("/etc/passwd", "layer")


def test_every_field_that_names_a_file_is_known() -> None:
    """In all dialects: a string field with such a word in its name is among those that are checked."""
    words = "file", "source", "folder", "path", "directory"
    found = {field.name for dialect in proto.all_dialects() for message in dialect.messages.values()
             for field in message.fields if "Solver" not in message.name and field.cpp_type == field.CPPTYPE_STRING
             and any(word in field.name for word in words)}
    assert {"source", "mean_file", "file_name"} < found <= PATH_FIELDS
