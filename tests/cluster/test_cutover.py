"""A move of the primary between nodes that live: no read fails, and writes pause for a moment."""

import asyncio
import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import facegrid
from facegrid.api.shard.v1.shard_service_pb2 import ShardStatus
from facegrid.clock import SystemClock
from facegrid.coord import keys
from facegrid.coord.etcd import EtcdCoordinator
from facegrid.coord.port import Guard, Put
from facegrid.errors import FacegridError
from facegrid.format.records import decode_shard_map, encode_shard_map
from facegrid.ids import GalleryName, NodeId
from facegrid.model import ShardAssignment
from facegrid.testing.synthetic import SyntheticGallery
from fgctl import admin
from fgctl.local import processes
from fgctl.local.cluster import LocalCluster

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

CLOCK = SystemClock()
DIM = 32
GALLERY = GalleryName("g")
PATIENCE_S = 60.0
PAUSE_S_MAX = 10.0
"""Ten times what is wanted: a test fails by it only where a wait has come in."""


@dataclass
class Worked:
    """When writes were acknowledged, and what went wrong with reads."""

    acknowledged_s: list[float] = field(default_factory=list)
    searched_count: int = 0
    wrong: list[str] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def pause_s(self, since_s: float) -> float:
        """Return the longest time without an acknowledged write, from a time on."""
        times = [since_s, *(one for one in self.acknowledged_s if one > since_s)]
        return max(after - before for before, after in itertools.pairwise(times))


def write(cluster: LocalCluster, worked: Worked, row: np.ndarray[Any, Any]) -> None:
    """Enrol one row after the other."""
    with facegrid.Client(cluster.router_targets, timeout_s=PATIENCE_S) as client:
        for number in itertools.count():
            if worked.over.is_set():
                return
            name = f"w-{number}"
            client.enrol(
                GALLERY,
                request_id=name,
                template_ids=[name],
                subject_ids=[name],
                vectors=row,
            )
            worked.acknowledged_s.append(CLOCK.now_s())


def search(
    cluster: LocalCluster,
    worked: Worked,
    probes: np.ndarray[Any, Any],
    *,
    after: facegrid.Token,
) -> None:
    """Search what the token tells; every answer is confirmed, and as good as the first."""
    with facegrid.Client(cluster.router_targets, timeout_s=10) as client:
        first = client.identify(GALLERY, probes, k=1, after=after)
        wanted = [one.candidates[0] for one in first]
        while not worked.over.is_set():
            try:
                answers = client.identify(GALLERY, probes, k=1, after=after, unconfirmed_max=0)
            except FacegridError as error:
                worked.wrong.append(f"{error.reason}: {error.message}")
                continue
            if [one.candidates[0] for one in answers] != wanted:
                worked.wrong.append("another answer")
            worked.searched_count += 1


@contextmanager
def working(
    cluster: LocalCluster, people: SyntheticGallery, *, after: facegrid.Token
) -> Iterator[Worked]:
    """Write and search without pause."""
    worked = Worked()
    probes = people.probes(4, seed=9).vectors
    threads = [
        threading.Thread(target=write, args=(cluster, worked, -probes[:1])),
        threading.Thread(target=search, args=(cluster, worked, probes), kwargs={"after": after}),
    ]
    for thread in threads:
        thread.start()
    try:
        wait(lambda: len(worked.acknowledged_s) > 5 and worked.searched_count > 5, "no work")
        yield worked
    finally:
        worked.over.set()
        for thread in threads:
            thread.join()


def wait(condition: Callable[[], bool], what: str) -> None:
    """Wait until something is so."""
    last = processes.wait_until(
        lambda: "" if condition() else what, timeout_s=PATIENCE_S, clock=CLOCK
    )
    assert not last, last


def put_next(cluster: LocalCluster, change: Callable[[ShardAssignment], ShardAssignment]) -> float:
    """Put the next map, with the only shard changed; return when it was in force."""

    async def run() -> float:
        endpoints = [member.address for member in cluster.record.of_kind("etcd")]
        coord = EtcdCoordinator(endpoints, clock=CLOCK)
        try:
            item = await coord.get(keys.shard_map(GALLERY))
            assert item is not None, "the gallery was created"
            before = decode_shard_map(item.value)
            (shard,) = before.shards
            after = replace(before, version=before.version + 1, shards=(change(shard),))
            result = await coord.txn(
                [Guard(item.key, item.mod_revision)], [Put(item.key, encode_shard_map(after))]
            )
            assert result.succeeded, "nobody else changes the map"
            return CLOCK.now_s()
        finally:
            await coord.aclose()

    return asyncio.run(run())


def copies(cluster: LocalCluster) -> dict[str, ShardStatus]:
    """Return what nodes say of their copies of the only shard."""
    found = admin.cluster_status(cluster.router_targets[0], timeout_s=10)
    return {node.id: copy for node in found.nodes for copy in node.shards}


def confirmed_by(cluster: LocalCluster, node_id: str, version: int) -> bool:
    """Tell whether a copy is confirmed by a version of the map."""
    copy = copies(cluster).get(node_id)
    return copy is not None and copy.confirmed and copy.map_version >= version


def test_a_primary_moves_without_a_failed_read_and_with_a_short_pause_of_writes(
    tmp_path: Path,
) -> None:
    """1 the third node joins; 2 serves; 3 becomes the primary; 4 the first one leaves."""
    people = SyntheticGallery(dim=DIM, templates_count=2000, seed=3)
    cluster = LocalCluster(tmp_path, nodes=3)
    cluster.up()
    try:
        with facegrid.Client(cluster.router_targets, timeout_s=PATIENCE_S) as client:
            client.create_gallery(GALLERY, dim=DIM, extractor="x@1", shards=1, replicas=2)
            cluster.up()
            token = facegrid.Token()
            for block in people.blocks(1000):
                token |= client.enrol(
                    GALLERY,
                    template_ids=block.template_ids,
                    subject_ids=block.subject_ids,
                    vectors=block.vectors,
                )
        status = admin.cluster_status(cluster.router_targets[0], timeout_s=10)
        first, second = map(NodeId, status.shards[0].node_ids)
        (third,) = map(NodeId, {"n1", "n2", "n3"} - {first, second})
        with working(cluster, people, after=token) as worked:
            put_next(cluster, lambda shard: replace(shard, joining=(third,)))
            wait(lambda: confirmed_by(cluster, third, 2), "does not join")
            put_next(cluster, lambda shard: replace(shard, node_ids=shard.holders, joining=()))
            wait(lambda: confirmed_by(cluster, third, 3), "does not serve")
            moved = (third, first, second)
            at_s = put_next(cluster, lambda shard: replace(shard, node_ids=moved))
            wait(lambda: worked.acknowledged_s[-1] > at_s + 1, "no writes")
            put_next(cluster, lambda shard: replace(shard, node_ids=(third, second)))
            wait(lambda: first not in copies(cluster), "does not leave")
    finally:
        cluster.down()

    assert worked.wrong == []
    assert worked.pause_s(at_s) < PAUSE_S_MAX
