"""Blobs' arrays: written in place, held across passes, never at the cost of memory that is somebody else's."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch

from caffe_compat.blob import Blob
from caffe_compat.errors import NetError
from caffe_compat.mirror import Mirror, _shown, postponed_refresh, refresh_arrays


@pytest.fixture(params=["cpu", "copies", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """Every device, and the CPU as if its memory were out of reach."""
    if request.param == "copies":
        monkeypatch.setattr("caffe_compat.mirror._is_reachable", lambda tensor: False)
    return torch.device("cpu" if request.param == "copies" else request.param)


def test_writes_reach_the_tensor(device: torch.device) -> None:
    blob = Blob(torch.zeros(2, 3, device=device))
    blob.data[...] = [[1, 2, 3], [4, 5, 6]]
    assert blob.tensor.tolist() == [[1, 2, 3], [4, 5, 6]]
    row = blob.data[1]
    row += 1
    assert blob.tensor.tolist() == [[1, 2, 3], [5, 6, 7]]
    row[0] = 0  # again, through an array that is held
    assert blob.tensor[1, 0] == 0


def test_a_held_array_shows_the_tensors_that_follow(device: torch.device) -> None:
    blob = Blob(torch.zeros(2, 3, device=device))
    held, row = blob.data, blob.data[1]
    for value in (1.0, 2.0):
        blob.tensor = torch.full((2, 3), value, device=device)
        refresh_arrays()
        assert (held == value).all() and (row == value).all()
        assert blob.data is held
        held[0, 0] = 9  # and still is written through
        assert blob.tensor.tolist() == [[9, value, value], [value] * 3]


def test_a_held_array_shows_changes_in_place(device: torch.device) -> None:
    blob = Blob(torch.zeros(3, device=device))
    held = blob.data
    blob.tensor.add_(1)
    refresh_arrays()
    assert held.tolist() == [1, 1, 1]
    blob.tensor.add_(1)  # not undone by what the array showed
    assert blob.tensor.tolist() == [2, 2, 2]
    assert blob.data.tolist() == [2, 2, 2]


def test_what_nobody_holds_is_let_go(device: torch.device) -> None:
    blob = Blob(torch.zeros(3, device=device))
    held = blob.data
    blob.tensor = torch.ones(3, device=device)
    refresh_arrays()
    held[0] = 7
    del held  # the last write is not lost
    assert blob.tensor.tolist() == [7, 1, 1]
    gc.collect()
    refresh_arrays()
    assert not [mirror for mirror in _shown if mirror in (blob._data, blob._diff)]
    blob.tensor = torch.full((3,), 2.0, device=device)
    assert blob.tensor.tolist() == [2, 2, 2]


def test_writes_before_a_pass_do_not_outlast_it(device: torch.device) -> None:
    blob = Blob(torch.zeros(3, device=device))
    held = blob.data
    held[...] = 5
    blob.tensor = torch.ones(3, device=device)  # a pass overwrites what the user wrote
    assert blob.tensor.tolist() == [1, 1, 1]
    refresh_arrays()
    assert held.tolist() == [1, 1, 1]


def test_one_tensor_in_two_blobs(device: torch.device) -> None:
    """As a Split layer's tops and bottom: an array of the one does not undo what is written into the other."""
    tensor = torch.zeros(3, device=device)
    first, second = Blob(tensor), Blob(tensor)
    held = first.data, second.data
    held[0][...] = 4
    assert first.tensor.tolist() == [4, 4, 4] and second.tensor.tolist() == [4, 4, 4]
    refresh_arrays()
    assert held[1].tolist() == [4, 4, 4]


def test_memory_of_others_is_left_alone() -> None:
    images = torch.arange(12.0).reshape(4, 3)
    blob = Blob(images[:2])
    held = blob.data
    blob.tensor = images[2:]
    refresh_arrays()
    assert images.tolist() == torch.arange(12.0).reshape(4, 3).tolist()
    assert held.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert blob.data.tolist() == [[6, 7, 8], [9, 10, 11]]


def test_no_diff_is_a_diff_of_zeros(device: torch.device) -> None:
    blob = Blob(torch.ones(2, device=device))
    held = blob.diff
    assert held.tolist() == [0, 0]
    blob.grad = torch.tensor([1.0, 2.0], device=device)
    refresh_arrays()
    assert held.tolist() == [1, 2]
    blob.grad = None
    refresh_arrays()
    assert held.tolist() == [0, 0]
    held[...] = 3
    assert blob.grad.tolist() == [3, 3] and blob.grad.device.type == device.type


def test_values_that_share_memory_are_written_one_by_one(device: torch.device) -> None:
    weight = torch.ones((), device=device, requires_grad=True)
    blob = Blob((weight * 1).expand(3))
    blob.data[...] = [1, 2, 3]
    assert blob.tensor.tolist() == [1, 2, 3]
    (blob.tensor * torch.tensor([1.0, 10.0, 100.0], device=device)).sum().backward()
    assert weight.grad == 111


def test_autograd_does_not_mind(device: torch.device) -> None:
    weight = torch.ones(3, device=device, requires_grad=True)
    blob = Blob(weight * 2)
    held = blob.data
    blob.tensor = weight * 3
    refresh_arrays()
    top = blob.tensor.exp()  # keeps its bottom's or its own values for the gradient
    held[...] = 100
    assert blob.tensor[0] == 100
    top.sum().backward()
    torch.testing.assert_close(weight.grad.cpu(), torch.full((3,), 3 * np.exp(3.0), dtype=torch.float32))


def test_refreshing_can_wait() -> None:
    blob = Blob(torch.zeros(2))
    held = blob.data
    with postponed_refresh():
        blob.tensor = torch.ones(2)
        refresh_arrays()
        assert held.tolist() == [0, 0]
        refresh_arrays(now=True)
        assert held.tolist() == [1, 1]
        blob.tensor = torch.full((2,), 2.0)
    assert held.tolist() == [2, 2]


def test_reshape() -> None:
    blob = Blob(torch.arange(6.0))
    held = blob.data
    blob.diff[...] = 1
    blob.reshape(2, 3)
    assert blob.shape == (2, 3) and blob.data.tolist() == [[0, 1, 2], [3, 4, 5]] and not blob.diff.any()
    blob.reshape(np.int64(4), 1)
    refresh_arrays()
    assert blob.data.tolist() == [[0], [0], [0], [0]] and held.tolist() == [0, 1, 2, 3, 4, 5]
    assert (blob.num, blob.channels, blob.height, blob.width, blob.count) == (4, 1, 1, 1, 4)
    blob.reshape()
    assert blob.shape == () and blob.count == 1
    for shape in ((-1,), (2.5,), ("2",), ((1, 2),)):
        with pytest.raises(NetError, match="cannot have the shape"):
            blob.reshape(*shape)


def test_a_mirror_without_a_tensor() -> None:
    assert Mirror().get() is None
