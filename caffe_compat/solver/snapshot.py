"""Snapshots: a `.caffemodel` and a `.solverstate` that Caffe reads, and in the latter's `extra` what an exact resume needs.

SolverState has Caffe's fields (iter, learned_net, history, current_step), what hooks add, and as `extra`: the position
and random state of every data layer and the random state of the nets. Real Caffe skips `extra`; a file without it
resumes as in Caffe, with the data at the first item.
"""

from __future__ import annotations

import json
import logging
import os
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .. import hdf5, proto
from ..errors import WeightError
from ..layers.base import format_shape
from ..net import Net
from ..proto import Document

if TYPE_CHECKING:
    from .solver import Solver

log = logging.getLogger(__name__)


def save(solver: Solver, infix: str) -> str:
    """Writes both files, each whole or not at all, the state last; returns the state's path."""
    stem = f"{solver.param.snapshot_prefix}{infix}_iter_{solver.iter}"
    as_hdf5 = proto.enum_name(solver.param, "snapshot_format") == "HDF5"
    suffix, kind = (".h5", "HDF5") if as_hdf5 else ("", "binary proto")
    model_path, state_path = f"{stem}.caffemodel{suffix}", f"{stem}.solverstate{suffix}"
    log.info("Snapshotting to %s file %s", kind, model_path)
    solver.net.save(model_path, solver.param.snapshot_diff)
    log.info("Snapshotting solver state to %s file %s", kind, state_path)
    document = _to_document(solver, model_path)
    if as_hdf5:
        hdf5.write_state(state_path, document)
    else:
        proto.write_binary(state_path, document)
    return state_path


def load(solver: Solver, path: str) -> None:
    """Restores weights, history, iteration and, from our own files, data positions and random states."""
    if hdf5.is_hdf5(path):
        state = hdf5.read_state(path, solver.dialect)
    else:
        state = proto.read_binary(path, "SolverState", dialect=solver.dialect)
    history = _history(solver, state)
    solver.net.copy_from(_learned_net(state, path))
    with torch.no_grad():
        for tensor, values in history:
            tensor.copy_(torch.from_numpy(np.array(values, dtype=np.float32)))
    solver.iter = state.message.iter
    solver.current_step = state.message.current_step
    extra = {item.name: item.value for item in state.message.extra}
    solver.data_restored = _POSITIONS in extra
    _load_positions(solver, extra)
    for hook in solver.hooks:
        hook.load_state(solver, state, extra)


def _to_document(solver: Solver, model_path: str) -> Document:
    message = solver.dialect.message("SolverState")(
        iter=solver.iter, learned_net=model_path, current_step=solver.current_step)
    arrays = {}
    # Caffe's order: the first slot of every parameter, then the second of every parameter.
    for slot in range(solver.rule.slots):
        for slots in solver.history:
            arrays["history", len(message.history)] = slots[slot].cpu().numpy()
            message.history.add()
    document = Document(message, solver.dialect, None, {}, arrays, {})
    extra = _positions(solver)
    for hook in solver.hooks:
        hook.save_state(solver, document, extra)
    for name, value in extra.items():
        message.extra.add(name=name, value=value)
    return document


def _history(solver: Solver, state: Document) -> list[tuple[Tensor, np.ndarray]]:
    """(tensor, values from the file) for the whole history, checked before anything is changed."""
    tensors = [slots[slot] for slot in range(solver.rule.slots) for slots in solver.history]
    count = len(state.message.history)
    if count != len(tensors):
        raise WeightError(f"{state.path}: found {count} history blobs, this {solver.param.type} solver keeps {len(tensors)} "
                          f"({len(solver.history)} parameters, {solver.rule.slots} each); is the file from another net or "
                          "solver type?")
    pairs = []
    for i, tensor in enumerate(tensors):
        values = state.arrays["history", i]
        if values.size != tensor.numel():
            learnable = solver.learnable[i % len(solver.history)]
            raise WeightError(f"{state.path}: history of {learnable.layer_name}/{learnable.index} has shape "
                              f"{format_shape(values.shape)}, the parameter {format_shape(tuple(tensor.shape))}")
        pairs.append((tensor, values.reshape(tuple(tensor.shape))))
    return pairs


def _learned_net(state: Document, path: str) -> str:
    """The weights that belong to a state: as it names them, else of that name beside it, else of its own name."""
    named = state.message.learned_net
    beside = os.path.join(os.path.dirname(path), os.path.basename(named))
    own = path.replace(".solverstate", ".caffemodel")
    candidates = [name for name in dict.fromkeys((named, beside, own)) if name and name != path]
    for candidate in candidates:
        if os.path.isfile(candidate):
            return candidate
    raise WeightError(f"{path}: the weights of this state are not there; looked for {', '.join(candidates)}")


# -- what an exact resume needs ---------------------------------------------------------------------------------------

_POSITIONS, _RANDOM = "caffe_compat.data", "caffe_compat.random"


def _nets(solver: Solver) -> dict[str, Net]:
    return {"train": solver.net, **{f"test{i}": net for i, net in enumerate(solver.test_nets)}}


def _positions(solver: Solver) -> dict[str, bytes]:
    positions = {name: {layer.name: state for layer in net.layers if (state := layer.state()) is not None}
                 for name, net in _nets(solver).items()}
    random = {name: net.context.rng.get_state().numpy().tobytes().hex() for name, net in _nets(solver).items()}
    return {_POSITIONS: json.dumps(positions).encode(), _RANDOM: json.dumps(random).encode()}


def _load_positions(solver: Solver, extra: dict[str, bytes]) -> None:
    positions = json.loads(extra.get(_POSITIONS, b"{}"))
    random = json.loads(extra.get(_RANDOM, b"{}"))
    for name, net in _nets(solver).items():
        known = positions.get(name, {})
        for layer in net.layers:
            if layer.name in known:
                layer.load_state(known[layer.name])
            else:
                layer.rewind()
        if name in random:
            state = np.frombuffer(bytes.fromhex(random[name]), np.uint8).copy()
            net.context.rng.set_state(torch.from_numpy(state))

