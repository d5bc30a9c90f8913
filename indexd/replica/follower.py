"""A follower: a copy that reads what the primary committed, from the store, and serves searches.

It asks etcd for the shard's tip again and again; whatever was committed before it asked is applied
before it counts as confirmed. A follower that could not confirm its tip for STALENESS_S stops
serving: from then on it cannot return what was erased meanwhile. So an erasure is certain once
every follower has applied it, or that time has passed (`indexd.replica.spread`).
"""

import asyncio

from typing_extensions import override

from facegrid.coord import keys
from facegrid.coord.port import KeyValue
from facegrid.errors import CorruptError, UnavailableError
from facegrid.format.log import LogRef
from facegrid.format.records import decode_manifest_pointer, decode_tip
from facegrid.model import Gallery, ShardAssignment
from indexd.engine import recovery
from indexd.engine.coded import NamedCodebook
from indexd.replica.shard_copy import NodePorts, Phase, ShardCopy

STALENESS_S = 3.0
"""How long a follower serves after it last confirmed its tip."""
POLL_S = 0.1
"""How long after one look at the tips the next begins."""


class Follower(ShardCopy):
    """A copy that is searched and never written."""

    def __init__(self, ports: NodePorts, gallery: Gallery, assignment: ShardAssignment) -> None:
        super().__init__(ports, gallery, assignment)
        self._confirmed_s = 0.0
        self._codebook: NamedCodebook | None = None
        self._catching_up = asyncio.Lock()

    @property
    @override
    def generation(self) -> int:
        """The generation that wrote the last record applied."""
        return 0 if self.state.log is None else self.state.log.generation

    @override
    async def open(self, map_revision: int, codebook: NamedCodebook | None) -> None:
        """Load what is committed now.

        Raises:
            UnavailableError: etcd or the store cannot be reached; try again.
            CorruptError: stored bytes are damaged.
        """
        del map_revision
        self._codebook = codebook
        await self._reload()
        self.phase = Phase.SERVING
        self.log.info("following", position=self.state.position)

    @override
    def check_serving(self) -> None:
        """Raise unless the shard can answer now, and is known not to be behind."""
        super().check_serving()
        age_s = self.ports.clock.now_s() - self._confirmed_s
        if age_s > STALENESS_S:
            raise UnavailableError(
                f"follower may be behind shard={self.assignment.shard_id}"
                f" confirmed_ago_s={age_s:.1f}",
                reason="FOLLOWER_STALE",
                shard=self.assignment.shard_id,
            )

    async def confirm(self, tip: LogRef | None, asked_s: float) -> None:
        """Apply what was committed up to a tip that etcd gave when asked at a time.

        Raises:
            UnavailableError: the store cannot be reached.
            CorruptError: stored bytes are damaged.
        """
        async with self._catching_up:
            if tip is not None and tip != self.state.log:
                await self._catch_up(tip)
            self._confirmed_s = max(self._confirmed_s, asked_s)

    async def _catch_up(self, tip: LogRef) -> None:
        """Apply the log behind the present position, or load anew where it was trimmed."""
        state = self.state
        if tip.last_position <= state.position:
            return
        try:
            chain = await recovery.read_chain(
                self.ports.store, self.assignment.shard_id, after=state.log, tip=tip
            )
        except CorruptError as error:
            if error.reason != "OBJECT_MISSING":
                raise
            # The primary has flushed and trimmed: what was in the log is in its segments now.
            await self._reload()
            return
        recovery.replay(state, chain)
        self.moved()

    async def _reload(self) -> None:
        """Load manifest and log as they are now."""
        shard_id = self.assignment.shard_id
        while True:
            asked_s = self.ports.clock.now_s()
            pointer = await self.ports.coord.get(keys.manifest(shard_id))
            tip = await self.ports.coord.get(keys.tip(shard_id))
            try:
                await self.load(
                    None if pointer is None else decode_manifest_pointer(pointer.value),
                    None if tip is None else decode_tip(tip.value).log,
                    self._codebook,
                )
            except CorruptError:
                if not await self._manifest_moved(pointer):
                    raise
            else:
                break
        self._confirmed_s = asked_s
        self.moved()

    async def _manifest_moved(self, before: KeyValue | None) -> bool:
        """Tell whether the primary flushed meanwhile, so that what was to be read may be gone."""
        now = await self.ports.coord.get(keys.manifest(self.assignment.shard_id))
        return now != before

    @override
    async def use_codebook(self, named: NamedCodebook) -> None:
        """Build an index with a codebook while the old one serves, then swap."""
        self._codebook = named
        await super().use_codebook(named)

    @override
    async def close(self) -> None:
        """Let go."""
        self.phase = Phase.CLOSED

    @override
    async def abandon(self) -> None:
        """Let go."""
        self.phase = Phase.CLOSED
