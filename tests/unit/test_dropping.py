"""Who deletes a dropped shard, and what was stored by somebody who stood still meanwhile."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from facegrid.coord import keys
from facegrid.coord.port import Delete, Listing, Put
from facegrid.errors import FencedError
from facegrid.format.records import Dropped, decode_dropped, encode_dropped, encode_node
from facegrid.ids import NodeId, ShardId
from facegrid.model import NodeInfo, ShardAssignment, ShardMap
from facegrid.testing.manual_clock import ManualClock
from indexd.replica.dropping import Dropping, DropRules, place_in_line, prefixes_of
from indexd.replica.view import WATCHED, DropOrder, View
from router.dispatch.lifecycle import _dropped_notes
from tests.unit.test_replica import GALLERY, SHARD, World, enrol
from tests.unit.test_replica import world as world  # noqa: PLC0414 - a fixture

SHARD_ID = SHARD.shard_id
RECORD = Dropped(SHARD_ID, GALLERY.uid, (NodeId("n3"), NodeId("n1"), NodeId("n5")))
ZOMBIE = f"shards/{SHARD_ID}/log/0000000001-0000000000000000009-zombie"
RECORDS = f"cluster/{GALLERY.uid}/0000000001-zombie"
RULES = DropRules(patience_s=10.0, again_s=30.0)


@pytest.mark.parametrize(
    ("me", "registered", "place"),
    [
        ("n3", ["n1", "n3"], 0),
        ("n3", [], 0),
        ("n1", ["n1", "n3"], None),
        ("n1", ["n1", "n5"], 1),
        ("n5", ["n1", "n5"], None),
        ("n5", ["n2", "n5"], 2),
        ("n2", ["n2", "n5"], None),
        ("n2", ["n2", "n4"], 3),
        ("n4", ["n2", "n4"], 4),
    ],
)
def test_those_that_are_named_come_first_then_all_others_by_name(
    me: str, registered: Sequence[str], place: int | None
) -> None:
    assert place_in_line(RECORD, NodeId(me), list(map(NodeId, registered))) == place


class Cleaner:
    """A node that deletes: its view is read from etcd when it is told to."""

    def __init__(self, world: World, node: str, *, rules: DropRules = RULES) -> None:
        self.clock = ManualClock()
        self._world = world
        self.ports = replace(world.ports(node, f"boot-{node}"), clock=self.clock)
        self.view = View()
        self.dropping = Dropping(self.ports, self.view, rules)

    async def look(self) -> list[DropOrder]:
        """Hear what etcd has to say; return what is to be done now."""
        for prefix in WATCHED:
            self.view.take(prefix, Listing(await self._world.coord.list(prefix)))
        return self.dropping.mine()


async def register(world: World, *node_ids: str) -> None:
    """Let exactly these nodes be registered."""
    old = await world.coord.list(keys.NODES)
    await world.coord.txn([], [Delete(item.key) for item in old.items])
    for node in node_ids:
        info = encode_node(NodeInfo(NodeId(node), f"boot-{node}", f"{node}:1"))
        await world.coord.txn([], [Put(keys.node(NodeId(node), f"boot-{node}"), info)])


async def drop(world: World, *node_ids: str) -> None:
    """Drop the gallery, as a router does."""
    note = Dropped(SHARD_ID, GALLERY.uid, tuple(map(NodeId, node_ids)))
    await world.coord.txn(
        [],
        [
            Delete(keys.gallery(GALLERY.name)),
            Delete(keys.shard_map(GALLERY.name)),
            Put(keys.dropped(SHARD_ID), encode_dropped(note)),
        ],
    )


def left(world: World) -> list[str]:
    """What is in the store but for journals."""
    return sorted(name for name in world.store.objects if not name.startswith("journal/"))


async def test_a_follower_deletes_when_the_primary_has_been_away_for_long_enough(
    world: World,
) -> None:
    """1 the primary goes; 2 its gallery is dropped; 3 it is back for a moment, and goes; 4 nobody
    heard of it for ten seconds.
    """
    async with world.primary("boot-n1") as primary:
        await primary.write(enrol(1))
    await drop(world, "n1", "n2")
    follower = Cleaner(world, "n2", rules=DropRules(patience_s=10.0, again_s=0.0))
    await register(world, "n2")
    turns = [await follower.look()]
    await follower.clock.advance(9.0)
    await register(world, "n1", "n2")
    turns.append(await follower.look())
    await register(world, "n2")
    for passed_s in (0.0, 9.0, 1.0):
        await follower.clock.advance(passed_s)
        turns.append(await follower.look())

    assert [len(turn) for turn in turns] == [0, 0, 0, 0, 1]
    await follower.dropping.delete(*turns[-1])
    assert left(world) == []
    assert (await world.coord.list("")).items == (await world.coord.list(keys.NODES)).items


async def test_the_old_primary_cannot_commit_once_another_node_deletes(world: World) -> None:
    async with world.primary("boot-n1") as primary:
        await primary.write(enrol(1))
        await drop(world, "n1", "n2")
        follower = Cleaner(world, "n2", rules=DropRules(patience_s=0.0, again_s=0.0))
        await follower.dropping.delete(*await follower.look())

        with pytest.raises(FencedError):
            await primary.write(enrol(2))
        (behind,) = left(world)
        assert behind.startswith(f"shards/{SHARD_ID}/log/"), "which its own node deletes then"


async def test_a_flush_refused_behind_a_drop_takes_back_what_it_stored(world: World) -> None:
    async with world.primary("boot-n1") as primary:
        await primary.write(enrol(1))
        await drop(world, "n1", "n2")
        follower = Cleaner(world, "n2", rules=DropRules(patience_s=0.0, again_s=0.0))
        await follower.dropping.delete(*await follower.look())
        with pytest.raises(FencedError):
            await primary.flush()

    assert left(world) == []


async def test_the_store_is_listed_again_until_nothing_is_there(world: World) -> None:
    """1 deleted; 2 somebody who stood still stores an object, and dies; 3 deleted; 4 looked at
    again, and nothing found.
    """
    async with world.primary("boot-n1") as primary:
        await primary.write(enrol(1))
    await drop(world, "n2")
    cleaner = Cleaner(world, "n2")
    await register(world, "n2")
    counts: list[tuple[float, int]] = []

    async def store_late(duration_s: float) -> None:
        counts.append((duration_s, len(left(world))))
        if len(counts) == 1:
            await world.store.put_new(ZOMBIE, b"late")
            await world.store.put_new(RECORDS, b"late")

    cleaner.clock.sleep = store_late  # type: ignore[method-assign]  # what happens meanwhile
    await cleaner.dropping.delete(*await cleaner.look())

    assert (counts, left(world)) == ([(30.0, 0), (30.0, 0)], [])
    assert await cleaner.look() == []


async def test_whoever_was_the_only_primary_ever_need_not_look_again(world: World) -> None:
    async with world.primary("boot-n1") as primary:
        await primary.write(enrol(1))
        await primary.abandon()
    await drop(world, "n1")
    cleaner = Cleaner(world, "n1")
    (order,) = await cleaner.look()
    # A sleep by this clock would never end.
    await cleaner.dropping.delete(order)

    assert left(world) == []


async def test_an_order_that_was_carried_out_is_not_carried_out_again(world: World) -> None:
    """1 two nodes hear of the order; 2 one is through; 3 the other begins."""
    async with world.primary("boot-n1") as primary:
        await primary.write(enrol(1))
        await primary.abandon()
    await drop(world, "n1", "n2")
    first = Cleaner(world, "n1")
    second = Cleaner(world, "n2", rules=DropRules(patience_s=0.0, again_s=0.0))
    orders = [await one.look() for one in (first, second)]
    await first.dropping.delete(*orders[0])
    journal = sorted(world.store.objects)
    await second.dropping.delete(*orders[1])

    assert sorted(world.store.objects) == journal, "no second end of the journal"


async def test_a_process_deletes_what_it_stored_behind_the_deletion(world: World) -> None:
    async with world.primary("boot-n1") as primary:
        await primary.write(enrol(1))
    await drop(world, "n2")
    other = Cleaner(world, "n2", rules=DropRules(patience_s=0.0, again_s=0.0))
    await register(world, "n2")
    await other.dropping.delete(*await other.look())
    await world.store.put_new(ZOMBIE, b"late")
    await world.store.put_new(RECORDS, b"late")

    zombie = Cleaner(world, "n1")
    zombie.dropping.held.add(SHARD_ID)
    await zombie.look()
    assert zombie.dropping.gone({SHARD_ID}) == [], "it still closes its copy"
    assert zombie.dropping.gone(set()) == [SHARD_ID]
    await zombie.dropping.clear(SHARD_ID)

    assert (left(world), zombie.dropping.held) == ([], set())


async def test_what_replaced_shards_leave_is_looked_for_when_their_deletion_is_over(
    world: World,
) -> None:
    """1 two shards are merged; 2 a process that had one lets it go, before there is an order to
    delete it; 3 another node carries the order out; 4 what the first one stored appears late.
    """
    async with world.primary("boot-n1") as primary:
        await primary.write(enrol(1))
    await world.coord.txn([], [Delete(keys.shard_map(GALLERY.name))])
    former = Cleaner(world, "n1")
    former.dropping.held.add(SHARD_ID)
    await former.look()
    assert former.dropping.gone(set()) == [SHARD_ID]
    await former.dropping.clear(SHARD_ID)
    note = Dropped(SHARD_ID, GALLERY.uid, (NodeId("n2"),), gallery_lives=True)
    await world.coord.txn([], [Put(keys.dropped(SHARD_ID), encode_dropped(note))])
    other = Cleaner(world, "n2", rules=DropRules(patience_s=0.0, again_s=0.0))
    await register(world, "n2")
    await other.dropping.delete(*await other.look())
    await world.store.put_new(ZOMBIE, b"late")

    await former.look()
    assert former.dropping.gone(set()) == [SHARD_ID]
    await former.dropping.clear(SHARD_ID)

    assert (left(world), former.dropping.held) == ([], set())


async def test_a_shard_that_was_filled_is_looked_at_again_though_it_had_one_primary_only(
    world: World,
) -> None:
    """1 a split is aborted; 2 the new shard's primary deletes it; 3 the primary of the old one,
    which stood still, stores another segment of it, and dies.
    """
    async with world.primary("boot-n1") as primary:
        await primary.write(enrol(1))
        await primary.abandon()
    note = Dropped(SHARD_ID, GALLERY.uid, (NodeId("n1"),), gallery_lives=True)
    map_key = keys.shard_map(GALLERY.name)
    put = Put(keys.dropped(SHARD_ID), encode_dropped(note))
    await world.coord.txn([], [Delete(map_key), put])
    cleaner = Cleaner(world, "n1")
    waits: list[float] = []

    async def store_late(duration_s: float) -> None:
        waits.append(duration_s)
        if len(waits) == 1:
            await world.store.put_new(ZOMBIE, b"late")

    cleaner.clock.sleep = store_late  # type: ignore[method-assign]  # what happens meanwhile
    await cleaner.dropping.delete(*await cleaner.look())

    shards = [name for name in left(world) if name.startswith("shards/")]
    assert (waits, shards) == ([30.0, 30.0], [])


async def test_nothing_is_deleted_because_etcd_was_wiped(world: World) -> None:
    async with world.primary("boot-n1") as primary:
        await primary.write(enrol(1))
    before = left(world)
    await world.coord.txn([], [Delete(i.key) for i in (await world.coord.list("")).items])

    cleaner = Cleaner(world, "n1")
    cleaner.dropping.held.add(SHARD_ID)
    await cleaner.look()
    assert cleaner.dropping.gone(set()) == [SHARD_ID]
    await cleaner.dropping.clear(SHARD_ID)

    assert (left(world), len(before)) == (before, 1)


async def test_a_shard_that_moved_to_other_nodes_is_not_gone(world: World) -> None:
    cleaner = Cleaner(world, "n9")
    cleaner.dropping.held.add(ShardId(SHARD_ID))
    await cleaner.look()

    assert (cleaner.dropping.gone(set()), cleaner.dropping.held) == ([], set())


def test_shards_that_are_being_filled_go_too_and_who_joins_may_delete() -> None:
    n1, n2, n3 = map(NodeId, ("n1", "n2", "n3"))
    child = ShardAssignment(ShardId("g.1f00aa23.0001"), SHARD.range, (n2,), (n3,), (SHARD_ID,))
    parent = replace(SHARD, node_ids=(n1, n2))
    notes = _dropped_notes(ShardMap(GALLERY.name, GALLERY.uid, 2, (parent,), (child,), 2))

    assert [decode_dropped(note.value) for note in notes] == [
        Dropped(SHARD_ID, GALLERY.uid, (n1, n2)),
        Dropped(child.shard_id, GALLERY.uid, (n2, n3)),
    ]


def test_codebooks_go_with_the_gallery_whichever_shard_it_is_and_not_with_a_shard_alone() -> None:
    later = replace(RECORD, shard_id=ShardId(f"g.{GALLERY.uid}.0007"))
    codebooks = f"codebooks/{GALLERY.uid}/"
    assert codebooks in prefixes_of(RECORD)
    assert codebooks in prefixes_of(later)
    assert prefixes_of(replace(later, gallery_lives=True)) == [f"shards/{later.shard_id}/"]
