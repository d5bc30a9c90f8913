"""scann: anisotropic 4-bit codes scanned by SIMD, with or without a tree, and rescored."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import scann
from typing_extensions import override

from bench.peers.peer import (
    Float32,
    Gallery,
    Int64,
    Library,
    Settings,
    Variant,
    filled,
    lists_of,
    powers,
    rungs,
)

DEPTHS = (40, 160, 640)
K_BUILT = 10


class Scann(Library):
    """scann with its own advice: about sqrt(n) leaves, two components a code, rescoring."""

    _searcher: Any
    _leaves: int
    _depth: int

    def variants(self, rows: int, dim: int) -> Sequence[Variant]:  # noqa: ARG002 - the same for all
        """Return all codes scanned, then a tree: which is better depends on the rows."""
        leaves = max(2, lists_of(rows, 1))
        by_depth = tuple(rungs("leaves", powers(1, leaves), depth=depth) for depth in DEPTHS)
        all_codes = rungs("depth", powers(20, 1280), leaves=0)
        return [
            Variant({"leaves": 0, "code_dims": 2, "rows": "int8"}, (all_codes,)),
            Variant({"leaves": leaves, "code_dims": 2, "rows": "int8"}, by_depth),
            Variant({"leaves": 0, "code_dims": 4, "rows": "int8"}, (all_codes,)),
        ]

    def build(self, gallery: Gallery, settings: Settings) -> None:
        """Train and code."""
        builder = scann.scann_ops_pybind.builder(gallery.templates, K_BUILT, "dot_product")
        builder = builder.set_n_training_threads(self.threads)
        if settings["leaves"]:
            builder = builder.tree(num_leaves=settings["leaves"], num_leaves_to_search=1)
        builder = builder.score_ah(settings["code_dims"], anisotropic_quantization_threshold=0.2)
        self._searcher = builder.reorder(DEPTHS[0], quantize=True).build()
        self._searcher.set_num_threads(self.threads)

    @override
    def use(self, settings: Settings) -> None:
        # -1: as built, and without a tree there is nothing else.
        self._leaves = int(settings["leaves"]) or -1
        self._depth = int(settings["depth"])

    def search(self, probes: Float32, k: int) -> Int64:
        """Return the best rows after rescoring."""
        if len(probes) == 1:
            found = self._searcher.search(
                probes[0],
                final_num_neighbors=k,
                pre_reorder_num_neighbors=self._depth,
                leaves_to_search=self._leaves,
            )[0]
            return filled([np.asarray(found).tolist()], k)
        found = self._searcher.search_batched_parallel(
            probes,
            final_num_neighbors=k,
            pre_reorder_num_neighbors=self._depth,
            leaves_to_search=self._leaves,
            batch_size=-(-len(probes) // self.threads),
        )[0]
        return np.asarray(found).astype(np.int64)

    @override
    def save(self) -> None:
        self._searcher.serialize(str(self.folder))
