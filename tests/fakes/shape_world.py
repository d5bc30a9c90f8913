"""Nodes and drivers in one process, without a network: for tests of how operations are driven.

Nodes hear of maps, load, follow, claim, bring shards over and die when the test says so. They keep
rows as a dictionary and commit as real ones do: guarded by the value of the generation, with the
tip. A write is acknowledged where that transaction succeeded, and the world remembers it.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from facegrid.coord import keys
from facegrid.coord.port import Delete, Guard, Put, TxnResult, ValueGuard
from facegrid.errors import UnavailableError
from facegrid.format import operations, records
from facegrid.format.log import LogRef
from facegrid.format.operations import Operation, OperationKind, OperationState
from facegrid.format.tiling import tiling_problem
from facegrid.ids import GalleryName, NodeId, ShardId, shard_number, subject_key
from facegrid.model import Gallery, HashRange, NodeInfo, ShardAssignment, ShardMap
from facegrid.succession import candidates, succeeded
from facegrid.telemetry.log import get_logger
from facegrid.testing.manual_clock import ManualClock
from facegrid.testing.memory_coord import MemoryCoordinator
from router.operate.register import Register
from router.plan import kinds
from router.plan.placement import equal_ranges, shard_id

STAFF = GalleryName("staff")
UID = "1f00aa23"
Key = tuple[NodeId, ShardId]


@dataclass
class Copy:
    """A node's copy of a shard: subjects with their value, how far it is, and what it may do."""

    range: HashRange
    rows: dict[str, int] = field(default_factory=dict)
    position: int = 0
    map_version: int = 0
    claim: bytes = b""
    sources: dict[ShardId, int] = field(default_factory=dict)
    held_until_s: float = 0.0


class LossyCoordinator(MemoryCoordinator):
    """Loses the answers of the next transactions, which are carried out all the same."""

    lost_answers = 0

    async def txn(
        self,
        guards: Sequence[Guard | ValueGuard],
        operations: Sequence[Put | Delete],
        *,
        timeout_s: float = 5.0,
    ) -> TxnResult:
        result = await super().txn(guards, operations, timeout_s=timeout_s)
        if self.lost_answers:
            self.lost_answers -= 1
            raise UnavailableError("the answer was lost", reason="COORDINATOR_UNREACHABLE")
        return result


class World:
    """A gallery on some nodes.

    Args:
        nodes: how many, named n1 and following.
        shards: how many the gallery begins with.
        replicas: copies of each.
    """

    def __init__(self, nodes: int = 4, shards: int = 2, replicas: int = 2) -> None:
        self.clock = ManualClock()
        self.coord = LossyCoordinator(self.clock)
        self.alive = {NodeId(f"n{number + 1}") for number in range(nodes)}
        self.dead: set[NodeId] = set()
        self.copies: dict[Key, Copy] = {}
        self.stored: dict[ShardId, dict[str, int]] = {}
        self.stored_position: dict[ShardId, int] = {}
        self.acknowledged: dict[str, int] = {}
        self.kept: list[ShardMap] = []
        self.holds: list[float] = []
        self.worse: set[ShardId] = set()
        self.wrong: set[ShardId] = set()
        self.interruptions: list[Callable[[], Awaitable[object]]] = []
        self.known: set[ShardId] = set()
        self.made_count = 0
        order = sorted(self.alive)
        self.first_map = ShardMap(
            STAFF,
            UID,
            1,
            tuple(
                ShardAssignment(
                    shard_id(STAFF, UID, number),
                    hash_range,
                    tuple(order[(number + copy) % nodes] for copy in range(replicas)),
                )
                for number, hash_range in enumerate(equal_ranges(shards))
            ),
        )

    async def begin(self) -> "World":
        """Put what etcd has at the start."""
        gallery = Gallery(STAFF, UID, 8, "e@1", len(self.first_map.shards), 2, 0)
        await self._put(
            [],
            [
                Put(keys.gallery(STAFF), records.encode_gallery(gallery)),
                Put(keys.shard_map(STAFF), records.encode_shard_map(self.first_map)),
                *(self._registration(node) for node in sorted(self.alive)),
            ],
        )
        await self.settle()
        return self

    async def _put(
        self, guards: Sequence[Guard | ValueGuard], writes: Sequence[Put | Delete]
    ) -> TxnResult:
        """Carry out a transaction of somebody else than a driver, whose answers are not lost."""
        return await MemoryCoordinator.txn(self.coord, guards, writes)

    def _registration(self, node: NodeId) -> Put:
        info = NodeInfo(node, f"{node}-boot", f"{node}:1")
        return Put(keys.node(node, info.boot_id), records.encode_node(info))

    async def map(self) -> ShardMap | None:
        """Return the map in force."""
        item = await self.coord.get(keys.shard_map(STAFF))
        return None if item is None else records.decode_shard_map(item.value)

    async def operation(self, operation_id: str) -> Operation:
        """Return an operation as it is recorded."""
        item = await self.coord.get(keys.operation(operation_id))
        assert item is not None
        return operations.decode_operation(item.value)

    async def start(self, kind: OperationKind, operation_id: str = "op-1") -> Operation | None:
        """Record an operation, unless another one has one of its shards."""
        item = await self.coord.get(keys.shard_map(STAFF))
        assert item is not None
        shard_map = records.decode_shard_map(item.value)
        operation = Operation(
            operation_id,
            STAFF,
            UID,
            kind,
            OperationState.RUNNING,
            kinds.steps_of(kind)[0],
            created_unix_ms=self.clock.unix_ms(),
            step_unix_ms=self.clock.unix_ms(),
            former_node_ids=kinds.former_nodes(shard_map, kind),
        )
        register = Register(self.coord, self.clock, get_logger("test"))
        deadline_s = self.clock.now_s() + 5
        begun = await register.begin(
            operation, map_revision=item.mod_revision, deadline_s=deadline_s
        )
        return operation if begun else None

    async def taken(self) -> Mapping[ShardId, str]:
        """Return which operation has which shard."""
        register = Register(self.coord, self.clock, get_logger("test"))
        return await register.locks(deadline_s=self.clock.now_s() + 5)

    async def settle(self) -> None:
        """Let every node that lives hear, claim and catch up."""
        for _ in range(2):
            for node in sorted(self.alive - self.dead):
                await self.hear(node)
            self.replicate()

    async def hear(self, node: NodeId) -> None:
        """Let a node hear of the map: it opens what the map gives it, and claims what it leads."""
        shard_map = await self.map()
        held = () if shard_map is None else shard_map.held
        mine = {shard.shard_id: shard for shard in held if node in shard.holders}
        for key in [key for key in self.copies if key[0] == node and key[1] not in mine]:
            del self.copies[key]
        for wanted, shard in mine.items():
            assert shard_map is not None
            copy = self.copies.get((node, wanted))
            if copy is None:
                copy = self.copies[node, wanted] = Copy(shard.range)
                self._load(wanted, copy)
            copy.map_version = shard_map.version
            if shard.primary != node:
                copy.claim = b""
            elif not copy.claim or not await self._rules(wanted, copy):
                await self._claim(node, wanted, copy)

    def _load(self, wanted: ShardId, copy: Copy) -> None:
        copy.rows = dict(self.stored.get(wanted, {}))
        copy.position = self.stored_position.get(wanted, 0)

    async def _rules(self, wanted: ShardId, copy: Copy) -> bool:
        held = await self.coord.get(keys.generation(wanted))
        return held is not None and held.value == copy.claim

    async def _claim(self, node: NodeId, wanted: ShardId, copy: Copy) -> None:
        key = keys.generation(wanted)
        held = await self.coord.get(key)
        number = 1 if held is None else records.decode_generation(held.value).generation + 1
        claim = records.encode_generation(records.GenerationClaim(number, node, f"{node}-boot"))
        await self._put([], [Put(key, claim)])
        copy.claim = claim
        self._load(wanted, copy)

    def replicate(self, only: Key | None = None) -> None:
        """Let copies that live come to what is committed."""
        for key, copy in self.copies.items():
            if key[0] in self.dead or only not in (None, key):
                continue
            self._load(key[1], copy)

    async def fill(self, only: ShardId | None = None) -> None:
        """Let the primaries of sources bring over what pending shards lack."""
        shard_map = await self.map()
        for shard in () if shard_map is None else shard_map.pending:
            if only in (None, shard.shard_id):
                await self._fill(shard_map, shard)

    async def _fill(self, shard_map: ShardMap | None, shard: ShardAssignment) -> None:
        assert shard_map is not None
        copy = self.copies.get((shard.primary, shard.shard_id))
        if copy is None or not copy.claim or shard.primary in self.dead:
            return
        self._load(shard.shard_id, copy)
        for source in shard_map.shards:
            if source.shard_id not in shard.sources or source.primary in self.dead:
                continue
            end = self.stored_position.get(source.shard_id, 0)
            if copy.sources.get(source.shard_id) == end:
                continue
            rows = {
                subject: value
                for subject, value in self.stored.get(source.shard_id, {}).items()
                if shard.range.contains(subject_key(subject))
            }
            gone = {
                subject
                for subject in copy.rows
                if source.range.contains(subject_key(subject)) and subject not in rows
            }
            copy.rows.update(rows)
            for subject in gone:
                del copy.rows[subject]
            copy.sources[source.shard_id] = end
            await self._commit(shard.shard_id, copy)

    async def _commit(self, wanted: ShardId, copy: Copy) -> bool:
        """Commit what a copy has; tell whether it may."""
        position = self.stored_position.get(wanted, 0) + 1
        key = keys.generation(wanted)
        tip = records.Tip(LogRef(1, position, position, f"u-{position}", "0f" * 32))
        done = await self._put(
            [ValueGuard(key, copy.claim)],
            [Put(keys.tip(wanted), records.encode_tip(tip))],
        )
        if not done.succeeded:
            copy.claim = b""
            return False
        copy.position = position
        self.stored[wanted], self.stored_position[wanted] = dict(copy.rows), position
        return True

    async def write(self, subject: str, value: int) -> bool:
        """Enrol or change a subject, with 0 erase it; tell whether that was acknowledged."""
        shard_map = await self.map()
        for shard in () if shard_map is None else shard_map.shards:
            if shard.range.contains(subject_key(subject)):
                return await self.write_to(shard.primary, shard.shard_id, subject, value)
        return False

    async def write_to(self, node: NodeId, wanted: ShardId, subject: str, value: int) -> bool:
        """Write at a node, whatever the map says by now."""
        copy = self.copies.get((node, wanted))
        held = copy is not None and self.clock.now_s() < copy.held_until_s
        if copy is None or not copy.claim or held or node in self.dead:
            return False
        before = dict(copy.rows)
        if value:
            copy.rows[subject] = value
        else:
            copy.rows.pop(subject, None)
        if not await self._commit(wanted, copy):
            copy.rows = before
            return False
        self.acknowledged[subject] = value
        return True

    async def die(self, node: NodeId) -> None:
        """Kill a node: it answers nothing, and its registration ends."""
        self.dead.add(node)
        self.copies = {key: copy for key, copy in self.copies.items() if key[0] != node}
        await self._put([], [Delete(keys.node(node, f"{node}-boot"))])

    async def rise(self, node: NodeId) -> None:
        """Start a node again."""
        self.dead.discard(node)
        await self._put([], [self._registration(node)])

    async def take_over(self) -> None:
        """Give the shards of dead primaries to others, as nodes do by themselves."""
        item = await self.coord.get(keys.shard_map(STAFF))
        if item is None:
            return
        before = records.decode_shard_map(item.value)
        registered = self.alive - self.dead

        def changed(shard: ShardAssignment) -> ShardAssignment:
            order = candidates(shard, registered, {})
            if shard.primary not in self.dead or not order:
                return shard
            return succeeded(shard, order[0])

        after = replace(
            before,
            version=before.version + 1,
            shards=tuple(map(changed, before.shards)),
            pending=tuple(map(changed, before.pending)),
        )
        if replace(after, version=before.version) != before:
            await self._put(
                [Guard(item.key, item.mod_revision)],
                [Put(item.key, records.encode_shard_map(after))],
            )

    async def interrupted(self) -> None:
        """Let happen what the test has in store for the middle of a look."""
        if self.interruptions:
            await self.interruptions.pop(0)()

    async def drop_gallery(self) -> None:
        """Drop the gallery, as a router does."""
        await self._put([], [Delete(keys.gallery(STAFF)), Delete(keys.shard_map(STAFF))])

    async def rows(self) -> dict[str, int]:
        """Return what a search of the present map would find, on the primaries."""
        shard_map = await self.map()
        found: dict[str, int] = {}
        for shard in () if shard_map is None else shard_map.shards:
            found.update(self.stored.get(shard.shard_id, {}))
        return found

    async def check(self) -> None:
        """Assert what holds at all times."""
        shard_map = await self.map()
        if shard_map is None:
            return
        assert tiling_problem(shard_map) == ""
        new = {shard.shard_id for shard in shard_map.held} - self.known
        assert all(shard_number(one) >= self.made_count for one in new), "it was counted before"
        self.known |= new
        self.made_count = shard_map.next_number
        wanted = {subject: value for subject, value in self.acknowledged.items() if value}
        assert await self.rows() == wanted
