"""What the tests of the file formats share."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from caffe_compat import proto


@pytest.fixture
def dialects(monkeypatch: pytest.MonkeyPatch) -> Iterator[proto.DIALECTS.__class__]:
    """The registry of dialects, restored after the test."""
    monkeypatch.setattr(proto.DIALECTS, "_entries", dict(proto.DIALECTS._entries))
    yield proto.DIALECTS


@pytest.fixture(scope="session")
def real_files(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small binary files that real Caffe wrote."""
    folder = tmp_path_factory.mktemp("real_files")
    for name, text in json.loads((golden / "proto" / "files.json").read_text())["files"].items():
        (folder / name).write_bytes(base64.b64decode(text))
    return folder
