"""facegrid served: a client, a router and two nodes on this machine."""

from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np
from typing_extensions import override

import facegrid
from bench.peers.peer import Float32, Gallery, Int64, Library, Settings, Variant, filled
from facegrid.errors import NotFoundError
from fgctl.local.cluster import LocalCluster

NAME = "peers"
SHARDS = 4
NODES = 2
ENROL_ROWS = 1024
TIMEOUT_S = 600.0


class FacegridServed(Library):
    """The product as callers see it; enrolling through log and store is part of its build."""

    _cluster: LocalCluster
    _client: facegrid.Client

    def variants(self, rows: int, dim: int) -> Sequence[Variant]:  # noqa: ARG002 - the same for all
        """Return the only way: a gallery with the profile `balanced`, which is the default."""
        return [Variant({"shards": SHARDS, "nodes": NODES}, (({"profile": "balanced"},),))]

    @override
    def open(self, dim: int) -> None:
        self._stack = ExitStack()
        self._cluster = LocalCluster(self.folder, nodes=NODES, replicas=1, etcd=1)
        self._stack.callback(self._stop)
        targets = list(self._cluster.up().router_targets)
        self._client = self._stack.enter_context(facegrid.Client(targets, timeout_s=TIMEOUT_S))
        self._client.create_gallery(
            NAME, dim=dim, extractor="peers@1", shards=SHARDS, replicas=1, train_at=0
        )

    def build(self, gallery: Gallery, settings: Settings) -> None:  # noqa: ARG002 - as opened
        """Enrol everything and train."""
        firsts = range(0, len(gallery.templates), ENROL_ROWS)
        self._client.enrol_stream(NAME, (_batch(gallery, first) for first in firsts))
        self._client.train(NAME, timeout_s=TIMEOUT_S)
        self._client.tune(NAME, timeout_s=TIMEOUT_S)

    def search(self, probes: Float32, k: int) -> Int64:
        """Return the best template of each of the best subjects."""
        lists = self._client.identify(NAME, probes, k=k)
        return filled([[int(one.template_id) for one in lst.candidates] for lst in lists], k)

    @override
    def processes(self) -> Sequence[int]:
        record = self._cluster.record
        return [one.pid for kind in ("node", "router") for one in record.of_kind(kind)]

    @override
    def close(self) -> None:
        if hasattr(self, "_stack"):
            self._stack.close()

    def _stop(self) -> None:
        try:
            self._cluster.down()
        except NotFoundError:
            return


def _batch(gallery: Gallery, first: int) -> facegrid.EnrolBatch:
    rows = range(first, min(first + ENROL_ROWS, len(gallery.templates)))
    return facegrid.EnrolBatch(
        template_ids=[str(row) for row in rows],
        subject_ids=[f"s-{gallery.subjects[row]}" for row in rows],
        vectors=np.ascontiguousarray(gallery.templates[rows.start : rows.stop]),
    )
