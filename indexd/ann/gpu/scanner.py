"""Codes of 8 bits in lists, searched by faiss: on a GPU, or by the processor to try the rest.

Nothing is left out by a selector: the classic index of faiss for GPUs takes one and ignores it
without a word, and cuVS makes a new bitset for every call. Whoever searches asks for more rows
than it needs and leaves out the erased ones itself, on every build alike.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

import faiss
import numpy as np

from facegrid.vectors import Float32, Int64

Convert = Callable[[Any], Any]

PQ_BITS: Final = 8
WANTED_MAX: Final = 2048
"""Rows that the classic index finds at most, and lists that it looks into."""
ID_BYTES: Final = 8
LIST_SLACK: Final = 1.25
"""Lists are allocated ahead."""
TEMPORARY_BYTES: Final = 512 << 20
"""What faiss sets aside on a device for its intermediate results."""


@dataclass(frozen=True, slots=True, eq=False)
class Tables:
    """What rows are coded with on a device.

    Attributes:
        centroids: float32 [nlist, dim].
        pq: float32 [m, 256, dim / m], of what remains after the centroid is taken off.
    """

    centroids: Float32
    pq: Float32

    @property
    def nlist(self) -> int:
        """Lists."""
        return len(self.centroids)

    @property
    def dim(self) -> int:
        """Components of a vector."""
        return int(self.centroids.shape[1])


class Scanner(Protocol):
    """Coded rows of one shard."""

    def add(self, units: Any) -> None:
        """Add unit vectors of the device, float32 [n, dim]; they get the next numbers."""

    def search(self, probes: Float32, wanted: int, nprobe: int) -> tuple[Int64, Float32]:
        """Return rows, int64 [m, wanted], and their likeness; -1 where the lists hold fewer.

        Args:
            probes: unit vectors, float32 [m, dim].
            wanted: at most WANTED_MAX and the rows there are.
            nprobe: lists to look into.
        """


class Scanners(Protocol):
    """Makes scanners for one device."""

    @property
    def lists_max(self) -> int:
        """Lists that there may be."""

    def train(self, units: Any, nlist: int, seed: int) -> Tables:
        """Return tables for unit vectors of the device, float32 [n, dim]."""

    def scanner(self, tables: Tables) -> Scanner:
        """Return one without rows."""


class _Index:
    """An index of faiss. See `Scanner`.

    Args:
        index: that has no rows yet.
        kept: what it refers to, and does not keep.
        put: makes an array of NumPy what the index takes.
        get: makes an array of the index one of NumPy.
        taken: makes an array of the device what the index takes.
    """

    def __init__(
        self, index: Any, kept: tuple[Any, ...], *, put: Convert, get: Convert, taken: Convert
    ) -> None:
        self._index = index
        self._kept = kept
        self._put, self._get, self._taken = put, get, taken

    def add(self, units: Any) -> None:
        """See `Scanner`."""
        self._index.add(self._taken(units))

    def search(self, probes: Float32, wanted: int, nprobe: int) -> tuple[Int64, Float32]:
        """See `Scanner`."""
        # More than there are would leave the end of the result unwritten (cuVS).
        assert 1 <= wanted <= min(WANTED_MAX, self._index.ntotal), f"rows: {wanted}"
        self._index.nprobe = nprobe
        likeness, rows = self._index.search(self._put(np.ascontiguousarray(probes)), wanted)
        return self._get(rows), self._get(likeness)


class HostScanners:
    """faiss on the processor, with the codes that a GPU has. See `Scanners`.

    Args:
        get: makes an array of the device one of NumPy.
    """

    def __init__(self, get: Convert) -> None:
        self._get = get

    @property
    def lists_max(self) -> int:
        """See `Scanners`."""
        return WANTED_MAX

    def train(self, units: Any, nlist: int, seed: int) -> Tables:
        """See `Scanners`."""
        dim = units.shape[1]
        quantizer: Any = faiss.IndexFlatIP(dim)
        index: Any = faiss.IndexIVFPQ(
            quantizer, dim, nlist, pq_m(dim), PQ_BITS, faiss.METRIC_INNER_PRODUCT
        )
        index.cp.seed = index.pq.cp.seed = seed
        index.cp.min_points_per_centroid = index.pq.cp.min_points_per_centroid = 1
        index.train(self._get(units))
        return tables_of(index, quantizer)

    def scanner(self, tables: Tables) -> Scanner:
        """See `Scanners`."""
        index, quantizer = empty_index(tables)
        return _Index(index, (quantizer,), put=_same, get=_same, taken=self._get)


class GpuScanners:
    """faiss on a GPU. See `Scanners`.

    Args:
        number: of the GPU.
        put: makes an array of NumPy one of the device.
        get: makes an array of the device one of NumPy.
    """

    def __init__(self, number: int, put: Convert, get: Convert) -> None:
        # Lets faiss take PyTorch's arrays; imports PyTorch.
        importlib.import_module("faiss.contrib.torch_utils")
        self._put = put
        self._get = get
        # What only builds for GPUs have.
        gpu: Any = faiss
        self._resources: Any = gpu.StandardGpuResources()
        self._resources.setTempMemory(TEMPORARY_BYTES)
        self._cuvs = "CUVS" in faiss.get_compile_options()
        config: Any = gpu.GpuIndexIVFPQConfig()
        config.device = number
        config.useFloat16LookupTables = True
        config.usePrecomputedTables = False
        config.indicesOptions = gpu.INDICES_64_BIT
        if hasattr(config, "use_cuvs"):
            config.use_cuvs = self._cuvs
        config.interleavedLayout = self._cuvs
        self._config = config

    @property
    def lists_max(self) -> int:
        """See `Scanners`."""
        return 1 << 16 if self._cuvs else WANTED_MAX

    def train(self, units: Any, nlist: int, seed: int) -> Tables:
        """See `Scanners`."""
        dim = units.shape[1]
        index: Any = faiss.GpuIndexIVFPQ(
            self._resources,
            dim,
            nlist,
            pq_m(dim),
            PQ_BITS,
            faiss.METRIC_INNER_PRODUCT,
            self._config,
        )
        index.cp.seed = seed
        index.train(units)
        quantizer: Any = faiss.IndexFlatIP(dim)
        copied: Any = faiss.IndexIVFPQ(
            quantizer, dim, nlist, pq_m(dim), PQ_BITS, faiss.METRIC_INNER_PRODUCT
        )
        index.copyTo(copied)
        return tables_of(copied, copied.quantizer)

    def scanner(self, tables: Tables) -> Scanner:
        """See `Scanners`."""
        index, quantizer = empty_index(tables)
        on_device = faiss.GpuIndexIVFPQ(self._resources, index, self._config)
        kept = (self._resources, index, quantizer)
        return _Index(on_device, kept, put=self._put, get=self._get, taken=_same)


def _same(array: Any) -> Any:
    return array


def pq_m(dim: int) -> int:
    """Return the number of sub-quantizers: one for eight components where that divides them."""
    return dim // 8 if dim % 8 == 0 else dim // 4


def code_bytes(dim: int) -> int:
    """Return the bytes that one coded row takes on a device."""
    return int((pq_m(dim) + ID_BYTES) * LIST_SLACK)


def empty_index(tables: Tables) -> tuple[Any, Any]:
    """Return an index of faiss on the processor with these tables, and its quantizer."""
    dim = tables.dim
    quantizer: Any = faiss.IndexFlatIP(dim)
    quantizer.add(np.ascontiguousarray(tables.centroids))
    index: Any = faiss.IndexIVFPQ(
        quantizer, dim, tables.nlist, len(tables.pq), PQ_BITS, faiss.METRIC_INNER_PRODUCT
    )
    faiss.copy_array_to_vector(np.ascontiguousarray(tables.pq).reshape(-1), index.pq.centroids)
    index.is_trained = True
    return index, quantizer


def tables_of(index: Any, quantizer: Any) -> Tables:
    """Return the tables of a trained index of faiss on the processor."""
    pq = faiss.vector_to_array(index.pq.centroids)
    return Tables(
        centroids=quantizer.reconstruct_n(0, index.nlist),
        pq=pq.reshape(index.pq.M, 1 << PQ_BITS, index.pq.dsub),
    )
