"""What an installed package holds, and which package imports which."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from importlib import import_module
from pathlib import Path

import pytest

from increg import experiments

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def folder_of(package: str) -> Path:
    """Where the files of a package are in a checkout."""
    mapped = PROJECT["tool"]["setuptools"]["package-dir"].get(package)
    return ROOT / (mapped or package.replace(".", "/"))


def test_every_package_is_listed() -> None:
    listed = set(PROJECT["tool"]["setuptools"]["packages"]) - {"increg.prototxt"}  # data, no code
    found = {str(path.parent.relative_to(ROOT)).replace(os.sep, ".")
             for top in ("caffe_compat", "increg") for path in (ROOT / top).rglob("__init__.py")}
    assert listed == found


def test_data_files_are_included() -> None:
    data = PROJECT["tool"]["setuptools"]["package-data"]
    for package in PROJECT["tool"]["setuptools"]["packages"]:
        folder = folder_of(package)
        assert folder.is_dir(), package
        deep = package == "increg.prototxt"
        for path in folder.rglob("*") if deep else folder.iterdir():
            if path.is_file() and path.suffix not in (".py", ".pyc"):
                place = path.relative_to(folder)
                assert any(fnmatch(str(place), pattern) and len(place.parts) == pattern.count("/") + 1
                           for pattern in data.get(package, ())), f"{path} would not be installed"


def test_all_experiments_are_included() -> None:
    assert folder_of("increg.prototxt") == ROOT / "prototxt"
    assert {"digits", "lenet5", "convnet", "vgg16", "resnet50"} <= set(experiments.names())
    for name in experiments.names():
        assert experiments.folder(name) == ROOT / "prototxt" / name


@pytest.mark.parametrize("target", [
    *PROJECT["project"]["scripts"].values(), *PROJECT["project"]["entry-points"]["caffe_compat.hooks"].values()])
def test_entry_points_exist(target: str) -> None:
    module, name = target.split(":")
    assert callable(getattr(import_module(module), name))


def test_dependencies_are_declared() -> None:
    """Every import of a third party's package is a dependency, or an extra's. One package is on no index."""
    names = {"opencv-python-headless": "cv2", "scikit-learn": "sklearn", "protobuf": "google",
             "grpcio-tools": "grpc_tools", "pillow": "PIL"}
    project = PROJECT["project"]
    requirements = sum(project["optional-dependencies"].values(), project["dependencies"])
    declared = {line.split(">=")[0].split("[")[0].lower() for line in requirements}
    allowed = {names.get(name, name) for name in declared} | sys.stdlib_module_names
    allowed |= {"caffe_compat", "increg", "selective_search_ijcv_with_python", "caffe"}  # that of whoever records with it
    assert imported_modules(ROOT / "caffe_compat") | imported_modules(ROOT / "increg") <= allowed


def test_caffe_compat_does_not_import_increg() -> None:
    assert "increg" not in imported_modules(ROOT / "caffe_compat")


def imported_modules(folder: Path) -> set[str]:
    """The top-level names of all modules that the files in a folder import, absolutely."""
    found = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(), str(path))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(node.module.split(".")[0])
    return found


def test_import_does_no_hidden_work() -> None:
    """Importing the package loads neither the plug-in nor what only few commands need."""
    code = "import sys, caffe_compat; print({'increg', 'matplotlib', 'sklearn', 'cv2'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
