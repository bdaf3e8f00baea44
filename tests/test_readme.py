"""What README.md shows works: its Python code runs, its commands and files exist."""

from __future__ import annotations

import re
import shutil
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from caffe_compat import proto
from caffe_compat.cli import COMMANDS
from caffe_compat.db import create_database, make_datum
from caffe_compat.net import Net
from increg.cli import COMMANDS as INCREG_COMMANDS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: the files that the examples name, small ones."""
    digits = ROOT / "prototxt" / "digits"
    for name in ("deploy.prototxt", "train_val.prototxt"):
        shutil.copy(digits / name, tmp_path)
    solver = proto.read_text(digits / "solver_baseline.prototxt", "SolverParameter").message
    solver.max_iter, solver.test_interval, solver.snapshot_prefix = 2, 1, "snapshot"
    proto.write_text(tmp_path / "solver.prototxt", solver)
    for name in ("digits_train_lmdb", "digits_test_lmdb"):
        with create_database(tmp_path / name) as writer:
            for i in range(10):
                writer.put(b"%d" % i, make_datum(np.full((1, 28, 28), 25 * i, np.uint8), i).SerializeToString())
    for name in ("baseline.caffemodel", "pruned.caffemodel"):
        Net(digits / "deploy.prototxt").save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_python_examples(workplace: Path, capsys: pytest.CaptureFixture) -> None:
    names = {"images": np.zeros((1, 1, 28, 28), np.float32)}
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len(blocks) == 2
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert names["probabilities"].shape == (1, 10)
    assert names["weights"].shape == (20, 1, 5, 5)
    assert capsys.readouterr().out.startswith("0 [('accuracy', 0.")


def test_commands_exist() -> None:
    shown = set(re.findall(r"^    (caffe-compat|increg) ([a-z_]+)", README, re.M))
    assert ("increg", "demo") in shown and ("caffe-compat", "train") in shown
    for program, command in shown:
        home = f"caffe_compat.tools.{command}" if program == "caffe-compat" else f"increg.{INCREG_COMMANDS[command]}"
        assert command in (COMMANDS if program == "caffe-compat" else INCREG_COMMANDS)
        assert callable(import_module(home).run)


def test_links_lead_somewhere() -> None:
    for readme in [ROOT / "README.md", *(ROOT / "prototxt").glob("*/README.md")]:
        for link in re.findall(r"\]\((?!https?:)([^)]+)\)", readme.read_text()):
            path, _, section = link.partition("#")
            target = readme.parent / path
            assert target.exists(), f"{readme}: {link}"
            headings = re.findall(r"^#+ (.*)", target.read_text(), re.MULTILINE) if section else []
            assert section in ["", *(heading.lower().replace(" ", "-") for heading in headings)], f"{readme}: {link}"
