"""The targets torch, safetensors and exported: a model file with its weights, weights alone, a torch.export program."""

from __future__ import annotations

import ast
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import proto
from ..errors import CaffeError, WeightError
from .graph import Graph
from .targets import TARGETS, Options, Target
from .torch_module import TORCH
from .torch_source import Model

#: The files of a torch export.
SOURCE, WEIGHTS, NET = "model.py", "weights", "net.prototxt"
_LOAD = {
    ".pth": 'model.load_state_dict(torch.load("weights.pth", weights_only=True))',
    ".safetensors": 'safetensors.torch.load_model(model, "weights.safetensors")',
}


def write_torch(graph: Graph, path: str | os.PathLike[str], options: Options) -> None:
    """Writes the folder `path`: model.py, the weights, and net.prototxt, which they can be turned back into."""
    model = Model(graph, dict(options.rename))
    suffix = ".safetensors" if options.safetensors else ".pth"
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CaffeError(f"{folder}: cannot be made: {error.strerror}") from None
    write_weights(model, folder / f"{WEIGHTS}{suffix}", options.half)
    proto.write_text(folder / NET, graph.to_document(weights=False).message)
    with proto.replacing(folder / SOURCE) as temporary:
        temporary.write_text(model.source(_LOAD[suffix], options.half), encoding="utf-8")


def write_weights(model: Model, path: Path, half: bool = False) -> None:
    """Writes the state dict as .pth or .safetensors, which also has names and the net in its metadata."""
    state = {key: _tensor(key, values, half) for key, values in model.state().items()}
    if path.suffix == ".safetensors":
        blobs = {f"{name}.{key}": f"{model.layers[name]}/{j}" for name, made in model.modules.items()
                 for j, (key, values) in enumerate(made.state.items())
                 if j < len(model.nodes[name].params) and values.dtype == np.float32}
        metadata = {"format": "pt", "caffe_names": json.dumps(model.caffe_names()), "caffe_blobs": json.dumps(blobs),
                    "tied": json.dumps(model.ties),
                    "prototxt": proto.dump_text(model.graph.to_document(weights=False).message)}
        with proto.replacing(path) as temporary:
            temporary.touch()
            mode = temporary.stat().st_mode
            _safetensors().save_file(state, temporary, metadata)
            temporary.chmod(mode)  # which the library narrows to the owner
        return
    state.update({key: state[known] for key, known in model.ties.items()})
    with proto.replacing(path) as temporary:
        torch.save(state, temporary)


def _tensor(key: str, values: np.ndarray, half: bool) -> Tensor:
    if not half or values.dtype != np.float32:
        return torch.from_numpy(values if values.flags.c_contiguous and values.flags.writeable else values.copy("C"))
    with np.errstate(over="ignore"):
        small = np.asarray(values, np.float16)
    if np.isinf(small).any() and not np.isinf(values).any():
        raise WeightError(f"{key}: the largest value is {np.abs(values).max():g}, beyond float16's 65504; convert without "
                          "--half")
    return torch.from_numpy(small)


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError:
        raise CaffeError("this needs the package safetensors; install it with: pip install 'caffe-compat[convert]'") from None
    return safetensors.torch


# -- reading back ---------------------------------------------------------------------------------------------------


def load_module(folder: str | os.PathLike[str]) -> nn.Module:
    """The module of an export, in evaluation mode and float32, with its weights. Runs the folder's model.py."""
    state, ties = read_state(Path(folder))
    wide = {key: value.float() if value.is_floating_point() else value for key, value in state.items() if key not in ties}
    source = read_source(Path(folder))
    try:
        return make_module(source, wide, ties).eval()
    except Exception as error:  # it is the user's file by now
        raise CaffeError(f"{Path(folder) / SOURCE}: cannot be used with its weights: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def make_module(source: str, state: Mapping[str, Tensor], ties: Mapping[str, str]) -> nn.Module:
    """The module that a model file's text defines, with the tensors of `state` as its parameters, not copies of them."""
    space: dict[str, Any] = {"__name__": "model"}
    exec(compile(source, SOURCE, "exec"), space)
    cls = space[ast.parse(source).body[-1].name]  # type: ignore[attr-defined]
    state = {**state, **{key: state[known] for key, known in ties.items()}}
    with torch.device("meta"):
        module = cls()
    if {name for name, _ in module.named_buffers()} - set(state):  # constants, which no state has
        module = cls()
    module.load_state_dict(state, assign=True)
    for key, known in ties.items():
        owner, _, name = key.rpartition(".")
        setattr(module.get_submodule(owner), name, _tensor_of(module, known))
    return module


def _tensor_of(module: nn.Module, key: str) -> Tensor:
    owner, _, name = key.rpartition(".")
    return getattr(module.get_submodule(owner), name)


def to_module(graph: Graph, rename: Mapping[str, str] | None = None, share: bool = False) -> nn.Module:
    """The graph as a torch module in the mode of the graph's phase; with `share` in the graph's memory where it can be."""
    model = Model(graph, dict(rename or {}))
    state = {key: _tensor(key, values if share else values.copy("C"), False) for key, values in model.state().items()}
    return make_module(model.source(_LOAD[".pth"]), state, model.ties).train(graph.training)


def read_source(folder: Path) -> str:
    """The text of the folder's model file."""
    try:
        return (folder / SOURCE).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CaffeError(f"{folder}: not a torch export: {SOURCE} cannot be read: {error}") from None


def read_state(folder: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The state dict of an export, and the keys that are left out of it with those they are tied to."""
    path = folder / f"{WEIGHTS}.pth"
    if path.exists():
        try:
            state = torch.load(path, weights_only=True, map_location="cpu")
            return state, _ties(state)
        except Exception as error:  # of what kinds a damaged file's are, torch does not say
            raise WeightError(f"{path}: not a state dict: {_first_line(error)}") from None
    path = folder / f"{WEIGHTS}.safetensors"
    if not path.exists():
        raise CaffeError(f"{folder}: there are no weights: neither {WEIGHTS}.pth nor {WEIGHTS}.safetensors")
    _safetensors()
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            return {key: file.get_tensor(key) for key in file.keys()}, json.loads(metadata.get("tied", "{}"))  # noqa: SIM118
    except (SafetensorError, ValueError) as error:
        raise WeightError(f"{path}: {error}") from None


def _ties(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Keys whose tensor is in the same memory as another's that comes before."""
    first: dict[tuple, str] = {}
    return {key: known for key, value in state.items() if value.numel()
            and (known := first.setdefault((value.data_ptr(), value.shape), key)) != key}


def run_torch(folder: str | os.PathLike[str], inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Runs an export; every blob, in its last version, by Caffe's name."""
    module = load_module(folder)
    document = proto.read_text(Path(folder) / NET, "NetParameter")
    wanted = [blob for spec in document.message.layer if spec.type == "Input" for blob in spec.top]
    if missing := [blob for blob in wanted if blob not in inputs]:
        raise CaffeError(f"{os.fspath(folder)}: takes {', '.join(wanted)}; no values were given for {', '.join(missing)}")
    tops = {spec.name: list(spec.top) or [spec.name] for spec in document.message.layer}
    names = caffe_names(read_source(Path(folder)))
    blobs: dict[str, np.ndarray] = {}
    for name, child in module.named_children():
        if names.get(name, name) in tops:
            child.register_forward_hook(_keep(blobs, tops[names.get(name, name)]))
    with torch.no_grad():
        module(*(torch.from_numpy(inputs[blob]) for blob in wanted))
    return blobs


def _keep(blobs: dict[str, np.ndarray], tops: list[str]) -> Any:
    """A hook that keeps what a layer makes; one that is called for each of its bottoms makes one top a call."""
    waiting: list[str] = []

    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        values = output if isinstance(output, tuple | list) else (output,)
        if not waiting:
            waiting.extend(tops)
        for value in values:
            blobs[waiting.pop(0)] = value.detach().numpy()

    return hook


def caffe_names(source: str) -> dict[str, str]:
    """The name map of a model file, read without running it."""
    try:
        for statement in ast.parse(source).body:
            if isinstance(statement, ast.Assign) and getattr(statement.targets[0], "id", "") == "CAFFE_NAMES":
                return dict(ast.literal_eval(statement.value))
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise CaffeError(f"{SOURCE}: cannot be read: {error}") from None
    return {}


TARGETS.add("torch")(Target("torch", "a folder with model.py, a plain nn.Module, and its weights", TORCH, write_torch,
                            run_torch))
