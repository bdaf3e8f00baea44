"""`Mirror`: a tensor, and the numpy array through which the user reads and writes it.

On the CPU the array is a view of the tensor's memory, on a GPU a copy on the host. Either may be held while passes put
other tensors in the place of the one it shows; `refresh_arrays` then brings it up to date, as arrays are in Caffe.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

_shown: weakref.WeakSet[Mirror] = weakref.WeakSet()
_postponed = False
#: References to an array that nobody else holds: a Mirror's attribute, and the argument of the call that counts them.
_OURS = 2


def refresh_arrays(now: bool = False) -> None:
    """Makes all arrays that users hold show the present values; `now` also while that is postponed.

    Costs nothing where nobody holds one.
    """
    if _shown and (now or not _postponed):
        for mirror in list(_shown):
            mirror.refresh()


@contextmanager
def postponed_refresh() -> Iterator[None]:
    """Lets many passes run without a look from the user between them: arrays are refreshed once, at the end."""
    global _postponed
    before, _postponed = _postponed, True
    try:
        yield
    finally:
        _postponed = before
        refresh_arrays()


class Mirror:
    """A tensor (or None) and its array.

    Without an array this is a plain attribute. An array with memory of its own (`_host`) is copied to the tensor when
    that is next read, as the user may have written into it, for as long as anyone holds the array.
    """

    __slots__ = ("__weakref__", "_age", "_device", "_host", "_source", "_view", "tensor")

    def __init__(self, tensor: Tensor | None = None) -> None:
        self.tensor = tensor
        self._host: np.ndarray | None = None
        self._view: weakref.ref[np.ndarray] | None = None
        #: The tensor whose values the array shows, how old it was then, and where it lies.
        self._source: weakref.ref[Tensor] | None = None
        self._age = 0
        self._device = torch.device("cpu")

    def get(self) -> Tensor | None:
        """The tensor, with what the user wrote."""
        if self._host is not None:
            self._upload()
        return self.tensor

    def numpy(self) -> np.ndarray:
        """The array; the same one for as long as somebody holds it."""
        tensor = self.get()
        array = self._array()
        if array is not None and (self._is_current() or self._follow(array)):
            return array
        _spread(tensor)
        if _is_reachable(tensor):
            array, self._host = tensor.detach().numpy(), None
            self._view = weakref.ref(array)
        else:
            array = self._host = tensor.detach().to("cpu", copy=True).numpy()
        self._remember(tensor)
        _shown.add(self)
        return array

    def put(self, values: Tensor) -> None:
        """Copies values into the tensor; through its `data`, or autograd would take it for a change behind its back."""
        self.tensor.data.copy_(values)
        self.tensor.uploads = getattr(self.tensor, "uploads", 0) + 1

    def drop(self, substitute: Any) -> None:
        """Lets go of the tensor, in whose place there is `substitute` now, and of the array, which shows it no more."""
        self._host = self._view = self._source = None
        self.tensor = substitute

    def refresh(self) -> None:
        """Brings the array up to date, if anyone holds it."""
        if self._host is not None and sys.getrefcount(self._host) <= _OURS:
            self._upload()
        array = self._array()
        if array is None:
            _shown.discard(self)
        elif not self._is_current():
            self._follow(array)

    def _array(self) -> np.ndarray | None:
        return self._host if self._host is not None else self._view() if self._view is not None else None

    def _is_current(self) -> bool:
        if self.tensor is None or self._source is None or self._source() is not self.tensor:
            return False
        return self._host is None or self._age == _age(self.tensor)

    def _remember(self, tensor: Tensor) -> None:
        self._source, self._age, self._device = weakref.ref(tensor), _age(tensor), tensor.device

    def _upload(self) -> None:
        held = sys.getrefcount(self._host) > _OURS
        if self._is_current():
            self.put(torch.from_numpy(self._host))
            self._age = _age(self.tensor)
        if not held:
            self._host = self._view = self._source = None

    def _follow(self, array: np.ndarray) -> bool:
        """Copies the values of a tensor that took the place of the one the array shows; False if that cannot be."""
        tensor = self.tensor
        if (tensor is not None and array.shape != tuple(tensor.shape)) or (self._host is None and not _is_alone(array)):
            self._host = self._view = self._source = None
            return False
        if tensor is None:  # no diff is a diff of zeros
            array.fill(0)
            tensor = self.tensor = torch.from_numpy(array).to(self._device)
        else:
            _spread(tensor)
            torch.from_numpy(array).copy_(tensor.detach())
        self._host = array
        self._remember(tensor)
        return True


def _is_reachable(tensor: Tensor) -> bool:
    """Whether numpy can use the tensor's memory."""
    return tensor.device.type == "cpu"


def _spread(tensor: Tensor) -> None:
    """Gives every value of an expanded tensor memory of its own, or they could not be written one by one."""
    if 0 in tensor.stride():
        tensor.data = tensor.detach().clone(memory_format=torch.contiguous_format)


def _age(tensor: Tensor) -> int:
    """A number that grows when the values change: torch counts its own changes, `Mirror` those it makes."""
    return tensor._version + getattr(tensor, "uploads", 0)


def _is_alone(array: np.ndarray) -> bool:
    """Whether nothing but the array uses its memory, which may else be a data set's, or another blob's."""
    return isinstance(array.base, Tensor) and _uses(array.base) == _uses(torch.empty(1)) > 0


def _uses(tensor: Tensor) -> int:
    """How many use a tensor's memory; 0 where torch does not tell."""
    count = getattr(torch._C, "_storage_Use_Count", None)
    return count(tensor.untyped_storage()._cdata) if count is not None else 0
