"""Training from the samples of several shards."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from facegrid.clock import SystemClock
from facegrid.coord import keys
from facegrid.coord.port import KeyValue, Listing, Put, Snapshot
from facegrid.errors import FencedError, UnavailableError
from facegrid.format.records import decode_gallery, encode_gallery, encode_shard_map
from facegrid.ids import KEY_LAST, GalleryName, NodeId, ShardId
from facegrid.model import Gallery, HashRange, ShardAssignment, ShardMap
from facegrid.rpc.pool import ChannelPool
from facegrid.testing.memory_blob import MemoryBlobStore
from facegrid.testing.memory_coord import MemoryCoordinator
from indexd.replica.codebooks import Codebooks
from indexd.replica.trainer import Trainer, TrainerPorts
from indexd.replica.view import View

GALLERY = Gallery(GalleryName("g"), "1f00aa23", 16, "x@1", 2, 1, 0)
HALF = 2**63
MAP = ShardMap(
    GALLERY.name,
    GALLERY.uid,
    1,
    (
        ShardAssignment(ShardId("g.1f00aa23.0000"), HashRange(0, HALF - 1), (NodeId("n1"),)),
        ShardAssignment(ShardId("g.1f00aa23.0001"), HashRange(HALF, KEY_LAST), (NodeId("n2"),)),
    ),
)


async def test_nodes_that_are_away_are_an_outage_and_not_the_end_of_the_trainer() -> None:
    """A group of errors would end the whole node where a single one is only logged."""
    view = View()
    records = {keys.GALLERIES: encode_gallery(GALLERY), keys.MAPS: encode_shard_map(MAP)}
    for prefix, value in records.items():
        view.take(prefix, Listing(Snapshot(1, (KeyValue(f"{prefix}g", value, 1),))))
    clock = SystemClock()
    with ThreadPoolExecutor(1) as thread:
        ports = TrainerPorts(
            coord=MemoryCoordinator(clock),
            clock=clock,
            pool=ChannelPool(),
            codebooks=Codebooks(MemoryBlobStore()),
            build_thread=thread,
            threads=1,
        )
        with pytest.raises(UnavailableError) as away:
            await Trainer(ports, view).train("g", clock.now_s() + 5)

    assert away.value.reason == "NODE_AWAY"


async def test_what_changes_while_a_gallery_is_trained_stays_and_another_codebook_wins() -> None:
    clock = SystemClock()
    coord = MemoryCoordinator(clock)
    key = keys.gallery(GALLERY.name)
    with ThreadPoolExecutor(1) as thread:
        ports = TrainerPorts(
            coord=coord,
            clock=clock,
            pool=ChannelPool(),
            codebooks=Codebooks(MemoryBlobStore()),
            build_thread=thread,
            threads=1,
        )
        trainer = Trainer(ports, View())
        await coord.txn([], [Put(key, encode_gallery(replace(GALLERY, miss_rate_max=0.01)))])

        await trainer._publish(GALLERY, "ab" * 32)
        with pytest.raises(FencedError):
            await trainer._publish(GALLERY, "cd" * 32)

        item = await coord.get(key)

    assert item is not None
    assert decode_gallery(item.value) == replace(GALLERY, miss_rate_max=0.01, codebook="ab" * 32)
