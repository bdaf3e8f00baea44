"""Writes a script that records what your own Caffe makes of a model, for `check` to compare other models with.

The script is one file. It runs under Python 2.7 and 3, and needs nothing but the pycaffe of that Caffe (BVLC's or a
fork's) and numpy. It makes an .npz: of a net its blobs, parameters and, with --gradients, diffs; of a solver the
parameters and outputs as it trains.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from .. import proto
from ..check import recorder
from ..errors import CaffeError, ParseError
from ..layers import LAYERS
from ..proto import replacing
from .flags import flag, positive

QUIET = True
HELP = "write a script that records what real Caffe makes of a net or solver"

#: The line of the script that the settings take the place of, up to its comment.
_PLACE = "SETTINGS = json.loads('{}')"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model, and what to record of it."""
    parser.add_argument("model", help="the prototxt of a net or a solver, as the script is to open it")
    parser.add_argument("script", nargs="?", help="the script to write (default record_MODEL.py, here)")
    flag(parser, "weights", help="the weights that the script is to load (caffemodel)")
    flag(parser, "phase", default="TEST", choices=("TRAIN", "TEST"), help="the phase of a net (default TEST)")
    flag(parser, "gradients", action="store_true", help="record a backward pass of a net too")
    flag(parser, "iterations", type=positive, help="how many iterations of a solver to record (default 20)")
    flag(parser, "data", action=argparse.BooleanOptionalAction, default=True,
         help="record the data that a solver trains on, so that `check` needs no database")
    flag(parser, "input", help="the .npz or .npy with the net's inputs that the script is to read (default: random)")
    flag(parser, "seed", type=int, default=0, help="the seed of random inputs (default 0)")
    flag(parser, "output", help="the file that the script is to write (default MODEL.npz)")


def run(args: argparse.Namespace) -> None:
    """Writes the script."""
    stem = Path(args.model).stem
    path = args.script or f"record_{stem}.py"
    write_script(path, args.model, weights=args.weights, phase=args.phase, gradients=args.gradients,
                 iterations=args.iterations, data=args.data, inputs=args.input, seed=args.seed,
                 output=args.output or f"{stem}.npz")
    print(f"Wrote {path}. Run it where Caffe is: python {path} [--caffe CAFFE_ROOT/python]")


def write_script(
    path: str | os.PathLike[str], model: str | os.PathLike[str], *, output: str, weights: str | None = None,
    phase: str = "TEST", gradients: bool = False, iterations: int | None = None, data: bool = True,
    inputs: str | None = None, seed: int = 0,
) -> None:
    """Writes the script that records `model`, whole or not at all; the arguments are the flags of the command.

    Raises `ParseError` if the model is no net and no solver, `CaffeError` for settings that do not concern it.
    """
    name = os.fspath(model)
    net = _read_net(name)
    settings: dict[str, Any] = {"model": name, "weights": weights, "output": output, "input": inputs, "seed": seed}
    if net is None:
        if gradients or inputs:
            raise CaffeError(f"{name}: is a solver's; --gradients and --input are for nets")
        settings.update(kind="solver", phase="TRAIN", data=data, recorded=recorded_iterations(iterations or 20))
    else:
        if iterations:
            raise CaffeError(f"{name}: is a net's; --iterations is for solvers")
        settings.update(kind="net", phase=phase, gradients=gradients, has_loss=_has_loss(net))
    text = Path(recorder.__file__).read_text(encoding="utf-8")
    line = next(line for line in text.splitlines() if line.startswith(_PLACE))
    text = text.replace(line, f"SETTINGS = json.loads({json.dumps(settings, sort_keys=True)!r})")
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def recorded_iterations(count: int) -> list[int]:
    """1, 2, 3, 5, 10, 20, 30, 50, 100, ... up to `count`, and that itself."""
    found, scale = {count}, 1
    while scale <= count:
        found |= {step * scale for step in (1, 2, 3, 5) if step * scale <= count}
        scale *= 10
    return sorted(found)


def _read_net(path: str) -> Any | None:
    """The net, or None if the file is a solver's. A fork's fields may be in it: it is the fork that is to run it."""
    net = proto.read_text(path, "NetParameter", allow_unknown=True).message
    if net.layer:
        return net
    solver = proto.read_text(path, "SolverParameter", allow_unknown=True).message
    if not any(field.name.startswith(("net", "train_net")) for field, _ in solver.ListFields()):
        raise ParseError("is neither a net with layers nor a solver with a net", path)
    return None


def _has_loss(net: Any) -> bool:
    """Whether a backward pass has somewhere to start: in some phase, a layer makes a loss."""
    return any(any(layer.loss_weight) or layer.type.endswith("Loss")
               or (layer.type in LAYERS and LAYERS.get(layer.type).is_loss) for layer in net.layer)
