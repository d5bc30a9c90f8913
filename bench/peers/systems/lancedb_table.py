"""LanceDB: an index in files, searched in this process."""

from collections.abc import Iterator, Sequence
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
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

ADD_ROWS = 16_384
REFINES = (4, 16, 64)


class LanceDb(Library):
    """One table with one index; the best candidates are compared again with whole rows."""

    _table: Any
    _settings: Settings

    def variants(self, rows: int, dim: int) -> Sequence[Variant]:
        """Return PQ of 64 and 128 bytes, int8 rows, and a graph over them in each list."""
        lists = lists_of(rows, 1)
        probes = powers(1, lists)
        refined = tuple(rungs("nprobe", probes, refine=times) for times in REFINES)
        walked = tuple(rungs("nprobe", probes, refine=4, ef=wide) for wide in (100, 400))
        pq: Settings = {"index_type": "IVF_PQ", "num_partitions": lists, "num_bits": 8}
        return [
            Variant({**pq, "num_sub_vectors": dim // 8}, refined),
            Variant({"index_type": "IVF_HNSW_SQ", "num_partitions": max(1, lists // 64)}, walked),
            Variant({"index_type": "IVF_SQ", "num_partitions": lists}, refined[:1]),
            Variant({**pq, "num_sub_vectors": dim // 4}, refined),
        ]

    def build(self, gallery: Gallery, settings: Settings) -> None:
        """Write the table, then the index."""
        dim = gallery.templates.shape[1]
        schema = pa.schema([("id", pa.int64()), ("vector", pa.list_(pa.float32(), dim))])
        database: Any = lancedb.connect(str(self.folder / "lance"))
        batches = _batches(gallery.templates, schema)
        self._table = database.create_table("templates", batches, schema=schema)
        self._table.create_index(metric="dot", **settings)

    @override
    def use(self, settings: Settings) -> None:
        self._settings = settings

    def search(self, probes: Float32, k: int) -> Int64:
        """Return the best rows of one query with as many vectors as there are probes."""
        asked = probes if len(probes) > 1 else probes[0]
        query = self._table.search(asked).distance_type("dot").limit(k).select(["id"])
        query = query.nprobes(self._settings["nprobe"])
        query = query.refine_factor(self._settings["refine"])
        if "ef" in self._settings:
            query = query.ef(self._settings["ef"])
        found = query.to_arrow()
        ids = found["id"].to_numpy()
        if len(probes) == 1:
            return filled([ids.tolist()], k)
        which = found["query_index"].to_numpy()
        return filled([ids[which == number].tolist() for number in range(len(probes))], k)


def _batches(templates: Float32, schema: Any) -> Iterator[Any]:
    for first in range(0, len(templates), ADD_ROWS):
        x = templates[first : first + ADD_ROWS]
        rows = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), x.shape[1])
        ids = pa.array(np.arange(first, first + len(x)))
        yield pa.RecordBatch.from_arrays([ids, rows], schema=schema)
