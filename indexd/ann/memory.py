"""Memory for rows, in pages that suit how they are read.

Rescoring reads rows from all over the array, half a kilobyte of each. With pages of 4 KiB the
processor looks most of them up in the page table first; with pages of 2 MiB hardly any.
"""

import contextlib
import mmap
import sys
from typing import Final

import numpy as np

from facegrid.vectors import Int8

SMALL_BYTES: Final = 8 << 20
"""So much of a shard keeps small pages: a small one must not take 2 MiB at every touch."""
HUGE_PAGES: Final = getattr(mmap, "MADV_HUGEPAGE", None)
"""None where the system has no such thing."""
NO_RESERVE: Final = 0x4000 if sys.platform == "linux" else 0
"""MAP_NORESERVE, which Python does not name: what is not touched counts towards no limit, so that
there may be much more room than memory.
"""


def chunk(rows_max: int, row_bytes: int, *, small_bytes: int) -> Int8:
    """Return room for rows, int8 [rows_max, row_bytes], all zero; memory goes as it is touched.

    Args:
        rows_max: rows that there is room for.
        row_bytes: bytes of one.
        small_bytes: so much at the beginning stays in small pages, a multiple of them.
    """
    size = rows_max * row_bytes
    # Private: the system gives shared memory no huge pages unless it is told to.
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE
    space = mmap.mmap(-1, size, flags=flags)
    if HUGE_PAGES is not None and size > small_bytes:
        # A kernel may be built without them: the rows are the same, only slower to reach.
        with contextlib.suppress(OSError):
            space.madvise(HUGE_PAGES, small_bytes, size - small_bytes)
    return np.frombuffer(space, np.int8).reshape(rows_max, row_bytes)
