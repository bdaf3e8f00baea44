"""The example of a whole cascade finds the faces of a photograph, on Caffe nets and on their ONNX exports."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "mtcnn.py"
#: Left, top, right, bottom of the two faces of test1.jpg, as one sees them.
FACES = np.array([[87, 18, 152, 103], [296, 88, 362, 168]])


@pytest.fixture(scope="module")
def example() -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLE))


@pytest.fixture
def folder(shared: Path) -> Path:
    folder = shared / "data" / "mtcnn"
    if not (folder / "test1.jpg").exists():
        pytest.skip("test1.jpg not found in ../shared/data/mtcnn")
    return folder


@pytest.mark.parametrize("kind", ["caffe_net", "onnx_net"])
def test_faces(kind: str, example: dict[str, Any], folder: Path) -> None:
    """The two faces and no other, eyes above the nose and the mouth below it."""
    if kind == "onnx_net":
        pytest.importorskip("onnxruntime", reason="needs onnxruntime (the extra `convert`)")
    nets = [example[kind](folder, name) for name in example["NAMES"]]
    boxes, landmarks = example["detect"](cv2.imread(str(folder / "test1.jpg")), nets)
    order = boxes[:, 0].argsort()
    boxes, landmarks = boxes[order], landmarks[order]
    assert boxes.shape == (2, 5) and (boxes[:, 4] > 0.99).all()
    np.testing.assert_allclose(boxes[:, :4], FACES, atol=5)
    left_eye, right_eye, nose, left_mouth, right_mouth = landmarks.transpose(1, 0, 2)
    assert (left_eye[:, 0] < right_eye[:, 0]).all() and (left_mouth[:, 0] < right_mouth[:, 0]).all()
    assert (np.maximum(left_eye, right_eye)[:, 1] < nose[:, 1]).all()
    assert (np.minimum(left_mouth, right_mouth)[:, 1] > nose[:, 1]).all()


def test_command(example: dict[str, Any], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It draws what it finds, and says so; what it cannot read is an error in words."""
    out = tmp_path / "faces.png"
    assert example["main"]([str(folder), str(folder / "test1.jpg"), str(out)]) == 0
    assert capsys.readouterr().out.count("face of ") == 2
    before, after = cv2.imread(str(folder / "test1.jpg")), cv2.imread(str(out))
    changed = np.argwhere((before != after).any(-1))
    assert 300 < len(changed) < 5000 and changed.min(0)[0] < 30
    assert example["main"]([str(folder), str(tmp_path / "none.jpg"), str(out)]) == 1
    assert "not an image" in capsys.readouterr().err
    assert example["main"]([str(tmp_path), str(folder / "test1.jpg"), str(out)]) == 1


def test_no_faces(example: dict[str, Any], folder: Path) -> None:
    """An empty wall has none; an image smaller than a face neither."""
    nets = [example["caffe_net"](folder, name) for name in example["NAMES"]]
    boxes, landmarks = example["detect"](np.full((60, 80, 3), 128, np.uint8), nets)
    assert boxes.shape == (0, 5) and landmarks.shape == (0, 5, 2)
    assert example["detect"](np.zeros((10, 10, 3), np.uint8), nets)[0].shape == (0, 5)


def test_overlaps(example: dict[str, Any]) -> None:
    """The better of two that overlap stays, by union or by the smaller box."""
    boxes = np.array([[0, 0, 10, 10, 0.7], [1, 0, 11, 10, 0.9], [20, 20, 24, 24, 0.8], [18, 18, 30, 30, 0.95]])
    assert example["keep"](boxes, 0.5).tolist() == [3, 1, 2]
    assert example["keep"](boxes, 0.5, of_smaller=True).tolist() == [3, 1]
