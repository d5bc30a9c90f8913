"""How many threads a search may use."""

import os
import sys
import threading
from typing import Final

import faiss
import threadpoolctl

NICE_LAST: Final = 19
"""Of Linux: a thread that gets what all others leave."""


def set_threads(count: int) -> None:
    """Let faiss use `count` threads for calls from the current thread, and BLAS one.

    OpenMP keeps the number per calling thread: whoever starts a thread that searches, codes or
    trains calls this in it first. BLAS takes one thread in the whole process: its products here
    are small, and its threads wait for each other by spinning, which made a scan four times slower
    whenever another thread wanted a core.
    """
    assert count >= 1, f"at least one thread: {count}"
    threadpoolctl.threadpool_limits(limits=1, user_api="blas")
    faiss.omp_set_num_threads(count)


def be_last() -> None:
    """Let the current thread compute alone, and only where no other thread wants the core."""
    set_threads(1)
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE_LAST)
