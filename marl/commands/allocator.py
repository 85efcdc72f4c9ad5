"""Freed memory kept for the next batch, since every page that comes back from the system costs a fault."""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_KEPT = 2**30  # bytes of freed memory that stay
_LARGEST = 2**25  # bytes; the largest threshold that glibc takes


def keep_freed_memory() -> bool:
    """Let the C library keep what is freed, where it is glibc; says whether it does.

    Tensors of a few megabytes are made and freed at every step. By default glibc hands such memory back at once, which
    doubled the time of a large policy's step here.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library, another system
        return False
    return bool(mallopt(_TRIM_THRESHOLD, _KEPT) and mallopt(_MMAP_THRESHOLD, _LARGEST))
