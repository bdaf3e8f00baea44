"""Finds faces with MTCNN, a cascade of three Caffe nets, and draws them (Zhang et al. 2016, arXiv:1604.02878).

    python examples/mtcnn.py MODELS photo.jpg faces.png           # runs the Caffe nets
    python examples/mtcnn.py MODELS photo.jpg faces.png --onnx    # converts them to ONNX, and runs those

MODELS is the folder of the published det1, det2, det3 (.prototxt and .caffemodel; MTCNNv1). The first net goes over the
image at many scales and proposes boxes of faces; the second and third look at what is in a box, refuse it or move its
edges; the third also gives five landmarks.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np

from caffe_compat import CaffeError
from caffe_compat.convert import convert
from caffe_compat.convert.onnx_run import session
from caffe_compat.net import Net

NAMES = ("det1", "det2", "det3")
#: The side of the images that each net looks at, and the step of the first one's output.
SIDES, STRIDE = (12, 24, 48), 2
THRESHOLDS = (0.6, 0.7, 0.7)
#: From one scale of the pyramid to the next.
FACTOR = 0.709

#: A batch (N, 3, ...) to the net's outputs by blob.
Run = Callable[[np.ndarray], dict[str, np.ndarray]]


def caffe_net(folder: Path, name: str) -> Run:
    """One of the nets, run by caffe_compat."""
    net = Net(folder / f"{name}.prototxt", keep_blobs=False)
    net.copy_from(folder / f"{name}.caffemodel")

    def run(batch: np.ndarray) -> dict[str, np.ndarray]:
        net.blobs["data"].reshape(*batch.shape)
        net.blobs["data"].data[...] = batch
        return {blob: tensor.numpy() for blob, tensor in net.forward().items()}

    return run


def onnx_net(folder: Path, name: str) -> Run:
    """One of the nets, converted to ONNX and run by onnxruntime."""
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / f"{name}.onnx"
        convert(folder / f"{name}.prototxt", folder / f"{name}.caffemodel", "onnx", path)
        return session(path)


def detect(image: np.ndarray, nets: list[Run], smallest: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (N, 5: left, top, right, bottom, probability) and landmarks (N, 5, 2: x, y) of the faces in a BGR `image`,
    those of at least `smallest` pixels."""
    # the nets were trained in Matlab: on RGB, and x before y
    pixels = (image[:, :, ::-1].astype(np.float32) - 127.5) / 128
    boxes = propose(pixels, nets[0], smallest)
    for stage in (1, 2):
        if not len(boxes):
            break
        boxes, landmarks = refine(pixels, boxes, nets[stage], stage)
    return (boxes, landmarks) if len(boxes) else (np.empty((0, 5)), np.empty((0, 5, 2)))


def propose(pixels: np.ndarray, net: Run, smallest: int) -> np.ndarray:
    """Square boxes of what may be faces, from all scales."""
    found = [np.empty((0, 5))]
    for scale in scales(pixels.shape[:2], smallest):
        height, width = (int(np.ceil(size * scale)) for size in pixels.shape[:2])
        outputs = net(as_batch([cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)]))
        probability = outputs["prob1"][0, 1]
        x, y = np.nonzero(probability > THRESHOLDS[0])
        corner = np.stack((x, y), 1) * STRIDE
        boxes = np.column_stack((corner / scale, (corner + SIDES[0]) / scale, probability[x, y]))
        kept = keep(boxes, 0.5)
        found.append(moved(boxes[kept], outputs["conv4-2"][0][:, x, y].T[kept]))
    boxes = np.concatenate(found)
    return squared(boxes[keep(boxes, 0.7)])


def scales(size: tuple[int, int], smallest: int) -> Iterator[float]:
    """The scales at which faces from `smallest` pixels on are as large as the first net's window."""
    scale = SIDES[0] / smallest
    while min(size) * scale >= SIDES[0]:
        yield scale
        scale *= FACTOR


def refine(pixels: np.ndarray, boxes: np.ndarray, net: Run, stage: int) -> tuple[np.ndarray, np.ndarray]:
    """The boxes that a net takes for faces, with their edges moved, and their landmarks if it gives them."""
    side = SIDES[stage]
    outputs = net(as_batch([cut_out(pixels, box, side) for box in boxes]))
    probability = outputs["prob1"][:, 1]
    faces = probability > THRESHOLDS[stage]
    boxes, probability = boxes[faces], probability[faces]
    boxes = np.column_stack((boxes[:, :4], probability))
    if stage == 1:
        kept = keep(boxes, 0.7)
        return squared(moved(boxes[kept], outputs["conv5-2"][faces][kept])), np.empty((0, 5, 2))
    sizes = boxes[:, None, 2:4] - boxes[:, None, :2]
    landmarks = outputs["conv6-3"][faces].reshape(-1, 2, 5).transpose(0, 2, 1) * sizes + boxes[:, None, :2]
    boxes = moved(boxes, outputs["conv6-2"][faces])
    kept = keep(boxes, 0.7, of_smaller=True)
    return boxes[kept], landmarks[kept]


def as_batch(images: list[np.ndarray]) -> np.ndarray:
    """Images (height, width, 3) as a batch (N, 3, width, height)."""
    return np.ascontiguousarray(np.stack(images).transpose(0, 3, 2, 1))


def cut_out(pixels: np.ndarray, box: np.ndarray, side: int) -> np.ndarray:
    """What is in a box, zeros where that lies outside of the image, as a square of `side` pixels."""
    left, top, right, bottom = np.round(box[:4]).astype(int)
    height, width = pixels.shape[:2]
    margins = max(0, -top), max(0, bottom - height), max(0, -left), max(0, right - width)
    inside = pixels[max(0, top):max(0, bottom), max(0, left):max(0, right)]
    return cv2.resize(cv2.copyMakeBorder(inside, *margins, cv2.BORDER_CONSTANT), (side, side),
                      interpolation=cv2.INTER_AREA)


def moved(boxes: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """Boxes with each edge moved by `shifts` (N, 4), which are parts of the box's size."""
    sizes = boxes[:, 2:4] - boxes[:, :2]
    return np.hstack((boxes[:, :4] + shifts * np.hstack((sizes, sizes)), boxes[:, 4:]))


def squared(boxes: np.ndarray) -> np.ndarray:
    """Squares around the middles of the boxes, as wide as their longer sides."""
    middle, half = (boxes[:, :2] + boxes[:, 2:4]) / 2, (boxes[:, 2:4] - boxes[:, :2]).max(1, keepdims=True) / 2
    return np.hstack((middle - half, middle + half, boxes[:, 4:]))


def keep(boxes: np.ndarray, limit: float, of_smaller: bool = False) -> np.ndarray:
    """Indices of the boxes, the most probable first, that overlap none before them by more than `limit` of their union
    (or of the smaller one)."""
    order = np.argsort(-boxes[:, 4], kind="stable")
    areas = np.prod(boxes[:, 2:4] - boxes[:, :2], axis=1)
    kept = []
    while len(order):
        first, order = order[0], order[1:]
        kept.append(first)
        low, high = np.maximum(boxes[first, :2], boxes[order, :2]), np.minimum(boxes[first, 2:4], boxes[order, 2:4])
        shared = np.prod(np.maximum(high - low, 0), axis=1)
        whole = np.minimum(areas[first], areas[order]) if of_smaller else areas[first] + areas[order] - shared
        order = order[shared <= limit * whole]
    return np.array(kept, int)


def draw(image: np.ndarray, boxes: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """A copy of the image with the boxes and landmarks."""
    image = image.copy()
    for (left, top, right, bottom, probability), points in zip(boxes, landmarks):
        corners = [tuple(np.round(corner).astype(int).tolist()) for corner in ((left, top), (right, bottom))]
        cv2.rectangle(image, *corners, (0, 220, 0), 2)
        cv2.putText(image, f"{probability:.3f}", (corners[0][0], corners[0][1] - 4), cv2.FONT_HERSHEY_SIMPLEX, 0.4,
                    (0, 220, 0), 1, cv2.LINE_AA)
        for point in np.round(points).astype(int).tolist():
            cv2.circle(image, point, 2, (0, 0, 255), -1)
    return image


def main(argv: list[str] | None = None) -> int:
    """Prints the faces and writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, help="the folder of det1, det2, det3")
    parser.add_argument("image", help="the photograph")
    parser.add_argument("out", help="the picture to write")
    parser.add_argument("--onnx", action="store_true", help="convert the nets to ONNX and run them by onnxruntime")
    parser.add_argument("--smallest", type=int, default=20, help="the side of the smallest face, in pixels (default 20)")
    args = parser.parse_args(argv)
    image = cv2.imread(args.image)
    if image is None:
        print(f"{args.image}: not an image that can be read", file=sys.stderr)
        return 1
    try:
        nets = [(onnx_net if args.onnx else caffe_net)(args.models, name) for name in NAMES]
    except CaffeError as error:
        print(error, file=sys.stderr)
        return 1
    boxes, landmarks = detect(image, nets, args.smallest)
    for left, top, right, bottom, probability in boxes:
        print(f"face of {right - left:.1f} x {bottom - top:.1f} at {left:.1f}, {top:.1f}: {probability:.4f}")
    if not cv2.imwrite(args.out, draw(image, boxes, landmarks)):
        print(f"{args.out}: cannot be written", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
