"""The small net of small_net.py in a file, and built; the process's mode, taken back after a test."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_net import TEXT

import caffe_compat as caffe


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The net's file."""
    file = tmp_path / "net.prototxt"
    file.write_text(TEXT)
    return file


@pytest.fixture
def net(path: Path) -> caffe.Net:
    """The net, with reproducible weights."""
    return caffe.Net(path, caffe.TEST, seed=1)


@pytest.fixture
def modes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes back what a test sets for the process."""
    from caffe_compat.pycaffe import mode

    monkeypatch.setattr(mode, "_mode", mode.Mode())
    monkeypatch.setattr(mode, "_seeded", 0)
