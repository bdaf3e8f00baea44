"""`Blob`: a named pair of data and diff, a torch tensor inside and numpy views outside, as pycaffe shows it."""

from __future__ import annotations

from math import prod
from numbers import Integral
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor

from . import memory
from .errors import NetError
from .mirror import Mirror

#: What to do to have a blob's data.
KEEP_HINT = "Build the net with keep_blobs=True, or with the names of the blobs to keep"


class Released:
    """Stands for the data of a blob that a net without `keep_blobs` has handed on: only its shape is left."""

    __slots__ = ("shape",)

    def __init__(self, shape: torch.Size) -> None:
        self.shape = shape

    def numel(self) -> int:
        """The number of values there were."""
        return self.shape.numel()

    def __getattr__(self, name: str) -> NoReturn:
        raise NetError(f"the data of this blob ({' '.join(map(str, self.shape))}) were not kept. {KEEP_HINT}")


class Blob:
    """Caffe's Blob: `data` and `diff` as numpy arrays to be written in place, `tensor` and `grad` as torch tensors.

    `grad` is None until a backward pass makes one, which reads as a diff of zeros.
    """

    __slots__ = ("_data", "_diff")

    def __init__(self, tensor: Tensor) -> None:
        self._data = Mirror(tensor)
        self._diff = Mirror()

    @property
    def tensor(self) -> Tensor:
        """The data as a tensor on the net's device."""
        return self._data.get()

    @tensor.setter
    def tensor(self, value: Tensor) -> None:
        self._data.tensor = value

    @property
    def grad(self) -> Tensor | None:
        """The diff as a tensor, or None for zeros."""
        return self._diff.get()

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        self._diff.tensor = value

    @property
    def data(self) -> np.ndarray:
        """The values, shaped as the blob; what is written into the array is seen by the next pass."""
        return self._data.numpy()

    @property
    def diff(self) -> np.ndarray:
        """The gradient, shaped as the blob; what is written into the array is seen by the next update or pass."""
        grad = self._diff.get()
        if grad is None or grad.shape != self._data.tensor.shape:
            self._diff.tensor = torch.zeros_like(self._data.tensor, requires_grad=False)
        return self._diff.numpy()

    def write(self, values: np.ndarray, diff: bool = False) -> None:
        """Overwrites data (or diff) with an array that broadcasts to its shape; on a GPU without reading it back first.

        Raises TypeError or ValueError where it does not.
        """
        device = self._data.tensor.device
        if device.type == "cpu":
            (self.diff if diff else self.data)[...] = values
            return
        wanted = torch.from_numpy(np.array(np.broadcast_to(values, self.shape), np.float32))
        if diff:
            self.grad = wanted.to(device)
        else:
            self._data.put(wanted)

    @property
    def shape(self) -> tuple[int, ...]:
        """The size of each axis."""
        return tuple(self._data.tensor.shape)

    @property
    def count(self) -> int:
        """The number of values."""
        return self._data.tensor.numel()

    def _legacy_axis(self, index: int) -> int:
        shape = self.shape
        return shape[index] if index < len(shape) else 1

    num = property(lambda self: self._legacy_axis(0), doc="The first axis (1 if there is none).")
    channels = property(lambda self: self._legacy_axis(1), doc="The second axis (1 if there is none).")
    height = property(lambda self: self._legacy_axis(2), doc="The third axis (1 if there is none).")
    width = property(lambda self: self._legacy_axis(3), doc="The fourth axis (1 if there is none).")

    def reshape(self, *shape: int) -> None:
        """Gives the blob a new shape; values are kept while the count is, else they are zero until written."""
        if not all(isinstance(dim, Integral) and dim >= 0 for dim in shape):
            raise NetError(f"a blob cannot have the shape {shape}; give one whole number, 0 or more, for each axis")
        if wrong := memory.impossible(shape) or memory.too_much(4 * prod(shape)):
            raise NetError(wrong)
        tensor = self.tensor
        if isinstance(tensor, Released):
            self._data.tensor = Released(torch.Size(shape))
        elif prod(shape) == tensor.numel():
            self.tensor = tensor.detach().reshape(shape).requires_grad_(tensor.requires_grad)
        else:
            self.tensor = torch.zeros(shape, dtype=tensor.dtype, device=tensor.device)
        self._diff = Mirror()

    def release(self) -> None:
        """Lets go of the data and diff; the shape stays."""
        self._data.drop(Released(self._data.tensor.shape))
        self._diff.drop(None)

    def __repr__(self) -> str:
        return f"Blob({' '.join(map(str, self.shape))})"


class ReshapedBlob(Blob):
    """Another blob's values and diff in a shape of its own: a parameter shared with `share_mode: PERMISSIVE`."""

    __slots__ = ("_owner", "_shape")

    def __init__(self, owner: Blob, shape: tuple[int, ...]) -> None:
        self._owner = owner
        self._shape = shape

    @property
    def tensor(self) -> Tensor:
        return self._owner.tensor.reshape(self._shape)

    @property
    def grad(self) -> Tensor | None:
        grad = self._owner.grad
        return None if grad is None else grad.reshape(self._shape)

    @property
    def shape(self) -> tuple[int, ...]:
        return self._shape

    @property
    def count(self) -> int:
        return self._owner.count

    @property
    def data(self) -> np.ndarray:
        return self._owner.data.reshape(self._shape)

    @property
    def diff(self) -> np.ndarray:
        return self._owner.diff.reshape(self._shape)
