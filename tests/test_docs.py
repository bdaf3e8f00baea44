"""What docs/ shows works: the table of layers is current, Python examples and commands run in the order they stand in."""

from __future__ import annotations

import inspect
import re
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import caffe_compat
from caffe_compat.check import recording_file
from caffe_compat.cli import main
from caffe_compat.net import Net
from caffe_compat.tools.layers import support_table

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def pieces(name: str) -> list[tuple[str, str]]:
    """("python", code) and ("sh", command) of a document, in order; what was written elsewhere is marked `before`."""
    text = (DOCS / name).read_text()
    found = []
    for match in re.finditer(r"^```(\w+)( before)?\n(.*?)^```|^    ((?:caffe-compat|python) [^\n]*)$", text, re.M | re.S):
        if match[4]:
            found.append(("sh", match[4]))
        elif match[1] == "python":
            found.append(("before" if match[2] else "python", match[3]))
    return found


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder with the model that the examples share, LeNet-5 for digits."""
    shutil.copy(ROOT / "prototxt" / "digits" / "deploy.prototxt", tmp_path)
    Net(tmp_path / "deploy.prototxt", seed=1).save(tmp_path / "net.caffemodel")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    sys.modules.pop("model", None)


def command(words: str) -> None:
    """Runs a caffe-compat command as it is shown."""
    program, *arguments = shlex.split(words.partition("  #")[0])
    assert program == "caffe-compat"
    assert main(arguments) == 0, words


@pytest.fixture
def names() -> dict:
    """What the examples take as given."""
    rng = np.random.RandomState(0)
    return {"images": rng.standard_normal((1, 1, 28, 28)).astype(np.float32),
            "image": rng.randint(0, 256, (60, 50), np.uint8)}


def test_migration(workplace: Path, names: dict, capsys: pytest.CaptureFixture) -> None:
    """Every snippet, and all ways to the scores of one input give the same ones."""
    for package in ("onnxruntime", "safetensors"):
        pytest.importorskip(package)
    scores: dict[int, list[np.ndarray]] = {}
    ran = [kind for kind, _ in pieces("migration.md")]
    assert ran.count("python") >= 6 and ran.count("sh") >= 8
    for kind, text in pieces("migration.md"):
        if kind == "sh":
            command(text)
        elif kind == "python":
            names.pop("scores", None)
            exec(compile(text, "docs/migration.md", "exec"), names)
            if "scores" in names:
                values = names["scores"]
                values = values.detach().numpy() if hasattr(values, "detach") else np.array(values)
                scores.setdefault("cv2.dnn" in text, []).append(values)
    assert {shown: len(values) for shown, values in scores.items()} == {False: 3, True: 2}
    for values in scores.values():
        for other in values[1:]:
            np.testing.assert_allclose(other, values[0], rtol=1e-4, atol=1e-6)
    assert names["kernels"].shape == (20, 1, 5, 5) and names["features"].shape == (1, 20, 12, 12)
    assert "equals" in capsys.readouterr().out


def test_pycaffe_scripts_only_change_their_import() -> None:
    """The two versions of the first example, word for word; the old one runs with this package called `caffe`."""
    before, after = [text for kind, text in pieces("migration.md") if kind in ("before", "python")][:2]
    assert after == before.replace("import caffe\n", "import caffe_compat as caffe\n")


def test_opencv_s_own_example(workplace: Path, names: dict) -> None:
    """Where OpenCV still reads Caffe (before version 5), its results are those of the example beside it."""
    cv2 = pytest.importorskip("cv2")
    if not hasattr(cv2.dnn, "readNetFromCaffe"):
        pytest.skip("this OpenCV reads no Caffe models")
    theirs = next(text for kind, text in pieces("migration.md") if kind == "before" and "readNetFromCaffe" in text)
    ours = next(text for kind, text in pieces("migration.md") if kind == "python" and "import cv2" in text)
    found = [dict(names, cv2=cv2) for _ in range(2)]
    for text, space in zip((theirs, ours), found):
        exec(compile(text, "docs/migration.md", "exec"), space)
    for name in ("scores", "features"):
        np.testing.assert_allclose(found[0][name], found[1][name], rtol=1e-4, atol=1e-4)


def test_check(workplace: Path, names: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands on the files they name, made here."""
    pytest.importorskip("onnxruntime")
    import cv2

    for name in ("a.caffemodel", "b.caffemodel.h5"):
        Net("deploy.prototxt", seed=1).save(name)
    shutil.copy("deploy.prototxt", "net.prototxt")
    cv2.imwrite("cat.jpg", names["image"])
    for to, out in (("onnx", "model.onnx"), ("torch", "exported")):
        assert main(["convert", "net.prototxt", "net.caffemodel", "--to", to, "--out", out]) == 0
    record(monkeypatch, "net.prototxt", "--weights", "net.caffemodel", "--output", "recording.npz")
    for kind, text in pieces("check.md"):
        if kind == "sh":
            command(text)
        elif kind == "python":
            exec(compile(text, "docs/check.md", "exec"), names)
    assert names["report"].equal
    assert Path("deploy.prototxt").read_text().startswith("# Guessed from net.caffemodel.")


def record(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    """Writes a script and runs it with this package as `caffe`."""
    assert main(["record", arguments[0], "script.py", *arguments[1:]]) == 0
    run_script(monkeypatch, "script.py")


def run_script(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setitem(sys.modules, "caffe", caffe_compat)
    monkeypatch.setattr(sys, "argv", [path])
    exec(compile(Path(path).read_text(), path, "exec"), {"__name__": "__main__"})


def test_recordings(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands, the script between them; and the names that the format's tables give are those in the file."""
    pytest.importorskip("onnxruntime")
    assert main(["convert", "deploy.prototxt", "net.caffemodel", "--to", "onnx", "--out", "model.onnx"]) == 0
    for kind, text in pieces("recordings.md"):
        assert kind == "sh"
        if text.startswith("python"):
            run_script(monkeypatch, text.split()[1])
        else:
            command(text)
    about, arrays = recording_file.read_recording("deploy.npz")
    tables = re.findall(r"^\| (`.*?) \|", (DOCS / "recordings.md").read_text(), re.M)
    documented = {word for row in tables for word in re.findall(r"`(.*?)`", row)}
    assert set(about) <= documented | {"output", "seed"}
    kinds = {name.partition("/")[0] for name in documented if "/" in name}
    assert {key.partition("/")[0] for key in arrays} <= kinds
    assert about["version"] == recording_file.VERSION and f"version {recording_file.VERSION}" in (
        DOCS / "recordings.md").read_text()


def test_the_table_of_layers_is_current() -> None:
    """`caffe-compat layers --table` prints it; a type or conversion that is added shows there."""
    text = (DOCS / "layers.md").read_text()
    assert text.endswith(support_table()), "docs/layers.md: replace its table by what `caffe-compat layers --table` prints"
    assert support_table().count("\n") > 60 and "| Convolution | 1.. -> as bottoms | convolution_param |" in text


def test_links_lead_somewhere() -> None:
    for document in DOCS.glob("*.md"):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document}: {target}"


def test_flags_that_are_named_exist() -> None:
    """`--allow-code` and the like in running text are flags of some command."""
    sources = "".join(inspect.getsource(__import__(f"caffe_compat.tools.{path.stem}", fromlist=["x"]))
                      for path in (ROOT / "caffe_compat" / "tools").glob("*.py") if path.stem != "__init__")
    sources += (ROOT / "caffe_compat" / "check" / "recorder.py").read_text()
    for name in ("check.md", "recordings.md", "migration.md"):
        for flag in set(re.findall(r"(?<![\w-])--([a-z][a-z_-]*)", (DOCS / name).read_text())) - {"help"}:
            assert f'"{flag}"' in sources or f'"--{flag}"' in sources or f'"{flag.removeprefix("no-")}"' in sources, flag
