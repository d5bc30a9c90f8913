"""Qdrant Edge: Qdrant's own segments and graph in this process."""

from collections.abc import Sequence
from typing import Any

import qdrant_edge as qdrant
from typing_extensions import override

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

UPSERT_ROWS = 2048
EF_MAX = 4096
FULL_SCAN_KB = 10
"""Below that a segment is scanned instead of walked; the least that Qdrant takes."""


class QdrantEdge(Library):
    """One shard, optimised into one segment."""

    _shard: Any
    _parameters: Any

    def variants(self, rows: int, dim: int) -> Sequence[Variant]:  # noqa: ARG002 - the same for all
        """Return quantised graphs, a plain one, and a scan of int8 codes with rescoring."""
        efs = powers(16, max(16, min(EF_MAX, rows // 2)))
        walks = tuple(rungs("ef", efs, oversampling=times) for times in (1.0, 3.0))
        scan = tuple({"ef": 16, "oversampling": times} for times in (1.0, 3.0, 10.0))
        return [
            Variant({"m": 24, "ef_construct": 150, "quantization": "int8"}, walks),
            Variant({"m": 0, "ef_construct": 150, "quantization": "int8"}, (scan,)),
            Variant({"m": 24, "ef_construct": 150, "quantization": "none"}, (walks[0],)),
        ]

    def build(self, gallery: Gallery, settings: Settings) -> None:
        """Insert every row, then let the optimiser make the index."""
        rows, dim = gallery.templates.shape
        quantised = settings["quantization"] == "int8"
        config = qdrant.EdgeConfig(
            vectors=qdrant.EdgeVectorParams(size=dim, distance=qdrant.Distance.Dot),
            hnsw_config=qdrant.HnswIndexConfig(
                m=settings["m"],
                ef_construct=settings["ef_construct"],
                full_scan_threshold=FULL_SCAN_KB,
                max_indexing_threads=self.threads,
            ),
            quantization_config=qdrant.ScalarQuantizationConfig(
                type=qdrant.ScalarType.Int8, quantile=0.99, memory=qdrant.Memory.Pinned
            )
            if quantised
            else None,
            optimizers=qdrant.EdgeOptimizersConfig(
                default_segment_number=1, indexing_threshold=FULL_SCAN_KB
            ),
            max_search_threads=self.threads,
        )
        (self.folder / "shard").mkdir()
        self._shard = qdrant.EdgeShard.create(str(self.folder / "shard"), config)
        for first in range(0, rows, UPSERT_ROWS):
            x = gallery.templates[first : first + UPSERT_ROWS].tolist()
            points = [qdrant.Point(first + place, row) for place, row in enumerate(x)]
            self._shard.update(qdrant.UpdateOperation.upsert_points(points))
        self._shard.optimize()
        self._shard.flush()

    @override
    def use(self, settings: Settings) -> None:
        self._parameters = qdrant.SearchParams(
            hnsw_ef=settings["ef"],
            quantization=qdrant.QuantizationSearchParams(
                rescore=True, oversampling=settings["oversampling"]
            ),
        )

    def search(self, probes: Float32, k: int) -> Int64:
        """Return the best rows of one planned batch."""
        requests = [
            qdrant.QueryRequest(limit=k, query=qdrant.Query.Nearest(one), params=self._parameters)
            for one in probes.tolist()
        ]
        found = self._shard.query_batch(qdrant.QueryBatchRequest(requests))
        return filled([[int(one.id) for one in answer] for answer in found], k)

    @override
    def close(self) -> None:
        if hasattr(self, "_shard"):
            self._shard.close()
