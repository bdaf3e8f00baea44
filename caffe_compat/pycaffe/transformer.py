"""`caffe.io.Transformer`: from images to what a net's input blob expects, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..errors import did_you_mean
from .net_spec import NoSuchName, WrongValue
from .resize import resize_image


class Transformer:
    """Prepares images (height, width, channels) for input blobs, `inputs` being their shapes (N, C, H, W) by name.

    What is set for an input is done in this order: resize, `transpose`, `channel_swap`, times `raw_scale`, minus
    `mean`, times `input_scale`.
    """

    def __init__(self, inputs: Mapping[str, Sequence[int]]) -> None:
        self.inputs = inputs
        self.transpose: dict[str, Sequence[int]] = {}
        self.channel_swap: dict[str, Sequence[int]] = {}
        self.raw_scale: dict[str, float] = {}
        self.mean: dict[str, np.ndarray] = {}
        self.input_scale: dict[str, float] = {}

    def preprocess(self, in_: str, data: np.ndarray) -> np.ndarray:
        """An image for the input `in_`, as float32. As in Caffe float32 `data` is written into if no step copies it."""
        shape = self._shape(in_)
        values = data.astype(np.float32, copy=False)
        if values.shape[:2] != shape[2:]:
            values = resize_image(values, shape[2:])
        if self.transpose.get(in_) is not None:
            values = values.transpose(self.transpose[in_])
        if self.channel_swap.get(in_) is not None:
            values = values[list(self.channel_swap[in_])]
        if self.raw_scale.get(in_) is not None:
            values *= self.raw_scale[in_]
        if self.mean.get(in_) is not None:
            values -= self.mean[in_]
        if self.input_scale.get(in_) is not None:
            values *= self.input_scale[in_]
        return values

    def deprocess(self, in_: str, data: np.ndarray) -> np.ndarray:
        """The image that `preprocess` made `data` of, but for resizing; axes of size 1 are lost.

        As in Caffe that makes one-channel inputs with a transpose or a mean fail: WrongValue, a ValueError.
        """
        self._shape(in_)
        values = data.copy().squeeze()
        try:
            if self.input_scale.get(in_) is not None:
                values /= self.input_scale[in_]
            if self.mean.get(in_) is not None:
                values += self.mean[in_]
            if self.raw_scale.get(in_) is not None:
                values /= self.raw_scale[in_]
            if self.channel_swap.get(in_) is not None:
                values = values[np.argsort(self.channel_swap[in_])]
            if self.transpose.get(in_) is not None:
                values = values.transpose(np.argsort(self.transpose[in_]))
        except (IndexError, ValueError) as error:
            raise WrongValue(f'cannot undo what is set for "{in_}" on an array of shape {data.shape}, without axes of '
                             f"size 1 {data.squeeze().shape}: {error}") from None
        return values

    def set_transpose(self, in_: str, order: Sequence[int]) -> None:
        """The order of the image's axes in the blob: (2, 0, 1) puts channels first."""
        if len(order) != len(self._shape(in_)) - 1:
            raise WrongValue(f'Transpose order needs one number for each axis of "{in_}" but the first, '
                             f"{len(self._shape(in_)) - 1}; found {tuple(order)}")
        self.transpose[in_] = order

    def set_channel_swap(self, in_: str, order: Sequence[int]) -> None:
        """The order of the channels, which by then are the first axis: (2, 1, 0) makes BGR of RGB."""
        if len(order) != self._shape(in_)[1]:
            raise WrongValue(f"Channel swap needs one number for each of the {self._shape(in_)[1]} channels of "
                             f'"{in_}"; found {tuple(order)}')
        self.channel_swap[in_] = order

    def set_raw_scale(self, in_: str, scale: float) -> None:
        """A factor before the mean is subtracted: 255 for nets that expect 0..255."""
        self._shape(in_)
        self.raw_scale[in_] = scale

    def set_mean(self, in_: str, mean: np.ndarray) -> None:
        """What to subtract: one number a channel, or an image (channels, height, width), resized if need be."""
        shape = self._shape(in_)
        if mean.ndim == 1:
            if len(mean) != shape[1]:
                raise WrongValue(f'Mean channels incompatible with input: "{in_}" has {shape[1]} channels, the mean '
                                 f"{len(mean)}")
            mean = mean[:, None, None]
        elif mean.ndim not in (2, 3):
            raise WrongValue("Mean shape invalid: expected (channels), (height, width) or (channels, height, width), "
                             f"found {mean.shape}")
        elif (1,) * (3 - mean.ndim) + mean.shape != shape[1:]:
            mean = _resized(mean.reshape((-1, *mean.shape[-2:])), shape[2:])
        self.mean[in_] = mean

    def set_input_scale(self, in_: str, scale: float) -> None:
        """A factor after the mean was subtracted."""
        self._shape(in_)
        self.input_scale[in_] = scale

    def _shape(self, in_: str) -> tuple[int, ...]:
        if in_ not in self.inputs:
            raise NoSuchName(f'"{in_}" is not one of the net inputs: {", ".join(self.inputs)}'
                             f"{did_you_mean(in_, self.inputs)}")
        return tuple(self.inputs[in_])


def _resized(mean: np.ndarray, new_dims: Sequence[int]) -> np.ndarray:
    """A mean image (channels, height, width) in another size, scaled to 0..1 on the way as Caffe does."""
    low, high = mean.min(), mean.max()
    if high <= low:
        return np.full((len(mean), *new_dims), low, mean.dtype)
    scaled = ((mean - low) / (high - low)).transpose(1, 2, 0)
    return resize_image(scaled, new_dims).transpose(2, 0, 1) * (high - low) + low
