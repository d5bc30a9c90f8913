"""Comparing joining copies with their primary, before anybody searches them."""

from dataclasses import dataclass
from typing import Final

from facegrid import limits
from facegrid.clock import Clock
from facegrid.ids import NodeId
from facegrid.model import ShardAssignment, ShardMap
from facegrid.rpc.together import all_of
from router.operate.nodes import CALL_S, CopyTold, Found, Nodes
from router.plan.alike import copies_differ

MEET_S: Final = 1.0
"""How long both sides are asked, in the hope that neither was written to in between."""
AGAIN_S: Final = 0.1
APART: Final = "waits for the copy to come to the primary's position"
HELD_MS: Final = limits.HOLD_MS_MAX // 2
"""How long writes are held back where they never stop for long enough."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of a comparison: nothing where they are alike; else why not, and whether trying
    again is of no use.
    """

    problem: str = ""
    final: bool = False


class Verifier:
    """Compares copies.

    Args:
        nodes: asks them.
        clock: waits between tries.
    """

    def __init__(self, nodes: Nodes, clock: Clock) -> None:
        self._nodes = nodes
        self._clock = clock

    async def copies(
        self,
        shard_map: ShardMap,
        shard: ShardAssignment,
        node_ids: tuple[NodeId, ...],
        *,
        hold_ms: int,
    ) -> Verdict:
        """Compare copies of a shard with its primary: their digest at the same position, and their
        answers to sampled probes, which must be exactly the same.

        Args:
            shard_map: the present one.
            shard: of it.
            node_ids: whose copies.
            hold_ms: how long writes may be held back, if they never stop for long enough.

        Raises:
            FacegridError: a node cannot be asked.
        """
        ends_s = self._clock.now_s() + MEET_S
        left, verdict = await self._until(ends_s, shard_map, shard, node_ids)
        if not left or verdict.final or not hold_ms:
            return verdict
        try:
            await self._nodes.hold(shard, hold_ms=hold_ms, timeout_s=CALL_S)
            ends_s = self._clock.now_s() + hold_ms / 1000
            _, verdict = await self._until(ends_s, shard_map, shard, left)
        finally:
            await self._nodes.release([shard])
        return verdict

    async def _until(
        self,
        ends_s: float,
        shard_map: ShardMap,
        shard: ShardAssignment,
        node_ids: tuple[NodeId, ...],
    ) -> tuple[tuple[NodeId, ...], Verdict]:
        """Compare copies again and again; return those that were not alike yet, and why."""
        left = node_ids
        while True:
            verdicts = {one: await self._meeting(shard_map, shard, one) for one in left}
            left = tuple(one for one in left if verdicts[one].problem)
            problems = [verdicts[one] for one in left]
            # What cannot become right comes first.
            problems.sort(key=lambda verdict: not verdict.final)
            if not problems or problems[0].final or self._clock.now_s() >= ends_s:
                return left, problems[0] if problems else Verdict()
            await self._clock.sleep(AGAIN_S)

    async def _meeting(
        self, shard_map: ShardMap, shard: ShardAssignment, node_id: NodeId
    ) -> Verdict:
        """Ask both sides once. What was asked at different positions says nothing."""
        where = f"shard={shard.shard_id} node={node_id}"
        pair = (shard.primary, shard.shard_id), (node_id, shard.shard_id)
        told = await self._nodes.told(pair)
        primary = told[pair[0]]
        verdict = _rows(primary, told[pair[1]], where)
        if verdict.problem:
            return verdict
        found = await self._found(shard_map, shard, node_id, seed=primary.position)
        return Verdict() if found is None else _answers(*found, where)

    async def _found(
        self, shard_map: ShardMap, shard: ShardAssignment, node_id: NodeId, *, seed: int
    ) -> tuple[Found, Found] | None:
        """Return what primary and copy find; None where there is nothing to be found."""
        probes = await self._nodes.sample(shard, seed=seed)
        if not len(probes):
            return None
        first, second = await all_of(
            [
                self._nodes.search(
                    shard_map.gallery,
                    node,
                    shard.shard_id,
                    probes,
                    map_version=shard_map.version,
                )
                for node in (shard.primary, node_id)
            ]
        )
        return first, second


def _rows(primary: CopyTold, copy: CopyTold, where: str) -> Verdict:
    if primary.position != copy.position:
        return Verdict(f"{APART} {where}")
    if (primary.digest, primary.templates_count) != (copy.digest, copy.templates_count):
        return Verdict(f"the copy has another digest than the primary {where}", final=True)
    if primary.codebook != copy.codebook:
        return Verdict(f"waits for the copy to search with the primary's codebook {where}")
    return Verdict()


def _answers(primary: Found, copy: Found, where: str) -> Verdict:
    if primary.position != copy.position:
        return Verdict(f"{APART} {where}")
    if difference := copies_differ(primary.lists, copy.lists):
        # Not final: one of the two may just be bringing its index up to date.
        return Verdict(f"the copy answers probes differently {difference} {where}")
    return Verdict()
