"""How a process of ours keeps its memory, and what it refuses to allocate.

Freed blobs are handed to the next pass, not back to the system. Sizes that only a mistake in a file can ask for are
refused before memory is asked for them.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from functools import cache
from math import prod

#: Caffe counts the values of a blob in an int, and refuses blobs of more.
LARGEST_BLOB = 2**31 - 1
#: More bytes than this for one net are refused; None: more than the machine has.
LIMIT: int | None = None

#: mallopt's names in glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_LARGEST = 1 << 30
#: What glibc begins with.
_USUAL = 128 << 10


def keep_freed_memory() -> None:
    """Tells the C library to keep what is freed, for the whole process; the commands call it, the library never does.

    A net allocates and frees the same large blobs in every pass. By default glibc returns them to the system each time,
    which then zeroes fresh pages for the next: a tenth of the time of an AlexNet pass. Other C libraries are left alone.
    """
    _set_thresholds(_LARGEST)


def return_freed_memory() -> None:
    """Ends what `keep_freed_memory` began, for commands that hold large things once, one after the other."""
    _set_thresholds(_USUAL)


def _set_thresholds(size: int) -> None:
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_MMAP_THRESHOLD, size)
    mallopt(_TRIM_THRESHOLD, size)


def impossible(shape: Sequence[int]) -> str | None:
    """What is wrong with a blob's shape, if no blob can have it: a negative axis, or more values than Caffe counts."""
    if min(shape, default=0) < 0:
        return f"a blob cannot have the shape {' '.join(map(str, shape))}: an axis is negative"
    if prod(shape) > LARGEST_BLOB or max(shape, default=0) > LARGEST_BLOB:
        return (f"a blob of the shape {' '.join(map(str, shape))} has {prod(shape):,} values; Caffe's limit is "
                f"{LARGEST_BLOB:,}. Look for a size with too many digits")
    return None


def too_much(size: int) -> str | None:
    """What to say if `size` bytes are more than there can be, on the machine or in its container."""
    limit = LIMIT or _installed()
    return f"the net takes {size / 2**30:.1f} GiB up to here; this machine has {limit / 2**30:.1f}" if size > limit else None


@cache
def _installed() -> int:
    """The bytes of memory that the process could get, as far as the system tells."""
    found = [1 << 62]
    try:
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
        with open("/sys/fs/cgroup/memory.max", encoding="ascii") as file:
            found.append(int(file.read()))
    except (AttributeError, OSError, ValueError):
        pass  # another system, or no limit ("max")
    return min(size for size in found if size > 0)
