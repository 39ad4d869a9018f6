"""How the process asks the system for memory: so that what a burst of large requests took goes back when they are gone."""

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
"""Of glibc's mallopt(3)."""
LARGE = 1024 * 1024
"""Bytes from which on a block is the system's own, given back as soon as it is free."""
SPARE = 8 * LARGE
"""Bytes at the end of a heap that are kept: fetching them again for each message of the log takes longer than filling it."""
ARENAS = 2
"""Heaps of the threads. Each keeps what it once had."""


def give_back() -> None:
    """Set this up, before there are threads; where the C library is not glibc, nothing is done.

    Of itself glibc takes ever larger blocks from its heaps once such have been freed, and a heap gives back only its end.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, LARGE)
        mallopt(_TRIM_THRESHOLD, SPARE)
        mallopt(_ARENA_MAX, ARENAS)
