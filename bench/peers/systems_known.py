"""The systems compared, and what they roughly need, for the estimate before a run."""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["ours", "library", "server"]
FOLDER = "bench.peers.systems"


@dataclass(frozen=True, slots=True)
class System:
    """One system.

    Attributes:
        name: as printed.
        kind: libraries are compared with `facegrid`, servers with `facegrid-served`; a gallery of
            ours with other settings counts as a library.
        adapter: module:Class.
        package: what to install in the peers' environment; empty: it runs in ours.
        build_ms_per_template: with two threads, at 20,000 templates of 512 dimensions; rough.
        bytes_per_template: memory, at 512 dimensions; rough.
    """

    name: str
    kind: Kind
    adapter: str
    package: str = ""
    build_ms_per_template: float = 0.1
    bytes_per_template: int = 2300


FACEGRID = System("facegrid", "ours", f"{FOLDER}.facegrid_index:FacegridIndex", "", 0.2, 3200)
SERVED = System(
    "facegrid-served", "ours", f"{FOLDER}.facegrid_served:FacegridServed", "", 0.6, 3200
)
PACKED = System(
    "facegrid-4bit", "library", f"{FOLDER}.facegrid_index:FacegridPackedIndex", "", 0.2, 3200
)
SYSTEMS = (
    PACKED,
    System("faiss-same", "library", f"{FOLDER}.same_index:SameIndex", "", 0.2, 3200),
    System("faiss-ivfpq", "library", f"{FOLDER}.faiss_index:FaissIvfPq", "", 0.5, 2300),
    System("faiss-ivfflat", "library", f"{FOLDER}.faiss_index:FaissIvfFlat", "", 0.1, 4400),
    System("faiss-flat", "library", f"{FOLDER}.faiss_index:FaissFlat", "", 0.01, 4400),
    System("hnswlib", "library", f"{FOLDER}.hnswlib_index:Hnswlib", "hnswlib", 1.5, 2600),
    System("usearch", "library", f"{FOLDER}.usearch_index:Usearch", "usearch", 1.0, 1600),
    System("scalable-vs", "library", f"{FOLDER}.svs_index:ScalableVs", "scalable-vs", 1.0, 5000),
    System("scann", "library", f"{FOLDER}.scann_index:Scann", "scann", 0.5, 5000),
    System(
        "milvus-lite",
        "server",
        f"{FOLDER}.milvus_lite_server:MilvusLite",
        "milvus-lite",
        1.0,
        9000,
    ),
    System(
        "qdrant-edge",
        "server",
        f"{FOLDER}.qdrant_edge_shard:QdrantEdge",
        "qdrant-edge-py",
        2.0,
        4000,
    ),
    System("lancedb", "server", f"{FOLDER}.lancedb_table:LanceDb", "lancedb", 1.0, 4000),
)
