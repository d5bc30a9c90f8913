"""Proposes this node as the primary of shards whose primary has gone: what of takeover waits.

A proposal is one transaction that replaces a gallery's map, guarded by its revision. Of several
nodes that propose, one succeeds. What follows is what follows from any map: the node that finds
itself primary claims the shard.
"""

from collections.abc import Callable, Collection

from facegrid.coord import keys
from facegrid.coord.port import Coordinator, Guard, Put
from facegrid.errors import FacegridError
from facegrid.format.records import decode_node, encode_shard_map
from facegrid.ids import NodeId, ShardId
from facegrid.telemetry.log import Logger
from indexd.replica.shard_copy import NodePorts
from indexd.replica.takeover import Absences, Proposal, Rules, Standing, decide
from indexd.replica.view import View

LOOK_S = 0.5
"""How often to look for primaries that have gone."""


class Succession:
    """Watches over the primaries of the shards that this node could take.

    Args:
        me: this node.
        view: what etcd tells.
        rules: how patient to be; None: never take over.
        ready: returns the shards that this node follows and serves.
    """

    def __init__(
        self,
        me: NodeId,
        view: View,
        rules: Rules | None,
        ready: Callable[[], Collection[ShardId]],
    ) -> None:
        self._me = me
        self._view = view
        self._rules = rules
        self._ready = ready

    async def run(self, ports: NodePorts) -> None:
        """Look and propose until cancelled."""
        coord, clock, logger = ports.coord, ports.clock, ports.logger
        if self._rules is None:
            return
        absences = Absences(self._rules, calm_until_s=clock.now_s() + self._rules.calm_s)
        told = ""
        while True:
            await clock.sleep(LOOK_S)
            if not self._view.complete:
                continue
            now_s = clock.now_s()
            standing = Standing(
                me=self._me,
                maps=self._view.maps(),
                registered=self._view.registered(),
                ready=self._ready(),
            )
            absences.note(
                mapped={n for m in standing.maps for s in m.shard_map.held for n in s.holders},
                registered=standing.registered,
                heard_s=self._view.heard_s.get(keys.NODES, float("-inf")),
                now_s=now_s,
            )
            verdict = decide(standing, absences, now_s)
            if verdict.held != told:
                told = verdict.held
                logger.warning("takeover held back", reason=told or "no longer")
            for proposal in verdict.proposals:
                if await self._propose(proposal, coord, logger):
                    ports.tally.takeovers_count += len(proposal.taken)

    async def _propose(self, proposal: Proposal, coord: Coordinator, logger: Logger) -> bool:
        """Put a map in the place of the one it was made from, while the absent are absent; tell
        whether it is known to be in force.
        """
        gallery = proposal.shard_map.gallery
        try:
            # The watch may not have told yet that one of them is back, under a new key.
            there = {decode_node(i.value).node_id for i in (await coord.list(keys.NODES)).items}
            if there & set(proposal.absent):
                return False
            result = await coord.txn(
                [
                    Guard(keys.shard_map(gallery), proposal.map_revision),
                    *(Guard(key, 0) for key in self._view.former_registrations(proposal.absent)),
                ],
                [Put(keys.shard_map(gallery), encode_shard_map(proposal.shard_map))],
            )
        except FacegridError as error:
            # If it was carried out all the same, the watch tells.
            logger.warning("takeover in doubt", gallery=gallery, reason=error.reason)
            return False
        if result.succeeded:
            logger.warning(
                "took over",
                gallery=gallery,
                shards=list(proposal.taken),
                absent=list(proposal.absent),
                map_version=proposal.shard_map.version,
            )
        return result.succeeded
