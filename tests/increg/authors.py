"""The tiny nets of the authors' recorded runs (tests/golden/methods), as Caffe nets that are fed the recorded batches."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from caffe_compat import proto
from caffe_compat.plugins import create_solver
from caffe_compat.solver import Solver, SolverHook
from increg import PruneHook

GOLDEN = Path(__file__).parents[1] / "golden" / "methods"


@cache
def arrays(name: str) -> dict[str, np.ndarray]:
    """The arrays of `<name>.npz`."""
    with np.load(GOLDEN / f"{name}.npz") as file:
        return dict(file)


@cache
def cases(name: str) -> dict[str, Any]:
    """What `<name>.json` says."""
    return json.loads((GOLDEN / f"{name}.json").read_text())


def part(data: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The arrays whose names begin with `prefix`/, by the rest of their names."""
    return {key[len(prefix) + 1:]: value for key, value in data.items() if key.startswith(f"{prefix}/")}


class Chain:
    """A net whose layers follow one another; `layers` are recorded as dictionaries of type, name and sizes."""

    def __init__(self, layers: list[dict[str, Any]], shape: tuple[int, ...]) -> None:
        self.text = (f'layer {{ name: "data" type: "Input" top: "data" input_param {{ shape {{ {dims(shape)} }} }} }} '
                     f'layer {{ name: "label" type: "Input" top: "label" input_param {{ shape {{ {dims(shape[:1])} }} }} }} ')
        self.bottom = "data"
        for layer in layers:
            getattr(self, layer["type"])(layer)
        self.text += (f'layer {{ name: "loss" type: "SoftmaxWithLoss" bottom: "{self.bottom}" bottom: "label" top: "loss" }}')

    def add(self, name: str, kind: str, param: str, in_place: bool = False) -> None:
        top = self.bottom if in_place else name
        self.text += f'layer {{ name: "{name}" type: "{kind}" bottom: "{self.bottom}" top: "{top}" {param} }} '
        self.bottom = top

    def conv(self, x: dict[str, Any]) -> None:
        self.add(x["name"], "Convolution", f"convolution_param {{ num_output: {x['out']} kernel_size: {x['kernel']} "
                 f"stride: {x['stride']} pad: {x['pad']} bias_term: {str(x['bias']).lower()} }}")

    def bn(self, x: dict[str, Any]) -> None:
        self.add(f"{x['name']}_normalize", "BatchNorm", "batch_norm_param { use_global_stats: false }")
        self.add(x["name"], "Scale", "scale_param { bias_term: true }")

    def relu(self, x: dict[str, Any]) -> None:
        self.add(x["name"], "ReLU", "", in_place=True)

    def maxpool(self, x: dict[str, Any]) -> None:
        self.add(x["name"], "Pooling", f"pooling_param {{ pool: MAX kernel_size: {x['kernel']} stride: {x['stride']} }}")

    def mean(self, x: dict[str, Any]) -> None:
        self.add(x["name"], "Pooling", "pooling_param { pool: AVE global_pooling: true }")

    def flatten(self, x: dict[str, Any]) -> None:
        pass

    def linear(self, x: dict[str, Any]) -> None:
        self.add(x["name"], "InnerProduct", f"inner_product_param {{ num_output: {x['out']} }}")


def dims(shape: tuple[int, ...]) -> str:
    return " ".join(f"dim: {size}" for size in shape)


class Feeder(SolverHook):
    """Puts the recorded batches into the net, in order, over and over."""

    name = "feeder"

    def __init__(self, data: dict[str, np.ndarray]) -> None:
        self.x, self.y = data["data/x"], data["data/y"]

    def on_start(self, solver: Solver) -> None:
        batch = solver.iter % len(self.x)
        solver.net.blobs["data"].data[...] = self.x[batch]
        solver.net.blobs["label"].data[...] = self.y[batch]


def make(layers: list[dict[str, Any]], data: dict[str, np.ndarray], settings: str, prefix: Path,
         device: torch.device | str = "cpu") -> tuple[Solver, PruneHook]:
    """A solver of a recorded net with its recorded weights, the feeder first among its hooks."""
    text = f'snapshot_prefix: "{prefix}" lr_policy: "fixed" max_iter: 100000 acc_borderline: -1 {settings}'
    document = proto.parse_text(text, "SolverParameter", dialect=proto.INCREG)
    net = Chain(layers, data["data/x"].shape[1:]).text
    document.message.net_param.CopyFrom(proto.parse_text(net, "NetParameter", dialect=proto.INCREG).message)
    solver = create_solver(document, device=device, keep_blobs=False)
    for name, values in part(data, "init").items():
        if name.endswith((".weight", ".bias")):  # running statistics begin where Caffe's do, and do not matter in training
            parameter(solver, name)[...] = values
    solver.hooks.insert(0, Feeder(data))
    return solver, next(hook for hook in solver.hooks if isinstance(hook, PruneHook))


def parameter(solver: Solver, name: str) -> np.ndarray:
    """A parameter by its recorded name, `<layer>.weight` or `<layer>.bias`."""
    layer, kind = name.split(".")
    return solver.net.params[layer][("weight", "bias").index(kind)].data
