"""hnswlib: the graph that most others are compared with."""

from collections.abc import Sequence
from typing import Any

import hnswlib
import numpy as np
from typing_extensions import override

from bench.peers.peer import Float32, Gallery, Int64, Library, Settings, Variant, powers, rungs

EF_MAX = 4096
SEED = 1


class Hnswlib(Library):
    """Rows in float32, linked."""

    _index: Any

    def variants(self, rows: int, dim: int) -> Sequence[Variant]:  # noqa: ARG002 - the same for all
        """Return a dense graph and a usual one."""
        ladder = rungs("ef", powers(16, max(16, min(EF_MAX, rows // 2))))
        return [
            Variant({"M": links, "ef_construction": wide}, (ladder,))
            for links, wide in ((24, 150), (16, 100), (48, 200))
        ]

    def build(self, gallery: Gallery, settings: Settings) -> None:
        """Insert every row."""
        rows, dim = gallery.templates.shape
        self._index = hnswlib.Index(space="ip", dim=dim)
        self._index.init_index(max_elements=rows, random_seed=SEED, **settings)
        self._index.set_num_threads(self.threads)
        self._index.add_items(gallery.templates, np.arange(rows), num_threads=self.threads)

    @override
    def use(self, settings: Settings) -> None:
        self._index.set_ef(settings["ef"])

    def search(self, probes: Float32, k: int) -> Int64:
        """Return the best rows that the walk has met."""
        found = self._index.knn_query(probes, k=k, num_threads=self.threads)[0]
        return np.asarray(found).astype(np.int64)

    @override
    def save(self) -> None:
        self._index.save_index(str(self.folder / "index.hnsw"))
