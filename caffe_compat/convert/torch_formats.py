"""What follows from the torch target: weights alone (safetensors), a torch.export program, and the way back to Caffe."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from .. import proto
from ..errors import CaffeError, WeightError
from ..net import Net
from ..proto import Document
from .compare import random_inputs
from .conversion import IMPORTERS, Importer, phase_of
from .graph import Graph
from .targets import TARGETS, Options, Target, Unsupported, UnsupportedLayer
from .torch_module import TORCH
from .torch_source import Model
from .torch_target import NET, caffe_names, read_source, read_state, to_module, write_weights

#: What a torch.export program cannot hold though a module can.
_STATE = "without expose_hidden every run starts from states of 0"
NOT_EXPORTED: dict[str, str | Unsupported] = {
    "DetectionOutput": Unsupported("what it does next hangs on the values it finds, which a traced program cannot follow"),
    "LSTM": _STATE, "RNN": _STATE,
}


def write_safetensors(graph: Graph, path: str | os.PathLike[str], options: Options) -> None:
    """Writes the weights, under the names that they have in a torch export, as one .safetensors file.

    Its metadata: `caffe_blobs` (name -> layer/index), `caffe_names` (module -> layer, where they differ), `tied` (names
    of shared weights -> the one that is stored), all in JSON, and `prototxt`.
    """
    if Path(path).suffix != ".safetensors":
        raise CaffeError(f"{Path(path).name}: name the file to write something.safetensors")
    write_weights(Model(graph, dict(options.rename)), Path(path), options.half)


def write_exported(graph: Graph, path: str | os.PathLike[str], options: Options) -> None:
    """Writes the graph as a torch.export program (.pt2) for inference, with a dynamic batch where the net allows one."""
    for node in graph.nodes:
        if isinstance(reason := NOT_EXPORTED.get(node.type), Unsupported):
            raise UnsupportedLayer(node, "exported", reason.reason)
    kind = torch.float16 if options.half else torch.float32
    given = random_inputs(graph)
    # torch takes sizes of 0 and 1 for constants
    batch = {graph.blob(value) for value, shape in graph.inputs.items() if shape}
    many = {name: np.concatenate([values] * 2)[:max(2, len(values))] if name in batch else values
            for name, values in given.items()}
    program = _export(graph, options, [torch.from_numpy(values).to(kind) for values in many.values()],
                      [{0: torch.export.Dim.AUTO} if name in batch else None for name in many])
    if not _takes(program, given, kind):
        program = _export(graph, options, [torch.from_numpy(values).to(kind) for values in given.values()], None)
    with proto.replacing(path) as temporary, open(temporary, "wb") as file:
        torch.export.save(program, file, extra_files={"outputs": "\n".join(map(graph.blob, graph.outputs))})


def _export(graph: Graph, options: Options, inputs: list[torch.Tensor],
            dynamic: list | None) -> torch.export.ExportedProgram | None:
    """The program; None if the net cannot be exported with dynamic axes."""
    module = to_module(graph, options.rename, share=True).eval()  # a new one: tracing leaves things behind
    if options.half:
        module = module.half()
    try:
        with torch.no_grad():
            return torch.export.export(module, tuple(inputs), dynamic_shapes=tuple(dynamic) if dynamic else None)
    except Exception as error:  # torch.export raises of many kinds, some of them torch's private ones
        if dynamic:
            return None
        reason = str(error).strip().splitlines()[0]
        raise CaffeError(f"torch.export cannot trace this net: {reason}; the torch target can hold it") from error


def _takes(program: torch.export.ExportedProgram | None, inputs: Mapping[str, np.ndarray], kind: torch.dtype) -> bool:
    """Whether a program runs on inputs of the net's own shapes."""
    if program is None:
        return False
    try:
        with torch.no_grad():
            program.module()(*(torch.from_numpy(values).to(kind) for values in inputs.values()))
    except (RuntimeError, AssertionError, ValueError):
        return False
    return True


def run_exported(path: str | os.PathLike[str], inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Runs a program of ours; its outputs, by Caffe's names."""
    extra = {"outputs": ""}
    try:
        with open(path, "rb") as file:
            program = torch.export.load(file, extra_files=extra)
    except (OSError, RuntimeError, ValueError) as error:
        raise WeightError(f"{os.fspath(path)}: not a torch.export program: {error}") from None
    kinds = [value.dtype for value in program.state_dict.values() if value.is_floating_point()]
    kind = kinds[0] if kinds else torch.float32
    with torch.no_grad():
        found = program.module()(*(torch.from_numpy(values).to(kind) for values in inputs.values()))
    names = extra["outputs"]
    names = (names.decode() if isinstance(names, bytes) else names).split("\n")
    values = [found[name] for name in names] if isinstance(found, dict) else [found]
    return {name: value.detach().float().numpy() for name, value in zip(names, values)}


def import_torch(folder: str, inputs: Mapping[str, Sequence[int]]) -> Document:
    """A torch export (trained on, perhaps) as the NetParameter that it came from, with its weights. Runs no code of it."""
    path = Path(folder)
    names = {layer: name for name, layer in caffe_names(read_source(path)).items()}
    document = proto.read_text(path / NET, "NetParameter")
    state, ties = read_state(path)
    graph = Graph.of(Net(document, phase_of(document.message), seed=0))
    model = Model(graph, names)
    for name, made in model.modules.items():
        found = {}
        for key, values in made.state.items():
            full = f"{name}.{key}"
            tensor = state.get(ties.get(full, full))
            if tensor is None or tuple(tensor.shape) != values.shape:
                raise WeightError(f"{path}: {full} should be {tuple(values.shape)} by {NET}, found "
                                  f"{'nothing' if tensor is None else tuple(tensor.shape)}")
            found[key] = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
        if made.state:
            model.nodes[name].params = made.blobs(found)
    return graph.to_document()


IMPORTERS.add("/")(Importer(import_torch))
TARGETS.add("safetensors")(Target("safetensors", "the weights alone, with a name map", TORCH, write_safetensors))
TARGETS.add("exported")(Target("exported", "a torch.export program (.pt2)", TORCH, write_exported, run_exported,
                               inference=True, exceptions=NOT_EXPORTED))
