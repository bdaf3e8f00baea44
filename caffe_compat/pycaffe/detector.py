"""caffe.Detector: a net that classifies windows of images, as R-CNN does."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Any

import numpy as np

from ..errors import CaffeError, DataError
from . import io
from .classifier import transformer_of
from .net import Net


class Detector(Net):
    """A net for windows of images in its first input, warped to its size.

    `mean`, `input_scale`, `raw_scale` and `channel_swap` are the Transformer's settings. With `context_pad` each window
    is enlarged so that its surroundings fill a border of that many pixels of the input; outside the image is the mean.
    """

    def __init__(self, model_file: str | os.PathLike[str], pretrained_file: str | os.PathLike[str],
                 mean: np.ndarray | None = None, input_scale: float | None = None, raw_scale: float | None = None,
                 channel_swap: Sequence[int] | None = None, context_pad: int | None = None, **options: Any) -> None:
        super().__init__(model_file, "TEST", weights=pretrained_file, **options)
        self.transformer = transformer_of(self, mean, input_scale, raw_scale, channel_swap)
        self.configure_crop(context_pad)

    def detect_windows(self, images_windows: Iterable[tuple[str, Sequence[Sequence[int]]]]) -> list[dict[str, Any]]:
        """Classifies windows (ymin, xmin, ymax, xmax) of image files, given as pairs (file name, its windows).

        Returns a dict for each window: `filename`, `window` and `prediction`.
        """
        windows = [(name, window) for name, windows in images_windows for window in windows]
        if not windows:
            return []
        images = {name: io.load_image(name) for name in dict.fromkeys(name for name, _ in windows)}
        input_name = self.inputs[0]
        crops = (self.crop(images[name], window) for name, window in windows)
        data = np.stack([self.transformer.preprocess(input_name, crop) for crop in crops])
        predictions = self.forward_all(**{input_name: data})[self.outputs[0]]
        return [{"window": window, "prediction": prediction, "filename": name}
                for (name, window), prediction in zip(windows, predictions)]

    def detect_selective_search(self, image_fnames: Iterable[str]) -> list[dict[str, Any]]:
        """Classifies the windows that Selective Search proposes (the module selective_search_ijcv_with_python)."""
        try:
            selective_search = import_module("selective_search_ijcv_with_python")
        except ImportError as error:
            raise CaffeError(f"Selective Search needs the module selective_search_ijcv_with_python: {error}; "
                             "give windows of your own to detect_windows instead") from None
        names = [os.path.abspath(name) for name in image_fnames]
        return self.detect_windows(zip(names, selective_search.get_windows(names, cmd="selective_search_rcnn")))

    def crop(self, im: np.ndarray, window: Sequence[int]) -> np.ndarray:
        """The window (ymin, xmin, ymax, xmax) of an image; with context, in the net's size with its surroundings."""
        top, left, bottom, right = (int(edge) for edge in window)
        if not (0 <= top < bottom and 0 <= left < right and top < im.shape[0] and left < im.shape[1]):
            raise DataError(f"the window {tuple(window)} is (ymin, xmin, ymax, xmax), and lies not in an image of "
                            f"{im.shape[:2]}")
        if self.context_pad:
            return self._with_context(im, np.array([top, left, bottom, right]))
        return im[top:bottom, left:right].copy()

    def _with_context(self, im: np.ndarray, window: np.ndarray) -> np.ndarray:
        """R-CNN's crop: both ends of a window count as inside it."""
        size = self.blobs[self.inputs[0]].width  # the input is square
        half = (window[2:] - window[:2] + 1) / 2
        reach = half * size / (size - 2 * self.context_pad)
        box = np.round(np.tile(window[:2] + half, 2) + np.concatenate([-reach, reach]))
        scale = size / (box[2:] - box[:2] + 1)
        outside = np.round(np.maximum(0, -box[:2]) * scale).astype(int)
        box = np.clip(box, 0, np.tile(im.shape[:2], 2)).astype(int)
        extent = np.round((box[2:] - box[:2] + 1) * scale).astype(int)
        extent = np.minimum(extent, size - outside)
        part = io.resize_image(im[box[0]:box[2], box[1]:box[3]], extent)
        crop = np.ones(self.crop_dims, np.float32) * self.crop_mean
        crop[outside[0]:outside[0] + extent[0], outside[1]:outside[1] + extent[1]] = part
        return crop

    def configure_crop(self, context_pad: int | None) -> None:
        """Sets how many pixels of the input are context, and with what they are filled outside the image: the mean."""
        name = self.inputs[0]
        back = np.argsort(self.transformer.transpose[name])
        self.crop_dims = np.array(self.blobs[name].shape[1:])[back]
        self.context_pad = context_pad
        mean = self.transformer.mean.get(name)
        if mean is None:
            self.crop_mean = np.zeros(self.crop_dims, np.float32)
            return
        # As the image is before it is transformed.
        crop_mean = mean.transpose(back)
        if name in self.transformer.channel_swap:
            crop_mean = crop_mean[:, :, np.argsort(self.transformer.channel_swap[name])]
        self.crop_mean = crop_mean / self.transformer.raw_scale.get(name, 1)
