"""caffe.io: images from files, resized, cropped and transformed for a net; arrays to Caffe's messages and back.

Images are arrays (height, width, channels), float32 in 0..1 where `load_image` made them. OpenCV is loaded when needed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import DataError
from ..proto import caffe_pb2
from .net_spec import WrongValue
from .resize import resize_image
from .transformer import Transformer

__all__ = [
    "Transformer", "array_to_blobproto", "array_to_datum", "arraylist_to_blobprotovector_str", "blobproto_to_array",
    "blobprotovector_str_to_arraylist", "datum_to_array", "load_image", "oversample", "resize_image",
]

#: What each of red, green and blue counts for in grey.
_LUMINANCE = np.array([0.2125, 0.7154, 0.0721])


# -- messages -------------------------------------------------------------------------------------------------------


def blobproto_to_array(blob: Any, return_diff: bool = False) -> np.ndarray:
    """The values of a BlobProto message (`data`, or `diff`) as a float64 array, of an old four-number shape too.

    Raises WrongValue (a ValueError) where number of values and shape differ, and for values kept as double_data, which
    pycaffe does not read either.
    """
    values = np.array((blob.diff if return_diff else blob.data)[:], dtype=np.float64)
    if any(blob.HasField(name) for name in ("num", "channels", "height", "width")):
        shape = blob.num, blob.channels, blob.height, blob.width
    else:
        shape = tuple(blob.shape.dim)
    try:
        return values.reshape(shape)
    except ValueError:
        doubles = len(blob.double_diff if return_diff else blob.double_data)
        raise WrongValue(f"the blob's shape is {shape}, but it holds {values.size} values"
                         + (f" (and {doubles} as doubles, which are not read)" if doubles else "")) from None


def array_to_blobproto(arr: np.ndarray, diff: np.ndarray | None = None) -> Any:
    """A BlobProto message of an array, and of a diff of the same shape."""
    if diff is not None and diff.shape != arr.shape:
        raise WrongValue(f"the diff's shape is {diff.shape}, the array's {arr.shape}; they must be equal")
    blob = caffe_pb2.BlobProto(data=arr.ravel().tolist(), diff=[] if diff is None else diff.ravel().tolist())
    blob.shape.dim.extend(arr.shape)
    return blob


def arraylist_to_blobprotovector_str(arraylist: Sequence[np.ndarray]) -> bytes:
    """The bytes of a BlobProtoVector message of several arrays."""
    return caffe_pb2.BlobProtoVector(blobs=[array_to_blobproto(arr) for arr in arraylist]).SerializeToString()


def blobprotovector_str_to_arraylist(str: bytes) -> list[np.ndarray]:
    """The arrays in the bytes of a BlobProtoVector message."""
    return [blobproto_to_array(blob) for blob in caffe_pb2.BlobProtoVector.FromString(str).blobs]


def array_to_datum(arr: np.ndarray, label: int | None = None) -> Any:
    """A Datum message of an array (channels, height, width): as bytes if it is uint8, else as floats."""
    if arr.ndim != 3:
        raise WrongValue(f"Incorrect array shape: a datum takes (channels, height, width), not {arr.shape}")
    datum = caffe_pb2.Datum(channels=arr.shape[0], height=arr.shape[1], width=arr.shape[2])
    if arr.dtype == np.uint8:
        datum.data = arr.tobytes()
    else:
        datum.float_data.extend(arr.ravel().tolist())
    if label is not None:
        datum.label = label
    return datum


def datum_to_array(datum: Any) -> np.ndarray:
    """The array (channels, height, width) of a Datum message, uint8 of bytes or float64 of floats, label apart."""
    if datum.encoded:
        raise WrongValue("the datum holds an encoded image file; decode its data, with cv2.imdecode for one")
    floats = np.array(datum.float_data[:], np.float64)
    values = np.frombuffer(datum.data, np.uint8).copy() if len(datum.data) else floats
    shape = datum.channels, datum.height, datum.width
    if values.size != np.prod(shape):
        raise WrongValue(f"the datum holds {values.size} values, but its shape is {shape}")
    return values.reshape(shape)


# -- images ---------------------------------------------------------------------------------------------------------


def load_image(filename: str | os.PathLike[str], color: bool = True) -> np.ndarray:
    """An image file as float32 in 0..1: (height, width, 3) in RGB, or without `color` (height, width, 1) in grey.

    Alpha is dropped. Raises `DataError` for a file that is not there or no image.
    """
    import cv2

    name = os.fspath(filename)
    if not os.path.isfile(name):
        raise DataError(f"{name}: there is no such image file")
    image = cv2.imread(name, cv2.IMREAD_UNCHANGED)
    if image is None:
        raise DataError(f"{name}: this is no image file that OpenCV can read")
    values = image / np.iinfo(image.dtype).max if image.dtype.kind in "iu" else image.astype(np.float64)
    if values.ndim == 2:
        values = np.repeat(values[:, :, None], 3 if color else 1, axis=2)
    else:
        values = values[:, :, 2::-1]  # OpenCV's order is blue, green, red
        values = values if color else (values @ _LUMINANCE)[:, :, None]
    return values.astype(np.float32)


def oversample(images: Sequence[np.ndarray], crop_dims: Sequence[int]) -> np.ndarray:
    """Ten crops of each image (height, width, channels), float32: the corners, the centre, and these five mirrored.

    The result has ten rows for each image, in this order: top left, top right, bottom left, bottom right, centre.
    """
    images = np.asarray(images)
    size, (height, width) = np.array(images.shape[1:3]), (int(dim) for dim in crop_dims)
    if images.ndim != 4 or height > size[0] or width > size[1]:
        raise WrongValue(f"cannot cut crops of {height} x {width} out of images (height, width, channels) that "
                         f"together have the shape {images.shape}")
    bottom, right = size - (height, width)
    corners = [(0, 0), (0, right), (bottom, 0), (bottom, right), (bottom // 2, right // 2)]
    crops = np.empty((len(images), 10, height, width, images.shape[3]), np.float32)
    for k, (y, x) in enumerate(corners):
        crops[:, k] = images[:, y:y + height, x:x + width]
    crops[:, 5:] = crops[:, :5, :, ::-1]
    return crops.reshape(-1, *crops.shape[2:])
