"""usearch: a graph over rows in a narrow type."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from typing_extensions import override
from usearch.index import Index

from bench.peers.peer import (
    Float32,
    Gallery,
    Int64,
    Library,
    Settings,
    Variant,
    filled,
    powers,
    rungs,
)

EXPANSION_MAX = 4096


class Usearch(Library):
    """Rows in int8 or half precision, linked."""

    _index: Any

    def variants(self, rows: int, dim: int) -> Sequence[Variant]:  # noqa: ARG002 - the same for all
        """Return narrow rows first: they are the faster ones."""
        ladder = rungs("expansion_search", powers(16, max(16, min(EXPANSION_MAX, rows // 2))))
        return [
            Variant({"dtype": dtype, "connectivity": links, "expansion_add": wide}, (ladder,))
            for dtype, links, wide in (("i8", 24, 150), ("bf16", 24, 150), ("i8", 48, 200))
        ]

    def build(self, gallery: Gallery, settings: Settings) -> None:
        """Insert every row."""
        rows, dim = gallery.templates.shape
        self._index = Index(ndim=dim, metric="cos", **settings)
        self._index.add(np.arange(rows), gallery.templates, threads=self.threads, copy=True)

    @override
    def use(self, settings: Settings) -> None:
        self._index.expansion_search = settings["expansion_search"]

    def search(self, probes: Float32, k: int) -> Int64:
        """Return the best rows that the walk has met."""
        found = self._index.search(probes, k, threads=self.threads)
        if len(probes) == 1:
            return filled([np.asarray(found.keys).reshape(-1).tolist()], k)
        keys = np.asarray(found.keys).astype(np.int64)
        return np.where(np.arange(k) < np.asarray(found.counts)[:, None], keys, -1)

    @override
    def save(self) -> None:
        self._index.save(str(self.folder / "index.usearch"))
