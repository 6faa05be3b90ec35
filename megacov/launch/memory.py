"""Memory of a process that lives as long as a run: what the garbage collector visits, and what malloc gives back."""

from __future__ import annotations

import ctypes
import gc

_COLLECTED_AFTER = 100_000  # new objects; Python's default is 700, and a reply of a server has an object for each token

# Numbers of <malloc.h>, and what they are set to. [bytes]
_M_TRIM_THRESHOLD, _TRIM_THRESHOLD = -1, 256 << 20
_M_MMAP_THRESHOLD, _MMAP_THRESHOLD = -3, 32 << 20  # the most that glibc allows


def spare_collector() -> None:
    """Let Python's garbage collector pass over all that exists now, and seldom start by itself.

    A full collection visits every object of every imported library, which takes tenths of a second.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECTED_AFTER)


def keep_freed_memory() -> bool:
    """Let malloc keep freed memory for the next allocation, up to 256 MB beyond what is in use.

    By default glibc gives large blocks back to the kernel, and each new tensor begins with a page fault for every 4 kB.
    Only this process is changed, and not those that it starts.

    Returns:
        Whether this C library can do it.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all([mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD) == 1, mallopt(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD) == 1])
