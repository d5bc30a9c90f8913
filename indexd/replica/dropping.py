"""Deletes shards that were dropped: whose turn it is, what is taken away in which order, and who
looks again. docs/rfcs/0010-dropping.md tells the whole of it.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass

from facegrid.coord import keys
from facegrid.coord.port import Delete, Guard
from facegrid.format.inventory import gallery_of
from facegrid.format.records import Dropped, decode_gallery, decode_generation
from facegrid.format.stored_gallery import stored_gallery_prefix
from facegrid.ids import GalleryName, NodeId, ShardId
from indexd.replica.erasure_journal import close_journal, journal_closed
from indexd.replica.shard_copy import NodePorts
from indexd.replica.view import DropOrder, View

LOOK_S = 0.5
"""How often to look whether it is this node's turn."""


@dataclass(frozen=True, slots=True)
class DropRules:
    """How patient to be.

    Attributes:
        patience_s: how long to leave a deletion to each node that comes before in line and is not
            registered.
        again_s: how long after a deletion to look again for what a process stored that stood still
            or was cut off from etcd.
    """

    patience_s: float
    again_s: float


DROP_RULES = DropRules(patience_s=10.0, again_s=30.0)
"""Those of a node that takes no shards over. A process that stood still, or was cut off, hears of
the drop itself when that is over; to look again is for those that die just then."""


class Dropping:
    """Whose turn it is to delete which dropped shard, and the deletion itself.

    Args:
        ports: what the node stands on.
        view: what etcd tells.
        rules: how patient to be.
    """

    def __init__(self, ports: NodePorts, view: View, rules: DropRules) -> None:
        self.held: set[ShardId] = set()
        """Shards that this process has or had a copy of, and may have stored objects of."""
        self._ports = ports
        self._view = view
        self._rules = rules
        self._since_s: dict[tuple[ShardId, int], float] = {}
        """Since when nobody is registered who comes before this node, by order."""

    async def run(self, look: Callable[[], None]) -> None:
        """Call `look` now and then while time alone may bring something to do, until cancelled."""
        while True:
            await self._ports.clock.sleep(LOOK_S)
            if self._view.drop_orders() or self.held - self._mapped():
                look()

    def mine(self) -> list[DropOrder]:
        """Return the orders that this node is to carry out now.

        The first node that a record names does so at once; each next one when none of those before
        it is registered, and has not been for as many times the patience as come before; if none
        that is named is there, each other node, by its name.
        """
        now_s, registered = self._ports.clock.now_s(), self._view.registered()
        since_s: dict[tuple[ShardId, int], float] = {}
        found = []
        for order in self._view.drop_orders():
            place = place_in_line(order.record, self._ports.claimant.node_id, registered)
            if place is None or (place and not self._view.complete):
                continue
            key = (order.record.shard_id, order.revision)
            since_s[key] = self._since_s.get(key, now_s)
            if now_s - since_s[key] >= place * self._rules.patience_s:
                found.append(order)
        self._since_s = since_s
        return found

    async def delete(self, order: DropOrder) -> None:
        """Delete a shard's objects, then its keys. No copy of this node may write it any more.

        With the shard's generation nobody can commit to it, nor claim it, since no map names it.
        Who stands still meanwhile may store an object all the same, after the store was listed.
        So it is listed again after a while, until nothing is there, unless nobody but this process
        ever was its primary.

        Raises:
            UnavailableError: etcd or the store cannot be reached; it can be called again.
        """
        coord, shard_id = self._ports.coord, order.record.shard_id
        guard = Guard(keys.dropped(shard_id), order.revision)
        # Into a shard that was being filled the primaries of its sources stored objects as well.
        alone = not order.record.gallery_lives and await self._only_primary(shard_id)
        fenced = await coord.txn([guard], [Delete(keys.generation(shard_id))])
        if not fenced.succeeded:
            # Another node is through with it.
            return
        # Whoever restores a snapshot of this gallery must still know who was erased.
        await close_journal(self._ports, shard_id, order_revision=order.revision)
        count = await self._delete_objects(prefixes_of(order.record))
        while not alone:
            await self._ports.clock.sleep(self._rules.again_s)
            found = await self._delete_objects(prefixes_of(order.record))
            count += found
            alone = not found
        done = await coord.txn(
            [guard],
            [
                Delete(keys.generation(shard_id)),
                Delete(keys.tip(shard_id)),
                Delete(keys.manifest(shard_id)),
                Delete(keys.dropped(shard_id)),
            ],
        )
        if done.succeeded:
            self._ports.logger.info("dropped shard deleted", shard=shard_id, objects=count)

    def gone(self, kept: Collection[ShardId]) -> list[ShardId]:
        """Return the shards of which this process has no copy any more, and no map and no order
        speaks; `kept` are those that it has.
        """
        if not self._view.complete:
            return []
        mapped = self._mapped()
        # Moved to other nodes: nothing was stored after the copy was let go.
        self.held -= mapped - set(kept)
        ordered = {order.record.shard_id for order in self._view.drop_orders()}
        return sorted(self.held - set(kept) - ordered - mapped)

    async def clear(self, shard_id: ShardId) -> None:
        """Delete what this process may have stored of a shard after others had deleted it.

        That no map speaks of a shard is not enough: etcd may have been wiped. But a journal that
        is closed says that it was dropped.

        Raises:
            CorruptError: the journal is damaged.
            UnavailableError: etcd or the store cannot be reached; it can be called again.
        """
        coord, store = self._ports.coord, self._ports.store
        if await coord.get(keys.dropped(shard_id)) is not None:
            # Of which the watch has not told yet.
            return
        if await coord.get(keys.generation(shard_id)) is not None:
            # Others have taken its place, and the order to delete it is still to come.
            return
        if await journal_closed(store, shard_id):
            count = await self._delete_objects([f"shards/{shard_id}/"])
            name, uid = gallery_of(shard_id)
            gallery = await coord.get(keys.gallery(GalleryName(name)))
            lives = gallery is not None and decode_gallery(gallery.value).uid == uid
            if not lives and not await store.list(f"shards/{name}.{uid}."):
                count += await self._delete_objects([stored_gallery_prefix(uid)])
            if count:
                self._ports.logger.warning(
                    "deleted what was stored after a drop", shard=shard_id, objects=count
                )
        self.held.discard(shard_id)

    async def _only_primary(self, shard_id: ShardId) -> bool:
        """Tell whether this process is the only one that ever claimed a shard."""
        item = await self._ports.coord.get(keys.generation(shard_id))
        if item is None:
            return False
        claim = decode_generation(item.value)
        return claim.generation == 1 and claim.boot_id == self._ports.claimant.boot_id

    async def _delete_objects(self, prefixes: Collection[str]) -> int:
        """Delete what lies under prefixes, one after the other; return how many objects."""
        count = 0
        for prefix in prefixes:
            for name in await self._ports.store.list(prefix):
                await self._ports.store.delete(name)
                count += 1
        return count

    def _mapped(self) -> set[ShardId]:
        """Return the shards that maps name."""
        return {one.shard_id for seen in self._view.maps() for one in seen.shard_map.held}


def place_in_line(record: Dropped, me: NodeId, registered: Collection[NodeId]) -> int | None:
    """Return how many nodes come before this one in carrying an order out: of those that the
    record names, and then of the others that are registered. None while one that it names comes
    before and is registered.
    """
    named = record.node_ids
    before = named[: named.index(me)] if me in named else named
    if any(node in registered for node in before):
        return None
    if me in named:
        return len(before)
    others = sorted(node for node in registered if node not in named and node < me)
    return len(named) + len(others)


def prefixes_of(record: Dropped) -> list[str]:
    """Return what the names of all that goes with a shard begin with, in the order of deletion."""
    if record.gallery_lives:
        return [f"shards/{record.shard_id}/"]
    # First, and by the node of every shard: each may have stored the records once more.
    # The codebooks too: whichever shard was the first may be gone for long.
    return [
        stored_gallery_prefix(record.gallery_uid),
        f"shards/{record.shard_id}/",
        f"codebooks/{record.gallery_uid}/",
    ]
