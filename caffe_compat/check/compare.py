"""`compare`: runs two models on the same inputs, one after the other, and measures the differences."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import CaffeError
from . import caffe_model, onnx_model, recording, solver_model, torch_model  # noqa: F401 (they register themselves)
from .hints import hint
from .inputs import make_inputs
from .report import Difference, Report
from .runner import Arrays, Options, Runner, open_runner

#: Relative to each blob's std: what float32 in another order of summation makes of deep nets lies well below.
TOLERANCE = 1e-4

Model = Any  # a spec, a Runner, a Net or a torch module


def compare(
    a: Model, b: Model | None = None, inputs: Mapping[str, np.ndarray] | str | None = None, *,
    tolerance: float = TOLERANCE, options: Options | None = None, rename: Mapping[str, str] | None = None, seed: int = 0,
) -> Report:
    """Compares the model `b` with the reference `a`: specs (see the package), Runners, Nets or torch modules.

    `inputs` are arrays by input name, or a word: "random" (standard normal, from `seed`) or the path of a .npy, .npz or
    image file. Without them, a recording's own inputs are used if one of the two is a recording, else random ones.
    Without `b`, a recording is compared with the net or solver that it holds. `tolerance` is the largest error allowed,
    relative to the std of each blob in `a`. `rename` gives names of `a` as they are in `b`.

    Models named by path are opened one after the other, so that only one is in memory. Raises `CaffeError` for models
    that cannot be opened or run, and where they have nothing to compare.
    """
    options, names = options or Options(), dict(rename or {})
    first, second = _partners(a, b, options)
    given = next((arrays for side in (first, second) if (arrays := side.given()) is not None), None)
    if isinstance(inputs, Mapping):
        arrays: Arrays = dict(inputs)
    elif inputs is None and given is not None:
        arrays = given
    else:
        arrays = make_inputs(inputs or "random", [first.inputs(), _renamed(second.inputs(), _inverse(names))], seed)
    arrays = {**{key: values for key, values in (given or {}).items() if key.startswith("output_diff/")}, **arrays}
    found = _run(first, second, arrays, names)
    return _measure(first, second, found, tolerance, names)


def as_runner(model: Model, options: Options) -> Runner:
    """The Runner of a spec, a Net, a torch module or a Runner."""
    if isinstance(model, Runner):
        return model
    if isinstance(model, str | os.PathLike):
        return open_runner(model, options)
    for make in (caffe_model.CaffeModel.of, torch_model.TorchModel.of):
        runner = make(model, options)
        if runner is not None:
            return runner
    raise CaffeError(f"cannot run a {type(model).__name__}; give a path, a Net, a torch module or a Runner")


def _partners(a: Model, b: Model | None, options: Options) -> tuple[Runner, Runner]:
    first = as_runner(a, options)
    if b is None:
        if not isinstance(first, recording.Recording):
            raise CaffeError(f"{first.name}: give a second model to compare with; only a recording has one of its own")
        return first, first.own_model(options)
    second = as_runner(b, options)
    for one, other in ((first, second), (second, first)):
        if isinstance(one, recording.Recording):
            one.prepare(other)
    return first, second


def _run(first: Runner, second: Runner, inputs: Arrays, rename: dict[str, str]) -> tuple[Arrays, Arrays]:
    """What both make of the inputs; a recording goes first, as it knows what is wanted of the other."""
    backwards = _inverse(rename)
    if isinstance(second, recording.Recording) and not isinstance(first, recording.Recording):
        theirs = second.run(_renamed(inputs, rename))
        ours = first.run(inputs, set(_renamed_keys(theirs, backwards)))
    else:
        ours = first.run(inputs)
        first.close()
        theirs = second.run(_renamed(inputs, rename), set(_renamed_keys(ours, rename)))
    first.close()
    second.close()
    return ours, _renamed_keys(theirs, backwards)


def _inverse(names: dict[str, str]) -> dict[str, str]:
    return {new: old for old, new in names.items()}


def _renamed(arrays: Mapping[str, Any], names: dict[str, str]) -> dict[str, Any]:
    return {names.get(name, name): values for name, values in arrays.items()}


def _renamed_keys(arrays: Arrays, names: dict[str, str]) -> Arrays:
    return {f"blob/{names.get(key[5:], key[5:])}" if key.startswith("blob/") else key: values
            for key, values in arrays.items()}


def _measure(first: Runner, second: Runner, found: tuple[Arrays, Arrays], tolerance: float,
             rename: dict[str, str]) -> Report:
    ours, theirs = found
    report = Report(first.name, second.name, tolerance)
    for key, values in ours.items():
        if key not in theirs:
            report.only_a.append(key)
            continue
        layer = first.origin(key) or second.origin(key)
        report.differences.append(Difference.of(key, values, theirs[key], layer))
    report.only_b = [key for key in theirs if key not in ours]
    if not report.differences:
        raise CaffeError(f"{first.name} and {second.name} have no value of the same name; the first has "
                         f"{_some(ours)}, the second {_some(theirs)}. Give the names that differ with --map")
    backwards = _inverse(rename)
    outputs = dict.fromkeys([*first.outputs(), *(backwards.get(name, name) for name in second.outputs())])
    report.unmatched = [name for name in outputs if f"blob/{name}" not in ours or f"blob/{name}" not in theirs]
    report.differences = hint(report.differences, ours, theirs, tolerance)
    return report


def _some(arrays: Arrays) -> str:
    names = [key.removeprefix("blob/") for key in arrays]
    return ", ".join([*names[:5], f"... ({len(names)} in all)"] if len(names) > 5 else names) or "none"
