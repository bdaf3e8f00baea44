"""`Blob`: a named pair of data and diff, a torch tensor inside and numpy views outside, as pycaffe shows it."""

from __future__ import annotations

import sys

import numpy as np
import torch
from torch import Tensor


class _Mirror:
    """A tensor together with the numpy array through which the user reads and writes it.

    On the CPU the array is a view of the tensor. On a GPU it is a host copy: what the user may have written into it
    is uploaded when the tensor is next read, for as long as anyone holds the array.
    """

    __slots__ = ("_host", "_tensor")

    def __init__(self, tensor: Tensor | None) -> None:
        self._tensor = tensor
        self._host: np.ndarray | None = None

    def get(self) -> Tensor | None:
        if self._host is not None:
            self._upload()
        return self._tensor

    def set(self, tensor: Tensor | None) -> None:
        self._tensor = tensor
        self._host = None

    def numpy(self) -> np.ndarray:
        tensor = self.get().detach()
        if tensor.device.type == "cpu":
            return tensor.numpy()
        if self._host is None:
            self._host = tensor.cpu().numpy()
        return self._host

    def _upload(self) -> None:
        with torch.no_grad():
            self._tensor.detach().copy_(torch.from_numpy(self._host))
        if sys.getrefcount(self._host) <= 2:  # this attribute and the call's argument: the user has let go of it
            self._host = None


class Blob:
    """Caffe's Blob: `data` and `diff` as numpy arrays that can be written in place, `tensor` and `grad` as torch tensors.

    `grad` is None until a backward pass makes one, which reads as a diff of zeros.
    """

    __slots__ = ("_data", "_diff")

    def __init__(self, tensor: Tensor) -> None:
        self._data = _Mirror(tensor)
        self._diff = _Mirror(None)

    @property
    def tensor(self) -> Tensor:
        """The data as a tensor on the net's device."""
        return self._data.get()

    @tensor.setter
    def tensor(self, value: Tensor) -> None:
        self._data.set(value)

    @property
    def grad(self) -> Tensor | None:
        """The diff as a tensor, or None for zeros."""
        return self._diff.get()

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        self._diff.set(value)

    @property
    def data(self) -> np.ndarray:
        """The values, shaped as the blob; what is written into the array is seen by the next pass."""
        return self._data.numpy()

    @property
    def diff(self) -> np.ndarray:
        """The gradient, shaped as the blob; what is written into the array is seen by the next update or pass."""
        if self._diff.get() is None:
            self._diff.set(torch.zeros_like(self.tensor, requires_grad=False))
        return self._diff.numpy()

    @property
    def shape(self) -> tuple[int, ...]:
        """The size of each axis."""
        return tuple(self.tensor.shape)

    @property
    def count(self) -> int:
        """The number of values."""
        return self.tensor.numel()

    def _legacy_axis(self, index: int) -> int:
        shape = self.shape
        return shape[index] if index < len(shape) else 1

    num = property(lambda self: self._legacy_axis(0), doc="The first axis (1 if there is none).")
    channels = property(lambda self: self._legacy_axis(1), doc="The second axis (1 if there is none).")
    height = property(lambda self: self._legacy_axis(2), doc="The third axis (1 if there is none).")
    width = property(lambda self: self._legacy_axis(3), doc="The fourth axis (1 if there is none).")

    def reshape(self, *shape: int) -> None:
        """Gives the blob a new shape; values are kept while the count is, else they are zero until written."""
        tensor = self.tensor
        count = int(np.prod(shape, dtype=np.int64))
        if count == tensor.numel():
            self.tensor = tensor.detach().reshape(shape)
        else:
            self.tensor = torch.zeros(shape, dtype=tensor.dtype, device=tensor.device)
        self.grad = None

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
    def data(self) -> np.ndarray:
        return self._owner.data.reshape(self._shape)

    @property
    def diff(self) -> np.ndarray:
        return self._owner.diff.reshape(self._shape)
