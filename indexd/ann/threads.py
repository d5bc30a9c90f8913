"""How many threads a search may use."""

import faiss


def set_threads(count: int) -> None:
    """Let faiss use `count` threads for calls from the current thread.

    OpenMP keeps the number per calling thread: whoever starts a thread that searches, codes or
    trains calls this in it first. NumPy's matrix products are not covered: they go by
    OPENBLAS_NUM_THREADS, read when the process starts.
    """
    assert count >= 1, f"at least one thread: {count}"
    faiss.omp_set_num_threads(count)
