"""Writes the definitions named on the command line, or all that are kept, as `prototxt/<name>/<kind>.prototxt`; and the
files of the pruning experiments of these names."""

from __future__ import annotations

import sys
from pathlib import Path

from caffe_compat import proto

from . import DEPLOY, EXPERIMENTS, NOT_KEPT, TRAIN_VAL

FOLDER = Path(__file__).parents[1]


def main(names: list[str]) -> None:
    """Writes every kind of definition that there is for each of `names`."""
    for name in names or [name for name in {*DEPLOY.names(), *EXPERIMENTS.names()} if name not in NOT_KEPT]:
        (FOLDER / name).mkdir(exist_ok=True)
        for kind, definitions in (("deploy", DEPLOY), ("train_val", TRAIN_VAL)):
            if name in definitions:
                proto.write_text(FOLDER / name / f"{kind}.prototxt", definitions.get(name)())
        if name in EXPERIMENTS:
            for file, text in EXPERIMENTS.get(name)().items():
                (FOLDER / name / file).write_text(text)


if __name__ == "__main__":
    main(sys.argv[1:])
