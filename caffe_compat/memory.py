"""How a process of ours keeps its memory: freed blobs are handed to the next pass, not back to the system."""

from __future__ import annotations

import ctypes
from contextlib import suppress

#: mallopt's names in glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST = 1 << 30


def keep_freed_memory() -> None:
    """Tells the C library to keep what is freed, for the whole process; the commands call it, the library never does.

    A net allocates and frees the same large blobs in every pass. By default glibc returns them to the system each time,
    which then zeroes fresh pages for the next: a tenth of the time of an AlexNet pass. Other C libraries are left alone.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_MMAP_THRESHOLD, _LARGEST)
    mallopt(_TRIM_THRESHOLD, _LARGEST)


def release_freed_memory() -> None:
    """Gives freed memory back to the system, also where `keep_freed_memory` was called; nothing where glibc is not."""
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
