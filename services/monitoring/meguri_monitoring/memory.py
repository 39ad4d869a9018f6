"""How the C library keeps memory that is free."""

import ctypes

ARENAS = 2
"""Heaps that threads share. Usual are eight for each core, each as large as what was ever in hand in it at once."""
AT_ONCE = 1024 * 1024
"""Bytes from which a piece goes back to the system as soon as it is free, and that stay at most at the end of a heap."""
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
"""As in malloc.h of glibc."""


def give_back() -> None:
    """Have what is free given back: rows come in bursts, and threads take turns with them, so all heaps would stay full.

    Does nothing where the C library is another one.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    for what, value in ((_ARENA_MAX, ARENAS), (_TRIM_THRESHOLD, AT_ONCE), (_MMAP_THRESHOLD, AT_ONCE)):
        mallopt(what, value)
