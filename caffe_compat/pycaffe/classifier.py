"""caffe.Classifier: a net that classifies images, with what it takes to prepare them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from . import io
from .net import Net
from .net_spec import WrongValue


def transformer_of(net: Net, mean: np.ndarray | None, input_scale: float | None, raw_scale: float | None,
                   channel_swap: Sequence[int] | None) -> io.Transformer:
    """The Transformer for a net's first input that Classifier and Detector share; None leaves a step out."""
    name = net.inputs[0]
    transformer = io.Transformer({name: net.blobs[name].shape})
    transformer.set_transpose(name, (2, 0, 1))
    for setting, value in ((transformer.set_mean, mean), (transformer.set_input_scale, input_scale),
                           (transformer.set_raw_scale, raw_scale), (transformer.set_channel_swap, channel_swap)):
        if value is not None:
            setting(name, value)
    return transformer


class Classifier(Net):
    """A net for images in its first input: scaled to `image_dims` (by default its own size), cropped, transformed.

    `mean`, `input_scale`, `raw_scale` and `channel_swap` are the Transformer's settings; `options` are Net's.
    """

    def __init__(self, model_file: str | os.PathLike[str], pretrained_file: str | os.PathLike[str],
                 image_dims: Sequence[int] | None = None, mean: np.ndarray | None = None,
                 input_scale: float | None = None, raw_scale: float | None = None,
                 channel_swap: Sequence[int] | None = None, **options: Any) -> None:
        super().__init__(model_file, "TEST", weights=pretrained_file, **options)
        self.transformer = transformer_of(self, mean, input_scale, raw_scale, channel_swap)
        self.crop_dims = np.array(self.blobs[self.inputs[0]].shape[2:])
        self.image_dims = self.crop_dims if image_dims is None else image_dims

    def predict(self, inputs: Sequence[np.ndarray], oversample: bool = True) -> np.ndarray:
        """Class probabilities (images, classes) of images (height, width, channels).

        With `oversample` they are means over ten crops: corners, centre, and these mirrored; without, of the centre.
        """
        images = np.stack([io.resize_image(image, self.image_dims) for image in inputs])
        if oversample:
            crops = io.oversample(images, self.crop_dims)
        else:
            if any(crop > size for crop, size in zip(self.crop_dims, self.image_dims)):
                raise WrongValue(f"cannot cut {tuple(self.crop_dims)} out of image_dims {tuple(self.image_dims)}")
            top, left = ((size - crop) // 2 for size, crop in zip(self.image_dims, self.crop_dims))
            crops = images[:, top:top + self.crop_dims[0], left:left + self.crop_dims[1]]
        name = self.inputs[0]
        data = np.stack([self.transformer.preprocess(name, crop) for crop in crops])
        predictions = self.forward_all(**{name: data})[self.outputs[0]]
        return predictions.reshape(len(predictions) // 10, 10, -1).mean(1) if oversample else predictions
