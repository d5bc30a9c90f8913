"""Milvus Lite behind its usual client: a server in a thread of this process."""

from collections.abc import Sequence
from typing import Any

from pymilvus import DataType, MilvusClient
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

NAME = "templates"
INSERT_ROWS = 2048
EF_MAX = 4096
SEGMENT_ROWS = 100_000
"""Rows of its largest segment, each of which has an index of its own."""


class MilvusLite(Library):
    """One collection with one index."""

    _client: Any
    _parameters: dict[str, Any]

    def variants(self, rows: int, dim: int) -> Sequence[Variant]:  # noqa: ARG002 - the same for all
        """Return lists of int8 rows, a graph, lists of whole rows, and all rows."""
        lists = lists_of(min(rows, SEGMENT_ROWS), 1)
        probes = rungs("nprobe", powers(1, lists))
        walk = rungs("ef", powers(16, max(16, min(EF_MAX, rows // 2))))
        graph: Settings = {"M": 24, "efConstruction": 150}
        return [
            Variant({"index_type": "IVF_SQ8", "nlist": lists}, (probes,)),
            Variant({"index_type": "HNSW", **graph}, (walk,)),
            Variant({"index_type": "IVF_FLAT", "nlist": lists}, (probes,)),
            Variant({"index_type": "FLAT"}, (({},),)),
        ]

    @override
    def open(self, dim: int) -> None:
        self._client = MilvusClient(str(self.folder / "milvus.db"))
        schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("id", DataType.INT64, is_primary=True)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=dim)
        self._client.create_collection(NAME, schema=schema)

    def build(self, gallery: Gallery, settings: Settings) -> None:
        """Insert every row, write it out, index it and load the index."""
        for first in range(0, len(gallery.templates), INSERT_ROWS):
            x = gallery.templates[first : first + INSERT_ROWS]
            rows = [{"id": first + place, "vector": row} for place, row in enumerate(x)]
            self._client.insert(NAME, rows)
        self._client.flush(NAME)
        wanted = self._client.prepare_index_params()
        others = {name: value for name, value in settings.items() if name != "index_type"}
        wanted.add_index(
            "vector", index_type=settings["index_type"], metric_type="IP", params=others
        )
        self._client.create_index(NAME, wanted)
        self._client.load_collection(NAME)

    @override
    def use(self, settings: Settings) -> None:
        self._parameters = {"metric_type": "IP", "params": dict(settings)}

    def search(self, probes: Float32, k: int) -> Int64:
        """Return the best rows of one call with all probes."""
        found = self._client.search(
            NAME, data=list(probes), limit=k, search_params=self._parameters, output_fields=[]
        )
        return filled([[int(one["id"]) for one in answer] for answer in found], k)

    @override
    def close(self) -> None:
        if hasattr(self, "_client"):
            self._client.close()
