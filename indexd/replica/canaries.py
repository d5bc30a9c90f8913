"""Repeats a sample of live probes exactly, in the background: what of it waits.

Samples collect while there is no time for them. Then all shards of this node that a batch of them
met are gone through once, piece by piece, in a thread of low priority. Probes are held until they
were compared, or given up, and written nowhere.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from facegrid.clock import Clock
from facegrid.errors import FacegridError
from facegrid.ids import GalleryName, ShardId
from facegrid.model import Gallery
from facegrid.telemetry.log import Logger
from facegrid.tuning import Profile, Tuning
from facegrid.vectors import Float32
from indexd.engine.alarms import Change, TuningId, Watch
from indexd.engine.budget import Budget
from indexd.engine.canary import (
    Canary,
    Comparison,
    MetShard,
    Piece,
    Reservoir,
    Searched,
    Verdict,
    canary,
)
from indexd.engine.search import Found, Wish
from indexd.engine.state import ShardState
from indexd.replica.drift import Drift, Drifts
from indexd.replica.remedies import Alarm, Remedies
from indexd.replica.shard_copy import Phase, ShardCopy
from indexd.replica.view import View

BATCH_PROBES: Final = 64
"""Compared at once: a row costs hardly more for all of them than for one."""
COLLECT_S: Final = 10.0
"""A batch that is not full is compared after this."""
BATCH_S_MAX: Final = 3600.0
"""A batch that is not compared by then is given up: its probes are to be held no longer."""
TICK_S: Final = 1.0
TELL_S: Final = 60.0
"""How often an alarm that stands is told of."""
DRIFT_S: Final = 600.0
"""How often drift is measured, to be shown."""


@dataclass(frozen=True, slots=True)
class CanaryPorts:
    """What canaries need of the node.

    Attributes:
        copies: the shards.
        view: what etcd says.
        clock: for time, and how long things take.
        logger: where alarms go.
        thread: where to compare; of low priority.
        budget: how much time that may take.
        rng: which probes.
        drifts: measures drift.
        remedies: does something about alarms.
    """

    copies: Mapping[ShardId, ShardCopy]
    view: View
    clock: Clock
    logger: Logger
    thread: Executor
    budget: Budget
    rng: np.random.Generator
    drifts: Drifts
    remedies: Remedies


@dataclass(slots=True)
class _Collected:
    """Canaries of a gallery that wait."""

    gallery: GalleryName
    reservoir: Reservoir[Canary]
    since_s: float | None = None
    """When the first of them came."""


@dataclass(slots=True)
class _Watched:
    """What is known of a gallery's profiles, and when its alarms were last told of."""

    gallery: GalleryName
    watches: dict[Profile, Watch] = field(default_factory=dict)
    told_s: float = -TELL_S


@dataclass(frozen=True, slots=True)
class Told:
    """What canaries say of one profile of a gallery, for whoever watches."""

    gallery: GalleryName
    profile: Profile
    probes: int
    mates: int
    misses: int
    is_raised: bool


class Canaries:
    """The canaries of a node. Everything here runs on the event loop but the comparing."""

    def __init__(self, ports: CanaryPorts) -> None:
        self._ports = ports
        # Both by the uid of the gallery: a name may be given anew.
        self._collected: dict[str, _Collected] = {}
        self._watched: dict[str, _Watched] = {}
        self.given_up_count = 0
        """Probes that could not be compared."""

    @property
    def spent_s(self) -> float:
        """Time spent since the start."""
        return self._ports.budget.spent_s

    def told(self) -> list[Told]:
        """Return what is known of all profiles that were compared."""
        return [
            Told(
                watched.gallery,
                profile,
                watch.counts.probes,
                watch.counts.mates,
                watch.counts.misses,
                watch.is_raised,
            )
            for watched in self._watched.values()
            for profile, watch in watched.watches.items()
        ]

    def alarms(self, gallery: GalleryName) -> list[Profile]:
        """Return the profiles of a gallery that miss more than they may."""
        return [one.profile for one in self.told() if one.is_raised and one.gallery == gallery]

    def drifts(self) -> Mapping[GalleryName, Drift]:
        """Return what was measured last of each gallery."""
        return self._ports.drifts.latest

    def heed(self, alarm: Alarm) -> None:
        """Have something done about an alarm of another node."""
        self._ports.remedies.heed(alarm)

    def observe(
        self,
        gallery: Gallery | None,
        states: Sequence[ShardState],
        x: Float32,
        wish: Wish,
        found: Found,
    ) -> None:
        """Take probes that were just searched for as canaries, by chance. Costs a microsecond
        where none is taken.

        Args:
            gallery: whose shards they are; None: one that this node has not heard of.
            states: the shards searched.
            x: the probes, float32 [m, dim].
            wish: how they were searched.
            found: what was answered.
        """
        tuning = wish.tuning
        if gallery is None or tuning is None or _misses_nothing(tuning, wish.profile):
            return
        collected = self._collected.get(gallery.uid)
        if collected is None:
            reservoir: Reservoir[Canary] = Reservoir(BATCH_PROBES, self._ports.rng)
            collected = self._collected[gallery.uid] = _Collected(gallery.name, reservoir)
        picks = collected.reservoir.picks(len(x))
        if not picks or not _searched_by(states, tuning):
            return
        shards = tuple(
            Searched.of(state, rows_count)
            for state, rows_count in zip(states, found.rows_counts, strict=True)
        )
        for number, place in picks:
            taken = canary(
                x,
                number,
                found,
                shards,
                profile=wish.profile,
                tuning=TuningId.of(tuning),
                threshold=max(tuning.threshold, wish.threshold),
            )
            if any(np.array_equal(one.x, taken.x) for one in collected.reservoir.kept):
                # Whoever asks the same over and over is one sample, not many.
                continue
            collected.reservoir.put(place, taken)
            if collected.since_s is None:
                collected.since_s = self._ports.clock.now_s()

    async def run(self) -> None:
        """Compare and watch until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._ports.remedies.run())
            tasks.create_task(self._measure_drift())
            tasks.create_task(self._watch())
            while True:
                await self._ports.clock.sleep(TICK_S)
                await self.compare_due()

    async def compare_due(self) -> None:
        """Compare the batch that has waited longest, if one is due."""
        now_s = self._ports.clock.now_s()
        due = [
            (one.since_s, uid, one)
            for uid, one in self._collected.items()
            if one.since_s is not None
            and (one.reservoir.is_full or now_s - one.since_s >= COLLECT_S)
        ]
        if not due:
            return
        since_s, uid, collected = min(due, key=lambda entry: entry[:2])
        collected.since_s = None
        batch = collected.reservoir.take()
        comparison = Comparison(batch)
        if not await self._compared(comparison, since_s + BATCH_S_MAX):
            self.given_up_count += len(batch)
            self._ports.logger.warning(
                "canaries given up: the time for them is too short",
                gallery=collected.gallery,
                probes=len(batch),
            )
            return
        self._judge(uid, comparison)

    async def _compared(self, comparison: Comparison, deadline_s: float) -> bool:
        """Go through all pieces; tell whether there was time for it."""
        ports = self._ports
        for piece in comparison.pieces():
            while wait_s := ports.budget.wait_s():
                if ports.clock.now_s() + wait_s > deadline_s:
                    return False
                await ports.clock.sleep(wait_s)
            if comparison.is_over:
                break
            state = self._state(piece.shard)
            if state is None:
                comparison.give_up(piece.shard)
            else:
                await self._look(comparison, piece, state)
        for shard in comparison.shards:
            if self._state(shard) is None:
                comparison.give_up(shard)
        return True

    async def _look(self, comparison: Comparison, piece: Piece, state: ShardState) -> None:
        clock = self._ports.clock

        def work() -> float:
            began_s = clock.now_s()
            comparison.look(piece, state)
            return clock.now_s() - began_s

        spent_s = await asyncio.get_running_loop().run_in_executor(self._ports.thread, work)
        self._ports.budget.spend(spent_s)

    def _state(self, shard: MetShard) -> ShardState | None:
        """Return the rows of a shard if a copy of this node still serves with them, by the same
        numbers: it may have gone, or been repacked.
        """
        copy, state = self._ports.copies.get(shard.shard_id), shard.state()
        if copy is None or copy.phase is not Phase.SERVING:
            return None
        return state if copy.state is state else None

    def _judge(self, uid: str, comparison: Comparison) -> None:
        """Count what a batch showed."""
        gallery = self._gallery(uid)
        if gallery is None:
            return
        watched = self._watched.setdefault(uid, _Watched(gallery.name))
        verdicts = comparison.verdicts()
        self.given_up_count += verdicts.count(Verdict.UNKNOWN)
        by_profile: dict[Profile, list[Verdict]] = {}
        for one, verdict in zip(comparison.canaries, verdicts, strict=True):
            if verdict is Verdict.UNKNOWN:
                continue
            if gallery.tuning is None or TuningId.of(gallery.tuning) != one.tuning:
                # Nobody searches like that any more.
                self.given_up_count += 1
                continue
            by_profile.setdefault(one.profile, []).append(verdict)
        for profile, some in by_profile.items():
            self._count(watched, gallery, profile, some)

    def _count(
        self, watched: _Watched, gallery: Gallery, profile: Profile, verdicts: Sequence[Verdict]
    ) -> None:
        assert gallery.tuning is not None, "only what was tuned is compared"
        allowed, tuning = _allowed(gallery, profile), TuningId.of(gallery.tuning)
        watch = watched.watches.get(profile)
        if watch is None:
            watch = watched.watches[profile] = Watch(allowed, tuning)
        watch.take(allowed, tuning)
        misses = verdicts.count(Verdict.MISSED)
        mates = misses + verdicts.count(Verdict.FOUND)
        watch.counts.probes += len(verdicts)
        watch.counts.mates += mates
        watch.counts.misses += misses
        self._say(gallery.name, profile, watch, watch.add(mates, misses))

    def _say(
        self, gallery: GalleryName, profile: Profile, watch: Watch, change: Change | None
    ) -> None:
        """Log that an alarm begins or ends."""
        facts = {
            "gallery": gallery,
            "profile": profile.value,
            "mates": watch.window.mates,
            "misses": watch.window.misses,
            "allowed": watch.allowed,
        }
        match change:
            case Change.RAISED:
                self._ports.logger.warning("the index misses more than it may", **facts)
            case Change.CLEARED:
                self._ports.logger.info("the index misses no more than it may", **facts)
            case None:
                pass

    async def _watch(self) -> None:
        while True:
            await self._ports.clock.sleep(TICK_S)
            await self.tend()

    async def tend(self) -> None:
        """Forget what is over, and tell of alarms that stand."""
        for uid in [*self._collected, *self._watched]:
            if self._gallery(uid) is None:
                self._collected.pop(uid, None)
                self._watched.pop(uid, None)
        for uid, watched in self._watched.items():
            gallery = self._gallery(uid)
            assert gallery is not None, "others were forgotten"
            self._end(gallery, watched)
        now_s = self._ports.clock.now_s()
        for watched in [*self._watched.values()]:
            alarms = [*self._proven(watched)]
            if alarms and now_s - watched.told_s >= TELL_S:
                watched.told_s = now_s
                await self._tell(alarms[0])

    def _end(self, gallery: Gallery, watched: _Watched) -> None:
        """End alarms of profiles that miss nothing any more since they look into all lists."""
        for profile, watch in watched.watches.items():
            if gallery.tuning is None or _misses_nothing(gallery.tuning, profile):
                self._say(gallery.name, profile, watch, watch.clear())
            elif watch.is_raised:
                # What was seen of another tuning is no reason to replace this one.
                watch.take(_allowed(gallery, profile), TuningId.of(gallery.tuning))

    def _proven(self, watched: _Watched) -> Iterable[Alarm]:
        for profile, watch in watched.watches.items():
            if watch.proven:
                seen = watch.window
                yield Alarm(watched.gallery, profile, watch.tuning, seen.mates, seen.misses)

    async def _tell(self, alarm: Alarm) -> None:
        try:
            await self._ports.remedies.tell(alarm)
        except FacegridError as error:
            self._ports.logger.warning(
                "an alarm was not heard",
                gallery=alarm.gallery,
                reason=error.reason,
                problem=error.message,
            )

    async def _measure_drift(self) -> None:
        while True:
            await self._ports.clock.sleep(DRIFT_S)
            names = {copy.gallery.name for copy in self._ports.copies.values()}
            self._ports.drifts.forget(names)
            for name in sorted(names):
                await self._ports.clock.sleep(self._ports.budget.wait_s())
                await self._ports.drifts.measure(name)

    def _gallery(self, uid: str) -> Gallery | None:
        """Return the gallery of a uid as etcd has it now."""
        known = self._collected.get(uid) or self._watched.get(uid)
        gallery = None if known is None else self._ports.view.gallery(known.gallery)
        return gallery if gallery is not None and gallery.uid == uid else None


def _allowed(gallery: Gallery, profile: Profile) -> float:
    """Return the share of mates that a profile may miss."""
    return min(1.0, profile.miss_rate_max(gallery.miss_rate_max))


def _misses_nothing(tuning: Tuning, profile: Profile) -> bool:
    """Tell whether a profile looks into all lists."""
    return tuning.efforts[profile].nprobe >= tuning.nlist


def _searched_by(states: Sequence[ShardState], tuning: Tuning) -> bool:
    """Tell whether shards were searched by a tuning, all that are not searched exactly, and that
    one is.
    """
    codebooks = {state.codebook for state in states if state.index.codebook is not None}
    return codebooks == {tuning.codebook}
