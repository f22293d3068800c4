"""How the C library keeps the memory of decoded pictures, for the next one, and when it gives it back all the same."""

from __future__ import annotations

import ctypes
from contextlib import suppress

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # malloc.h

KEPT_BLOCK_BYTES = 64 << 20
"""Larger blocks go back to the system when they are freed; 16 megapixels of a decoded picture fit in."""

OLD_KEPT_BLOCK_BYTES = 32 << 20
"""The most that M_MMAP_THRESHOLD takes in glibc before 2.35."""

KEPT_BYTES = 256 << 20
"""Free memory above this goes back to the system."""


def keep_freed() -> bool:
    """Keep freed memory for the next picture; call it before threads and libraries are started.

    By default glibc returns every block of over 32 MB (at first: of over 128 kB), and threads have
    arenas of at most 64 MB: then each picture pays for its pages anew, which can cost as much as its
    decoding (tests/results.md). Pictures are few and large, so one arena is no bottleneck.

    Returns:
        whether it was done; other C libraries than glibc are left alone.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    mallopt.argtypes, mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
    kept = mallopt(M_MMAP_THRESHOLD, KEPT_BLOCK_BYTES) or mallopt(M_MMAP_THRESHOLD, OLD_KEPT_BLOCK_BYTES)
    return bool(kept and mallopt(M_TRIM_THRESHOLD, KEPT_BYTES) and mallopt(M_ARENA_MAX, 1))


def give_back() -> None:
    """Return what is free to the system, after something large that comes seldom, such as another model.

    Where it is kept it is broken up by small things until the next model finds no room in it: 1,000 reloads on a GPU
    took 270 MB more, in pieces of 25 MB (tests/gpu/results.md).
    """
    with suppress(AttributeError):  # another C library than glibc
        ctypes.CDLL(None).malloc_trim(0)
