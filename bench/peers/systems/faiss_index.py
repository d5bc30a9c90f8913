"""faiss as its own documentation would have it: IVF with 8-bit PQ, IVF with whole rows, flat."""

from collections.abc import Sequence
from typing import Any

import faiss
import numpy as np
from typing_extensions import override

from bench.peers.peer import (
    Float32,
    Gallery,
    Int64,
    Library,
    Settings,
    Variant,
    lists_of,
    powers,
    rungs,
)

PQ_BYTES = 64


class FaissFlat(Library):
    """Every row compared, in float32."""

    _index: Any

    def variants(self, rows: int, dim: int) -> Sequence[Variant]:  # noqa: ARG002 - the same for all
        """Return the only way."""
        return [Variant({}, (({},),))]

    def factory(self, settings: Settings) -> str:  # noqa: ARG002 - others have settings
        """Return what faiss calls the index."""
        return "Flat"

    def build(self, gallery: Gallery, settings: Settings) -> None:
        """Train and fill the index."""
        faiss.omp_set_num_threads(self.threads)
        x = np.ascontiguousarray(gallery.templates)
        name = self.factory(settings)
        self._index = faiss.index_factory(x.shape[1], name, faiss.METRIC_INNER_PRODUCT)
        self._index.train(x)
        self._index.add(x)

    def search(self, probes: Float32, k: int) -> Int64:
        """Return the best rows as faiss orders them."""
        found: Int64 = self._index.search(probes, k)[1]
        return found

    @override
    def save(self) -> None:
        faiss.write_index(self._index, str(self.folder / "index.faiss"))


class FaissIvfFlat(FaissFlat):
    """IVF, whole rows in the lists."""

    @override
    def variants(self, rows: int, dim: int) -> Sequence[Variant]:
        return [
            Variant({"nlist": nlist}, (rungs("nprobe", powers(1, nlist)),))
            for nlist in sorted({lists_of(rows, 4), lists_of(rows, 1)}, reverse=True)
        ]

    @override
    def factory(self, settings: Settings) -> str:
        return f"IVF{settings['nlist']},Flat"

    @override
    def use(self, settings: Settings) -> None:
        self._index.nprobe = settings["nprobe"]


class FaissIvfPq(FaissIvfFlat):
    """IVF with 64 bytes of 8-bit PQ, not rescored: the textbook's index."""

    @override
    def factory(self, settings: Settings) -> str:
        return f"IVF{settings['nlist']},PQ{PQ_BYTES}"
