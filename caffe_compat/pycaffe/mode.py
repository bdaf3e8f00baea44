"""What pycaffe sets for the whole process: CPU or GPU, the random seed, the log; and a clock."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import torch

from ..errors import CaffeError
from ..layers import LAYERS
from ..log import show

log_to = logging.getLogger("caffe_compat")


@dataclass(frozen=True)
class Mode:
    """Where nets are built and run that are not told otherwise, and what they draw random numbers from.

    A new object replaces the old one whenever something is set, so that a net sees by its identity that it must follow.
    """

    gpu: bool = False
    device_id: int = 0
    seed: int | None = None
    #: How many times a seed was set.
    seedings: int = 0

    @property
    def device(self) -> torch.device:
        """The CPU, or the chosen GPU."""
        return torch.device("cuda", self.device_id) if self.gpu else torch.device("cpu")


_mode = Mode()
#: How many nets took a seed since it was set.
_seeded = 0


def current() -> Mode:
    """What is set at present."""
    return _mode


def next_seed() -> int | None:
    """The seed for the next net: the one set, then one more for every net; None for the system's entropy."""
    global _seeded
    if _mode.seed is None:
        return None
    _seeded += 1
    return _mode.seed + _seeded - 1


def set_mode_cpu() -> None:
    """Nets run on the CPU from now on, those too that were built without a `device` of their own."""
    _set(gpu=False)


def set_mode_gpu() -> None:
    """Nets run on the GPU from now on, those too that were built without a `device` of their own."""
    _check_device(_mode.device_id)
    _set(gpu=True)


def set_device(device_id: int) -> None:
    """Which GPU `set_mode_gpu` means (the first by default)."""
    _check_device(device_id)
    _set(device_id=device_id)


def set_random_seed(seed: int) -> None:
    """Makes what nets built from now on draw reproducible, and dropout masks and the like of those that there are."""
    global _seeded
    _seeded = 0
    _set(seed=seed, seedings=_mode.seedings + 1)


def _set(**changes: Any) -> None:
    global _mode
    _mode = replace(_mode, **changes)


def _check_device(device_id: int) -> None:
    if not torch.cuda.is_available():
        raise CaffeError("no CUDA device is available; use set_mode_cpu()")
    if not 0 <= device_id < torch.cuda.device_count():
        raise CaffeError(f"there is no GPU {device_id}; expected a number below {torch.cuda.device_count()}")


# -- several GPUs: not supported, and said so -------------------------------------------------------------------------


def solver_count() -> int:
    """How many solvers train together: always one."""
    return 1


def set_solver_count(count: int) -> None:
    """Accepts 1; training on several GPUs at once is not supported."""
    if count != 1:
        raise CaffeError(f"set_solver_count({count}): training on several GPUs at once is not supported; use one")


def solver_rank() -> int:
    """Which of the solvers this is: always the first."""
    return 0


def set_solver_rank(rank: int) -> None:
    """Accepts 0; training on several GPUs at once is not supported."""
    if rank != 0:
        raise CaffeError(f"set_solver_rank({rank}): training on several GPUs at once is not supported; use one")


def set_multiprocess(value: bool) -> None:
    """Nothing to set: there is always one process for each solver."""


def has_nccl() -> bool:
    """Whether solvers can exchange gradients over NCCL: no."""
    return False


class NCCL:
    """pycaffe's exchange of gradients between GPUs, which there is not here (`has_nccl()` is False)."""

    def __init__(self, solver: Any = None, uid: bytes | str = b"") -> None:
        _no_nccl()

    @staticmethod
    def new_uid() -> NoReturn:
        """Raises as the constructor does."""
        _no_nccl()


def _no_nccl() -> NoReturn:
    raise CaffeError("NCCL: training on several GPUs at once is not supported; has_nccl() tells a script in advance")


# -- the rest -------------------------------------------------------------------------------------------------------


def layer_type_list() -> list[str]:
    """The names of all layer types."""
    return LAYERS.names()


def init_log(level: int = 0, stderr: bool = True) -> None:
    """Shows the log on standard error, from glog's `level` on: 0 for all, 1 warnings, 2 errors, 3 hardly anything."""
    if stderr:
        show((logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL)[min(max(level, 0), 3)])


def log(message: str) -> None:
    """Writes a line into the log."""
    log_to.info("%s", message)


class Timer:
    """Measures the time from `start` to `stop`, work that waits on the GPU included."""

    def __init__(self) -> None:
        self._begin = self._end = 0.0

    def start(self) -> None:
        """Starts the clock, from 0."""
        self._begin = self._end = _now()

    def stop(self) -> None:
        """Stops the clock."""
        self._end = _now()

    @property
    def ms(self) -> float:
        """Milliseconds between start and stop, up to now if it runs."""
        return 1000 * (self._end - self._begin)


def _now() -> float:
    if _mode.gpu:
        torch.cuda.synchronize(_mode.device)
    return time.perf_counter()
