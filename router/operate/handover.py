"""The moment in which pending shards are compared with their sources and take their place."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from facegrid import limits, vectors
from facegrid.api.shard.v1 import shard_service_pb2 as shard_pb2
from facegrid.clock import Clock
from facegrid.errors import DeadlineError
from facegrid.format.digest import of_disjoint
from facegrid.ids import NodeId, ShardId
from facegrid.model import ShardAssignment, ShardMap
from facegrid.rpc.together import all_of
from router.operate.nodes import PROBES_COUNT, CopyTold, Nodes
from router.operate.verifying import Verdict
from router.plan.alike import MERGE_RANKS, SPLIT_RANKS, merged, sides_differ
from router.plan.decision import HandOver

MARGIN_S: Final = 0.1
"""Left of a hold for the transaction."""
AGAIN_S: Final = 0.02
PAUSE_S: Final = 5.0
"""Before a handover that failed is tried again, at first; each time twice as long. A hold takes a
second at most, so writers are held back for a sixth of the time, and less and less."""
PAUSE_S_MAX: Final = 60.0


@dataclass(frozen=True, slots=True)
class Held:
    """Sources whose writes are held back.

    Attributes:
        ends_s: until when, on the clock of this process.
        claims: the value of gen/<shard> of each.
        tips: the revision of tip/<shard> of each; 0: there is none.
        verdict: whether children and sources are alike.
    """

    ends_s: float
    claims: Mapping[ShardId, bytes]
    tips: Mapping[ShardId, int]
    verdict: Verdict


def pause_s(failures_count: int) -> float:
    """Return how long after so many failures, at least one, the next try has to wait."""
    return min(PAUSE_S * 2.0 ** min(failures_count - 1, 10), PAUSE_S_MAX)


class Comparison:
    """Holds sources and compares them with their children.

    Args:
        nodes: asks them.
        clock: for the end of the hold.
    """

    def __init__(self, nodes: Nodes, clock: Clock) -> None:
        self._nodes = nodes
        self._clock = clock

    async def probes(self, sources: Sequence[ShardAssignment], *, seed: int) -> vectors.Float32:
        """Return stored rows of the sources as probes, float32 [n, dim]; n may be 0."""
        samples = await all_of([self._nodes.sample(source, seed=seed) for source in sources])
        some = [sample for sample in samples if len(sample)]
        if not some:
            return np.zeros((0, 1), np.float32)
        return np.concatenate(some)[:: len(some)][:PROBES_COUNT]

    async def held(self, wanted: HandOver, shard_map: ShardMap, probes: vectors.Float32) -> Held:
        """Hold the sources and compare. Whoever calls it lets the writes go on, whatever happens.

        Raises:
            FacegridError: a node cannot be asked, or has too much left to bring over.
        """
        hold_s = limits.HOLD_MS_MAX / 1000
        ends_s = self._clock.now_s() + hold_s - MARGIN_S
        answers = await all_of(
            [
                self._nodes.hold(source, hold_ms=limits.HOLD_MS_MAX, timeout_s=hold_s)
                for source in wanted.sources
            ]
        )
        stands = {
            source.shard_id: answer for source, answer in zip(wanted.sources, answers, strict=True)
        }
        verdict = await self._rows(wanted.children, stands, ends_s)
        if not verdict.problem and len(probes):
            verdict = await self._answers(wanted, shard_map, probes, ends_s)
        return Held(
            ends_s,
            {shard_id: answer.claim for shard_id, answer in stands.items()},
            {shard_id: answer.tip_revision for shard_id, answer in stands.items()},
            verdict,
        )

    def left_s(self, ends_s: float) -> float:
        """Return what is left of the hold.

        Raises:
            DeadlineError: nothing is (HOLD_OVER).
        """
        left_s = ends_s - self._clock.now_s()
        if left_s <= 0:
            raise DeadlineError("the hold was too short to compare", reason="HOLD_OVER")
        return left_s

    async def _rows(
        self,
        children: Sequence[ShardAssignment],
        stands: Mapping[ShardId, shard_pb2.HoldResponse],
        ends_s: float,
    ) -> Verdict:
        """Compare counts and digests, once everything has been brought over."""
        copies = [(child.primary, child.shard_id) for child in children]
        while True:
            told = await self._nodes.told(copies)
            behind = [shard_id for shard_id in stands if _behind(shard_id, stands, told)]
            # What was told after the hold says nothing: there may have been new writes.
            self.left_s(ends_s)
            if not behind:
                break
            await self._clock.sleep(AGAIN_S)
        count = sum(copy.templates_count for copy in told.values())
        wanted = sum(answer.templates_count for answer in stands.values())
        if count != wanted:
            problem = f"the new shards have other rows than the old ones rows={count} old={wanted}"
            return Verdict(problem, final=True)
        digest = of_disjoint(copy.digest for copy in told.values())
        if digest != of_disjoint(answer.digest for answer in stands.values()):
            return Verdict("the new shards have another digest than the old ones", final=True)
        return Verdict()

    async def _answers(
        self,
        wanted: HandOver,
        shard_map: ShardMap,
        probes: vectors.Float32,
        ends_s: float,
    ) -> Verdict:
        """Compare answers to probes."""
        shards = (*wanted.sources, *wanted.children)
        found = await all_of(
            [
                self._nodes.search(
                    shard_map.gallery,
                    shard.primary,
                    shard.shard_id,
                    probes,
                    map_version=shard_map.version,
                    timeout_s=self.left_s(ends_s),
                )
                for shard in shards
            ]
        )
        lists = [answer.lists for answer in found]
        old = merged(lists[: len(wanted.sources)])
        new = merged(lists[len(wanted.sources) :])
        ranks = SPLIT_RANKS if len(wanted.sources) == 1 else MERGE_RANKS
        if difference := sides_differ(old, new, ranks=ranks):
            return Verdict(f"the new shards answer probes differently {difference}")
        return Verdict()


def _behind(
    shard_id: ShardId,
    stands: Mapping[ShardId, shard_pb2.HoldResponse],
    told: Mapping[tuple[NodeId, ShardId], CopyTold],
) -> bool:
    """Tell whether a child has not all of a source. Each child is filled from all sources."""
    end = stands[shard_id].position
    return any(copy.sources.get(shard_id, 0) < end for copy in told.values())
