"""`python -m caffe_compat.pycaffe [--allow_python_layers] script.py [arguments]` runs a script that imports `caffe`."""

from __future__ import annotations

import runpy
import sys
from importlib import import_module
from pathlib import Path

from caffe_compat.layers.python import allow_python_layers

#: The modules that scripts import by name.
MODULES = ("", "proto", "proto.caffe_pb2", "pycaffe", "io", "net_spec", "coord_map", "draw", "classifier", "detector")


def stand_in_for_caffe() -> None:
    """Lets `import caffe`, `from caffe.proto import caffe_pb2` and the like find this package from now on."""
    for name in MODULES:
        suffix = f".{name}" if name else ""
        sys.modules[f"caffe{suffix}"] = import_module(f"caffe_compat{suffix}")


def main(arguments: list[str]) -> int:
    """Runs the script with its arguments; errors of ours are shown as Python shows any that a script does not catch."""
    if arguments[:1] == ["--allow_python_layers"]:
        allow_python_layers()
        arguments = arguments[1:]
    if not arguments or arguments[0].startswith("-"):
        print(__doc__, file=sys.stderr)
        return 1
    if not Path(arguments[0]).is_file():
        print(f"{arguments[0]}: there is no such script", file=sys.stderr)
        return 1
    stand_in_for_caffe()
    sys.argv = arguments
    sys.path[0] = str(Path(arguments[0]).resolve().parent)
    runpy.run_path(arguments[0], run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
