"""docs/dialects.md: its example works as it stands there."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest

from caffe_compat import cli, plugins, proto
from caffe_compat.errors import ParseError
from caffe_compat.layers import LAYERS
from caffe_compat.net import Net
from caffe_compat.proto import DIALECTS

DOCUMENT = Path(__file__).parents[1] / "docs" / "dialects.md"


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the document's files, from which modules are imported; the registries are as before after it."""
    for code in re.findall(r"```\w*\n(.*?)```", DOCUMENT.read_text(), re.DOTALL):
        (tmp_path / re.match(r"(?://|#) (\S+)\n", code)[1]).write_text(code)
    for registry in (LAYERS, DIALECTS):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("myfork", None)
    plugins.load.cache_clear()


def test_the_example(example: Path) -> None:
    """Read, run, saved and read again, in the fork's dialect."""
    assert {path.name for path in example.iterdir()} == {"myfork.proto", "myfork.py", "net.prototxt", "pyproject.toml"}
    with pytest.raises(ParseError, match="hard_swish_param"):
        Net("net.prototxt")
    import_module("myfork")
    net = Net("net.prototxt")
    x = net.blobs["x"].data
    x[...] = np.linspace(-5, 5, 10).reshape(2, 5)
    net.forward()
    np.testing.assert_allclose(net.blobs["y"].data, x * np.clip(x + 2.5, 0, 6) / 6, rtol=1e-6)
    net.save("net.caffemodel")
    document = proto.read_binary("net.caffemodel", "NetParameter")
    assert document.dialect is DIALECTS.get("myfork") and document.message.layer[1].hard_swish_param.offset == 2.5


def test_the_commands_know_it(
    example: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:
    """Through the entry point, without an import by hand."""
    points = tomllib.loads((example / "pyproject.toml").read_text())["project"]["entry-points"]
    (group,) = points
    monkeypatch.setattr(plugins, "entry_points", lambda group: [
        EntryPoint(name, value, group) for name, value in points.get(group, {}).items()])
    plugins.load.cache_clear()
    assert group == plugins.GROUP and "HardSwish" not in LAYERS
    assert cli.main(["show", "net.prototxt"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("net.prototxt: net, dialect myfork")
    assert re.search(r"^act +HardSwish +x +y +2 5 ", out, re.MULTILINE)
    assert cli.main(["layers", "HardSwish"]) == 0
    assert "y = x clip(x + offset, 0, 6) / 6" in capsys.readouterr().out
