"""One look at one operation: what comes next is decided, and done."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Final

from facegrid.clock import Clock
from facegrid.coord import keys
from facegrid.coord.port import Coordinator, Delete, Guard, KeyValue, Put, ValueGuard
from facegrid.errors import FacegridError, UnavailableError
from facegrid.format import operations, records
from facegrid.format.operations import Operation, OperationState
from facegrid.format.records import GenerationClaim
from facegrid.ids import ShardId
from facegrid.model import ShardMap
from facegrid.telemetry.log import Logger
from router.operate.handover import Comparison, Held, pause_s
from router.operate.nodes import Nodes
from router.operate.register import ETCD_S, Recorded
from router.operate.verifying import HELD_MS, Verdict, Verifier
from router.plan.decide import decide
from router.plan.decision import HandOver, Next, Seen, VerifyCopies, Wait
from router.plan.kinds import RESHAPE_STEPS, abortable
from router.plan.progress import involved
from router.topology.watcher import Watcher

NOT_BEGUN: Final = "waits: searches are slower than the limit that is set"
CAME_BETWEEN: Final = "a write came between; the cutover is tried again"

Guards = Sequence[Guard | ValueGuard]


@dataclass(frozen=True, slots=True)
class _Found:
    """A record and the map of its gallery, as etcd has them; the map as far as it is the gallery's
    that the operation is about.
    """

    recorded: Recorded
    map_item: KeyValue | None
    shard_map: ShardMap | None

    @property
    def map_guard(self) -> Guard:
        """Holds as long as the map is the same."""
        revision = 0 if self.map_item is None else self.map_item.mod_revision
        return Guard(keys.shard_map(self.recorded.operation.gallery), revision)


@dataclass(frozen=True, slots=True)
class _Tries:
    """How often writes were held back for an operation, and until when they are not again."""

    count: int
    until_s: float


class Performer:
    """Advances operations.

    Args:
        coordinator: where they lie.
        watcher: knows the nodes.
        nodes: asks them.
        clock: for pauses and dates.
        logger: told what is done.
        guard: what holds as long as this router drives; None: it does not.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        watcher: Watcher,
        nodes: Nodes,
        *,
        clock: Clock,
        logger: Logger,
        guard: Callable[[], Guard | None],
    ) -> None:
        self._coordinator = coordinator
        self._watcher = watcher
        self._nodes = nodes
        self._clock = clock
        self._logger = logger
        self._guard = guard
        self._verifier = Verifier(nodes, clock)
        self._comparison = Comparison(nodes, clock)
        self._tries: dict[str, _Tries] = {}

    async def advance(self, recorded: Recorded, *, braked: bool) -> None:
        """Do what comes next in an operation, if anything. What fails is noted in its record, and
        tried again when this is called again.

        Args:
            recorded: which, as it lies in etcd.
            braked: no step is begun, except on the way back, and past the cutover: there is little
                left to do, and until then rows are held twice, and erased ones stay in the store.
        """
        operation = recorded.operation
        try:
            found = await self._find(recorded)
            if operation.state is OperationState.PAUSED and found.shard_map is not None:
                return
            decision = decide(operation, await self._look(found))
            if braked and abortable(operation) and found.shard_map is not None:
                decision = Wait(NOT_BEGUN)
            match decision:
                case Next():
                    await self._commit(found, decision)
                case VerifyCopies():
                    await self._verify(found, decision)
                case HandOver():
                    await self._hand_over(found, decision)
                case Wait(reason):
                    await self.note(recorded, reason)
        except FacegridError as error:
            await self._failed(recorded, error)

    async def stop(self, recorded: Recorded, error: Exception) -> None:
        """Pause an operation at which the driver itself failed: it would fail there again, and so
        would the next one.
        """
        operation = recorded.operation
        self._logger.error(
            "operation paused", operation=operation.operation_id, problem=repr(error)
        )
        if operation.state is OperationState.RUNNING:
            note = f"paused, since the driver met a bug: {type(error).__name__}"
            after = replace(operation, state=OperationState.PAUSED, note=note)
            await self._write(recorded, [], after)

    async def note(self, recorded: Recorded, reason: str) -> None:
        """Write down what a running operation waits for, if it is something else than before."""
        operation = recorded.operation
        if operation.state is not OperationState.RUNNING or operation.note == reason:
            return
        await self._write(recorded, [], replace(operation, note=reason))

    async def forget(self, recorded: Recorded) -> None:
        """Delete the record of an operation that is over."""
        assert recorded.operation.state.over, "only what is over is forgotten"
        key = keys.operation(recorded.operation.operation_id)
        self._tries.pop(recorded.operation.operation_id, None)
        await self._txn([Guard(key, recorded.revision)], [Delete(key)])

    async def _failed(self, recorded: Recorded, error: FacegridError) -> None:
        self._logger.warning(
            "operation not advanced",
            operation=recorded.operation.operation_id,
            step=recorded.operation.step,
            problem=error.message,
        )
        try:
            await self.note(recorded, error.message)
        except UnavailableError:
            # etcd is out of reach; so is whoever might read the note.
            return

    async def _find(self, recorded: Recorded) -> _Found:
        operation = recorded.operation
        item = await self._coordinator.get(keys.shard_map(operation.gallery), timeout_s=ETCD_S)
        shard_map = None if item is None else records.decode_shard_map(item.value)
        if shard_map is not None and shard_map.gallery_uid != operation.gallery_uid:
            shard_map = None
        return _Found(recorded, item, shard_map)

    async def _look(self, found: _Found) -> Seen:
        """Return what there is to decide from. The map was read before; the claims come after it,
        and are read linearizably.
        """
        registered = set(self._watcher.topology.nodes)
        operation = found.recorded.operation
        nodes = involved(operation, found.shard_map) if found.shard_map is not None else set()
        claims = await self._claims(operation) if nodes else {}
        taken = await self._taken() if operation.step == RESHAPE_STEPS[0] else ()
        return Seen(
            shard_map=found.shard_map,
            registered=registered,
            claims=claims,
            copies=await self._nodes.copies(nodes),
            now_ms=self._clock.unix_ms(),
            taken=taken,
        )

    async def _claims(self, operation: Operation) -> dict[ShardId, GenerationClaim]:
        """Return who claimed the shards of an operation last."""
        names = [keys.generation(shard_id) for shard_id in operation.locked_ids]
        found = await self._coordinator.get_many(names, timeout_s=ETCD_S)
        return {
            ShardId(keys.name_of(item.key, keys.GENERATIONS)): records.decode_generation(
                item.value
            )
            for item in found.items
        }

    async def _taken(self) -> Collection[ShardId]:
        """Return the names of all shards that operations have."""
        locks = await self._coordinator.list(keys.OPERATION_LOCKS, timeout_s=ETCD_S)
        return {ShardId(keys.name_of(item.key, keys.OPERATION_LOCKS)) for item in locks.items}

    async def _verify(self, found: _Found, wanted: VerifyCopies) -> None:
        """Compare copies, and go on if they are alike. Writes are held back for that no more often
        than for a handover.
        """
        assert found.shard_map is not None, "copies are of a map"
        rested = self._rested(found.recorded)
        verdict = await self._verifier.copies(
            found.shard_map, wanted.shard, wanted.node_ids, hold_ms=HELD_MS if rested else 0
        )
        if not verdict.problem:
            await self._commit(found, wanted.then)
            return
        if rested:
            self._tried(found.recorded)
        await self._judged(found, verdict)

    def _rested(self, recorded: Recorded) -> bool:
        """Tell whether writes may be held back again for an operation."""
        tries = self._tries.get(recorded.operation.operation_id)
        return tries is None or self._clock.now_s() >= tries.until_s

    def _tried(self, recorded: Recorded) -> None:
        """Note that writes are held back: the next time has to wait the longer."""
        name = recorded.operation.operation_id
        count = 1 + (self._tries[name].count if name in self._tries else 0)
        self._tries[name] = _Tries(count, self._clock.now_s() + pause_s(count))

    async def _judged(self, found: _Found, verdict: Verdict) -> None:
        """Note why two sides are not alike; pause where trying again is of no use."""
        if not verdict.final:
            await self.note(found.recorded, verdict.problem)
            return
        operation = found.recorded.operation
        paused = replace(operation, state=OperationState.PAUSED, note=verdict.problem)
        self._logger.error(
            "operation paused", operation=operation.operation_id, problem=verdict.problem
        )
        await self._write(found.recorded, [], paused)

    async def _hand_over(self, found: _Found, wanted: HandOver) -> None:
        """Try the cutover of a split or merge, unless it failed a short while ago."""
        if not self._rested(found.recorded):
            return
        self._tried(found.recorded)
        assert found.shard_map is not None, "shards are of a map"
        probes = await self._comparison.probes(wanted.sources, seed=found.shard_map.version)
        try:
            held = await self._comparison.held(wanted, found.shard_map, probes)
            if held.verdict.problem:
                await self._judged(found, held.verdict)
            elif await self._cut_over(found, wanted, held):
                del self._tries[found.recorded.operation.operation_id]
            else:
                await self.note(found.recorded, CAME_BETWEEN)
        finally:
            await self._nodes.release(wanted.sources)

    async def _cut_over(self, found: _Found, wanted: HandOver, held: Held) -> bool:
        """Replace the sources, if nothing was written since they are held; tell whether."""
        operation, after = found.recorded.operation, wanted.then.shard_map
        assert after is not None, "the cutover changes the map"
        gallery_key = keys.gallery(operation.gallery)
        gallery = await self._coordinator.get(
            gallery_key, timeout_s=self._comparison.left_s(held.ends_s)
        )
        if gallery is None:
            return False
        await self._nodes.keep_record(
            wanted.children[0].primary,
            gallery=gallery.value,
            shard_map=records.encode_shard_map(after),
            timeout_s=self._comparison.left_s(held.ends_s),
        )
        guards: list[Guard | ValueGuard] = [Guard(gallery_key, gallery.mod_revision)]
        fences: list[Put] = []
        for shard_id, claim in held.claims.items():
            key = keys.generation(shard_id)
            nobodys = operations.nobodys(records.decode_generation(claim), operation.operation_id)
            guards += [ValueGuard(key, claim), Guard(keys.tip(shard_id), held.tips[shard_id])]
            fences.append(Put(key, records.encode_generation(nobodys)))
        return await self._commit(found, wanted.then, guards, fences)

    async def _commit(
        self, found: _Found, wanted: Next, guards: Guards = (), writes: Sequence[Put] = ()
    ) -> bool:
        """Carry out a step as one transaction; tell whether that was done. If not, somebody else
        changed the operation or the map: the next look starts from there.
        """
        more: list[Put | Delete] = [*writes]
        if wanted.shard_map is not None:
            key = keys.shard_map(wanted.operation.gallery)
            more.append(Put(key, records.encode_shard_map(wanted.shard_map)))
        more += [
            Put(keys.dropped(dropped.shard_id), records.encode_dropped(dropped))
            for dropped in wanted.dropped
        ]
        before = found.recorded.operation.locked_ids
        after = () if wanted.operation.state.over else wanted.operation.locked_ids
        more += [Delete(keys.operation_lock(one)) for one in before if one not in after]
        lock = operations.encode_lock(operations.OperationLock(wanted.operation.operation_id))
        locks = [Put(keys.operation_lock(one), lock) for one in after if one not in before]
        done = await self._write(
            found.recorded,
            [found.map_guard, *(Guard(one.key, 0) for one in locks), *guards],
            wanted.operation,
            [*more, *locks],
        )
        if done:
            self._logger.info(
                "operation advanced",
                operation=wanted.operation.operation_id,
                done=found.recorded.operation.step,
                step=wanted.operation.step,
                state=wanted.operation.state.name,
            )
        return done

    async def _write(
        self,
        recorded: Recorded,
        guards: Guards,
        after: Operation,
        more: Sequence[Put | Delete] = (),
    ) -> bool:
        """Put a record, and more, in one transaction."""
        key = keys.operation(after.operation_id)
        put = Put(key, operations.encode_operation(after))
        return await self._txn([Guard(key, recorded.revision), *guards], [put, *more])

    async def _txn(self, guards: Guards, writes: Sequence[Put | Delete]) -> bool:
        """Carry out a transaction as the driver, and only as long as this router is it."""
        driving = self._guard()
        if driving is None:
            return False
        result = await self._coordinator.txn([driving, *guards], writes, timeout_s=ETCD_S)
        return result.succeeded
