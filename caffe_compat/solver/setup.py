"""What a solver needs before the first iteration: checked settings, train and test nets in their states, a snapshot prefix."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

import torch

from .. import proto
from ..errors import SolverError
from ..graph import TEST, TRAIN
from ..net import Net
from ..proto import Document

log = logging.getLogger(__name__)

_TRAIN_FIELDS = ("net", "net_param", "train_net", "train_net_param")


def check(param: Any, where: str) -> None:
    """Raises `SolverError` for settings that Caffe refuses, or that train nothing."""
    if param.average_loss < 1:
        raise SolverError(f"{where}: average_loss is {param.average_loss}, expected 1 or more")
    if param.iter_size < 1:
        raise SolverError(f"{where}: iter_size is {param.iter_size}, expected 1 or more")
    given = [name for name in _TRAIN_FIELDS if param.HasField(name)]
    if len(given) != 1:
        raise SolverError(f"{where}: exactly one of {', '.join(_TRAIN_FIELDS)} names the net to train; "
                          f"found {', '.join(given) or 'none'}")
    if param.snapshot < 0 or param.display < 0 or param.test_interval < 0:
        raise SolverError(f"{where}: snapshot, display and test_interval count iterations; found "
                          f"{param.snapshot}, {param.display}, {param.test_interval}")


def complete_snapshot_prefix(param: Any, path: str | None) -> None:
    """Caffe's rule: without snapshot_prefix, snapshots are named after the solver file; a folder gets that name added.
    Raises if `snapshot` is set and the folder cannot be written to."""
    if path is not None:
        folder, name = os.path.split(path)
        stem = os.path.splitext(name)[0]
        if not param.HasField("snapshot_prefix"):
            param.snapshot_prefix = os.path.join(folder, stem)
            log.info("snapshot_prefix was not specified and is set to %s", param.snapshot_prefix)
        elif param.snapshot_prefix and os.path.isdir(param.snapshot_prefix):
            param.snapshot_prefix = os.path.join(param.snapshot_prefix, stem)
            log.info("snapshot_prefix was a directory and is replaced to %s", param.snapshot_prefix)
    if param.snapshot:
        folder = os.path.dirname(param.snapshot_prefix) or "."
        if not os.path.isdir(folder) or not os.access(folder, os.W_OK):
            raise SolverError(f'cannot write to snapshot_prefix "{param.snapshot_prefix}": make sure that the folder '
                              f"{folder} exists and is writable")


def device_of(param: Any) -> torch.device:
    """The device that solver_mode and device_id name; the CPU, with a word about it, where there is no GPU."""
    if param.solver_mode == 0:
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda", param.device_id)
    if param.HasField("solver_mode"):
        log.warning("solver_mode is GPU, but no CUDA device is available: training on the CPU")
    return torch.device("cpu")


def _seed(param: Any) -> int | None:
    return param.random_seed if param.random_seed >= 0 else None


def net_of(solver: Document) -> Document:
    """The net that a solver trains."""
    return _net_document(solver, getattr(solver.message, _train_field(solver.message)))


def _train_field(param: Any) -> str:
    return next(name for name in _TRAIN_FIELDS if param.HasField(name))


def train_net(solver: Document, make_net: Callable[..., Net], **options: Any) -> Net:
    """The net to train, as `Solver.make_net` makes it, with Net's `options`. Its state: phase TRAIN, the net file's
    `state`, then train_state."""
    param = solver.message
    field = _train_field(param)
    source = getattr(param, field)
    log.info("Creating training net from %s%s", field, _named(source))
    document = _net_document(solver, source)
    _merge_state(document.message, TRAIN, param.train_state if param.HasField("train_state") else None)
    return make_net(document, document.message.state.phase, seed=_seed(param), **options)


def weights(param: Any) -> list[str]:
    """SolverParameter.weights, which a fork's schema may lack: files to start from, one or more an entry."""
    return list(param.weights) if "weights" in param.DESCRIPTOR.fields_by_name else []


def test_nets(solver: Document, make_net: Callable[..., Net]) -> list[Net]:
    """The test nets, in Caffe's order: test_net_param, test_net, then the net itself for each test_iter that is left."""
    param = solver.message
    sources = [(field, source) for field in ("test_net_param", "test_net") for source in getattr(param, field)]
    generic = [(field, getattr(param, field)) for field in ("net", "net_param") if param.HasField(field)]
    missing = len(param.test_iter) - len(sources)
    if missing < 0 or (missing > 0 and not generic):
        raise SolverError(f"{solver.path or 'solver'}: found {len(param.test_iter)} test_iter for {len(sources)} test nets; "
                          "give one for each")
    sources += generic * missing
    if len(param.test_state) not in (0, len(sources)):
        raise SolverError(f"{solver.path or 'solver'}: found {len(param.test_state)} test_state for {len(sources)} test "
                          "nets; give one for each, or none")
    if sources and param.test_interval <= 0:
        raise SolverError(f"{solver.path or 'solver'}: there are test nets, but test_interval is not set")
    nets = []
    for i, (field, source) in enumerate(sources):
        log.info("Creating test net (#%d) specified by %s%s", i, field, _named(source))
        document = _net_document(solver, source)
        _merge_state(document.message, TEST, param.test_state[i] if param.test_state else None)
        nets.append(make_net(document, document.message.state.phase, seed=_seed(param), keep_blobs=param.debug_info))
    return nets


def _named(source: Any) -> str:
    return f" file: {source}" if isinstance(source, str) else ""


def _net_document(solver: Document, source: Any) -> Document:
    if not isinstance(source, str):
        message = type(source)()
        message.CopyFrom(source)
        return Document(message, solver.dialect, solver.path, {}, {}, {})
    if not os.path.exists(source) and solver.path and not os.path.isabs(source):
        beside = os.path.join(os.path.dirname(solver.path), source)
        source = beside if os.path.exists(beside) else source
    return proto.read_text(source, "NetParameter")


def _merge_state(net: Any, phase: int, last: Any) -> None:
    state = type(net.state)(phase=phase)
    state.MergeFrom(net.state)
    if last is not None:
        state.MergeFromString(last.SerializeToString())  # the solver's dialect may be another than the net's
    net.state.CopyFrom(state)
