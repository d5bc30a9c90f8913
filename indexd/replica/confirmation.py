"""Asks etcd again and again whether the copies of this node have everything there is to have.

One read tells the tips of this node's followers, another who claimed the shards of its primaries
last; each tells as well which maps are in force at the same revision, since only a map that has a
copy searched confirms it (RFC 0009). They are linearizable: what they say was true at some moment
after they were asked, and from the moment of asking a copy is confirmed, for limits.STALENESS_S.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Generic, TypeVar

from facegrid import limits
from facegrid.coord import keys
from facegrid.coord.port import KeyValue
from facegrid.errors import CorruptError, FacegridError
from facegrid.format.records import GenerationClaim, decode_generation, decode_tip
from facegrid.ids import ShardId
from indexd.replica.follower import POLL_S, Follower
from indexd.replica.named import searched_on
from indexd.replica.primary import Primary
from indexd.replica.shard_copy import NodePorts, Phase, ShardCopy

CLAIMS_POLL_S = 0.5
"""How long after one look at the claims the next begins."""
LOOK_TIMEOUT_S = 2.0
"""Below limits.STALENESS_S, so that one answer that got lost leaves time for another."""


C = TypeVar("C", bound=ShardCopy)


@dataclass(frozen=True, slots=True)
class _Known:
    """A map that was read: its revision, and the shards that this node is searched for."""

    mod_revision: int
    searched: frozenset[ShardId]


@dataclass(frozen=True, slots=True)
class _Look(Generic[C]):
    """What etcd said of some copies when it was asked at a time: keys, and which are searched."""

    copies: Sequence[C]
    asked_s: float
    items: Mapping[str, KeyValue]
    searched: Set[ShardId]


class Confirmation:
    """Confirms the copies of a node.

    Args:
        ports: the node's.
        copies: its copies; changed by the node while this runs.
        superseded: called with a primary whose shard somebody else has claimed, and that claim.
        caught_up: called with a follower that may have applied something.
        load_ahead: called with a follower that has a bulk load to bring in.
    """

    def __init__(
        self,
        ports: NodePorts,
        copies: Mapping[ShardId, ShardCopy],
        *,
        superseded: Callable[[Primary, GenerationClaim], None],
        caught_up: Callable[[Follower], None],
        load_ahead: Callable[[Follower], None],
    ) -> None:
        self._ports = ports
        self._copies = copies
        self._superseded = superseded
        self._caught_up = caught_up
        self._load_ahead = load_ahead
        self._catching_up: set[Follower] = set()
        self._maps: dict[str, _Known] = {}

    async def run(self) -> None:
        """Look until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow(tasks))
            tasks.create_task(self._hold())

    async def _follow(self, tasks: asyncio.TaskGroup) -> None:
        """Keep followers at the committed tips, each at its own pace: one that loads its shard
        anew must not keep the others from being confirmed.
        """
        while True:
            followers = [
                copy
                for copy in self._copies.values()
                if isinstance(copy, Follower)
                and copy.phase is Phase.SERVING
                and copy not in self._catching_up
            ]
            for look in await self._look(followers, keys.tip):
                for follower in look.copies:
                    self._catching_up.add(follower)
                    tasks.create_task(self._confirm(follower, look))
            await self._ports.clock.sleep(POLL_S)

    async def _hold(self) -> None:
        """Make sure that primaries still are."""
        while True:
            used = {keys.shard_map(copy.gallery.name) for copy in self._copies.values()}
            self._maps = {key: known for key, known in self._maps.items() if key in used}
            primaries = [
                copy
                for copy in self._copies.values()
                if isinstance(copy, Primary) and copy.phase is Phase.SERVING
            ]
            for look in await self._look(primaries, keys.generation):
                for primary in look.copies:
                    self._confirm_primary(primary, look)
            await self._ports.clock.sleep(CLAIMS_POLL_S)

    async def _confirm(self, follower: Follower, look: "_Look[Follower]") -> None:
        """Bring one follower to its tip."""
        shard_id = follower.assignment.shard_id
        item = look.items.get(keys.tip(shard_id))
        try:
            tip = None if item is None else decode_tip(item.value).log
            await follower.confirm(tip, look.asked_s, searched=shard_id in look.searched)
        except CorruptError as error:
            follower.fail(error)
        except FacegridError:
            # Not confirmed: it will say so itself when that has lasted too long.
            if follower.ahead:
                self._load_ahead(follower)
        else:
            self._caught_up(follower)
        finally:
            self._catching_up.discard(follower)

    def _confirm_primary(self, primary: Primary, look: "_Look[Primary]") -> None:
        """Confirm a primary whose claim is the last one."""
        shard_id = primary.assignment.shard_id
        item = look.items.get(keys.generation(shard_id))
        if item is None:
            # Wiped, or dropped: nobody can say that this copy has everything.
            return
        if not primary.claimed_by(item.value):
            self._superseded(primary, decode_generation(item.value))
            return
        primary.caught_up_s = max(primary.caught_up_s, look.asked_s)
        if shard_id in look.searched:
            primary.confirmed_s = max(primary.confirmed_s, look.asked_s)

    async def _look(
        self, copies: Sequence[C], key_of: Callable[[ShardId], str]
    ) -> "list[_Look[C]]":
        """Return what etcd says of copies, in as many reads as are needed."""
        async with asyncio.TaskGroup() as group:
            looks = [group.create_task(self._read(part, key_of)) for part in parts_of(copies)]
        return [look for task in looks if (look := task.result()) is not None]

    async def _read(
        self, copies: Sequence[C], key_of: Callable[[ShardId], str]
    ) -> "_Look[C] | None":
        """Return what etcd says of copies at one revision; None while it does not answer."""
        coord, asked_s = self._ports.coord, self._ports.clock.now_s()
        uids = {keys.shard_map(copy.gallery.name): copy.gallery.uid for copy in copies}
        names = [key_of(copy.assignment.shard_id) for copy in copies]
        searched: set[ShardId] = set()
        try:
            found = await coord.get_many(names, heads=list(uids), timeout_s=LOOK_TIMEOUT_S)
            items = {item.key: item for item in found.items}
            for key, uid in uids.items():
                searched |= await self._searched(items.get(key), uid)
        except FacegridError:
            return None
        return _Look(copies, asked_s, items, searched)

    async def _searched(self, head: KeyValue | None, uid: str) -> frozenset[ShardId]:
        """Return the shards that the map of a revision has this node searched for. Its value is
        read when it is another than before; nothing is confirmed by one that changes meanwhile.
        """
        if head is None:
            return frozenset()
        known = self._maps.get(head.key)
        if known is None or known.mod_revision != head.mod_revision:
            item = await self._ports.coord.get(head.key, timeout_s=LOOK_TIMEOUT_S)
            if item is None or item.mod_revision != head.mod_revision:
                return frozenset()
            me = self._ports.claimant.node_id
            known = _Known(item.mod_revision, searched_on(item, uid, me))
            self._maps[head.key] = known
        return known.searched


def parts_of(copies: Sequence[C]) -> list[list[C]]:
    """Return copies in parts: each, with the maps of its galleries, is one read of etcd."""
    parts: list[list[C]] = []
    names: set[str] = set()
    for copy in sorted(copies, key=lambda copy: copy.assignment.shard_id):
        names |= {copy.assignment.shard_id, keys.shard_map(copy.gallery.name)}
        if not parts or len(names) > limits.ETCD_TXN_OPERATIONS_MAX:
            names = {copy.assignment.shard_id, keys.shard_map(copy.gallery.name)}
            parts.append([])
        parts[-1].append(copy)
    return parts
