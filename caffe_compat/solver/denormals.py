"""Denormal floats treated as zero while training: weights under growing penalties decay into them, and they are slow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def flushed_denormals() -> Iterator[None]:
    """Flushes denormals to zero on the CPU while the block runs, and leaves the setting as it was."""
    already = not (torch.full((1,), 1e-38) * 1e-3).any()
    if not already:
        torch.set_flush_denormal(True)
    try:
        yield
    finally:
        if not already:
            torch.set_flush_denormal(False)
