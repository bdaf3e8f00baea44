"""Datum, the record of Caffe's image databases: an image as raw bytes, as floats or as a JPEG/PNG file, and a label.

Images are numpy arrays (channels, height, width), uint8 or float32. Colour images that were stored as files come out
in the order B, G, R, as OpenCV decodes them; raw ones in the order they were stored in. The errors raised here do not
say which record is meant: the caller, who knows, adds it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from math import prod
from typing import Any, TypeVar

import numpy as np
from google.protobuf.message import DecodeError

from .. import proto
from ..errors import DataError

Item = TypeVar("Item")
Result = TypeVar("Result")


@cache
def datum_class() -> Callable[..., Any]:
    """The Datum message class, which every dialect shares."""
    return proto.BVLC.message("Datum")


def parse_datum(value: bytes) -> Any:
    """The Datum in a record's bytes."""
    try:
        return datum_class().FromString(value)
    except DecodeError as error:
        raise DataError(f"the record is not a Datum ({error}); was the database made for another program?") from error


def datum_image(datum: Any, color: bool | None = None) -> np.ndarray:
    """The image in a Datum, (channels, height, width). It may be a read-only view of the message's bytes.

    `color` says how to decode a stored file: to 3 channels, to 1 (False), or to as many as it has (None). Raises
    `DataError` for an image that cannot be decoded or has another number of values than its Datum says.
    """
    if datum.encoded:
        return decode_image(datum.data, color)
    shape = datum.channels, datum.height, datum.width
    if data := datum.data:
        image = np.frombuffer(data, np.uint8)
    else:
        image = np.fromiter(datum.float_data, np.float32, len(datum.float_data))
    if image.size != prod(shape) or min(shape) < 1:
        expected = " x ".join(map(str, shape))
        raise DataError(f"the Datum says {expected} (channels x height x width), but it holds {image.size} values")
    return image.reshape(shape)


def decode_image(data: bytes, color: bool | None = None, size: tuple[int, int] | None = None) -> np.ndarray:
    """Decodes an image file's bytes with OpenCV, as Caffe does, to uint8 (channels, height, width) in B, G, R order.

    `color` as for `datum_image`; None keeps what the file has: also an alpha channel, as the fourth. With `size`
    (height, width) the image is resized, with linear interpolation.
    """
    import cv2  # here, as it takes long to import and only encoded images need it

    flag = {None: cv2.IMREAD_UNCHANGED, True: cv2.IMREAD_COLOR, False: cv2.IMREAD_GRAYSCALE}[color]
    buffer = np.frombuffer(data, np.uint8)
    image = cv2.imdecode(buffer, flag) if buffer.size else None
    if image is None:
        raise DataError(f"OpenCV cannot decode the {len(data)} bytes of this image; it is damaged or of an unknown "
                        "format")
    if image.dtype != np.uint8:
        raise DataError(f"the image has {image.dtype} pixels; only 8 bits a channel can be used, so convert it first")
    if size is not None:
        image = cv2.resize(image, size[::-1])
    return image[None] if image.ndim == 2 else image.transpose(2, 0, 1)


def read_image(
    path: str | os.PathLike[str], color: bool | None = True, size: tuple[int, int] | None = None,
) -> np.ndarray:
    """Reads an image file: `decode_image` of its content. Raises `DataError` naming the file."""
    content = read_file(path)
    try:
        return decode_image(content, color, size)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error.__cause__


def convert_all(
    convert: Callable[[Item], Result], items: Sequence[Item], name: Callable[[int], str], parallel: bool = True,
) -> list[Result]:
    """`convert` of each item, if `parallel` on several cores (OpenCV lets other threads run while it decodes).

    A `DataError` is raised again with `name(i)`, the item that it is about, before its text.
    """
    done: list[Result] = []
    try:
        for result in _workers().map(convert, items) if parallel and len(items) > 1 else map(convert, items):
            done.append(result)
    except DataError as error:
        raise DataError(f"{name(len(done))}: {error}") from error.__cause__
    return done


@cache
def _workers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(8, os.cpu_count() or 1), "decode")


def read_file(path: str | os.PathLike[str]) -> bytes:
    """The bytes of an image file; `DataError` naming it if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise DataError(f"{path}: the image cannot be read: {error.strerror or error}") from error


def encode_image(image: np.ndarray, kind: str) -> bytes:
    """The image (channels, height, width; B, G, R) as a file of the kind "png", "jpg", ... ."""
    import cv2

    try:
        done, buffer = cv2.imencode(f".{kind}", np.ascontiguousarray(image.transpose(1, 2, 0)))
    except cv2.error as error:
        raise DataError(f'OpenCV cannot write images of the kind "{kind}": {error.err}; use "png" or "jpg"') from error
    if not done:
        raise DataError(f'OpenCV could not write this image as "{kind}"')
    return buffer.tobytes()


def make_datum(image: np.ndarray | bytes, label: int) -> Any:
    """A Datum of an image (channels, height, width), as bytes if it is uint8 and as float_data else, or of the bytes of
    an image file.
    """
    if isinstance(image, bytes):
        return datum_class()(data=image, label=label, encoded=True)
    channels, height, width = image.shape
    datum = datum_class()(channels=channels, height=height, width=width, label=label)
    if image.dtype == np.uint8:
        datum.data = image.tobytes()
    else:
        datum.float_data.extend(image.ravel().tolist())
    return datum
