"""The entry point through which the solver's command line finds pruning (group `caffe_compat.hooks`)."""

from __future__ import annotations

from caffe_compat.solver.solver import Solver

from .config import read_config, register_regularizations
from .hook import PruneHook

register_regularizations()


def attach(solver: Solver, as_reference: bool = False) -> PruneHook | None:
    """Lets a solver prune, if its prototxt names a prune_method; returns the hook that does, or None.

    To be called before weights or a snapshot are loaded. `as_reference` follows the reference's defects (see `increg`).
    Raises `SolverError` and `UnknownType` for settings that cannot be followed.
    """
    config = read_config(solver.param, solver.where, as_reference)
    if config is None:
        return None
    hook = PruneHook(solver, config)
    solver.add_hook(hook)
    return hook
