"""A follower: a copy that reads what the primary committed, from the store, and serves searches.

It asks etcd for the shard's tip again and again; whatever was committed before it asked is applied
before it counts as confirmed, and only a map that has it searched confirms it (RFC 0009).
What a follower answers that could not confirm its tip for some
seconds says so, and is given only to those who accept that: a confirmed answer never contains what
was erased. So an erasure is certain once every follower has applied it, or that time has passed
(`indexd.replica.spread`).
"""

import asyncio

from typing_extensions import override

from facegrid import limits
from facegrid.coord import keys
from facegrid.coord.port import KeyValue
from facegrid.errors import CorruptError, UnavailableError
from facegrid.format.log import LogGroup, LogRef
from facegrid.format.records import decode_manifest_pointer, decode_tip
from facegrid.model import Gallery, ShardAssignment
from indexd.engine import recovery
from indexd.engine.coded import NamedCodebook
from indexd.replica import bulk
from indexd.replica.cold import committed_in_store
from indexd.replica.named import searched_on
from indexd.replica.shard_copy import NodePorts, Phase, ShardCopy
from indexd.replica.unsettled import check_not_behind

POLL_S = 0.1
"""How long after one look at the tips the next begins."""


class Follower(ShardCopy):
    """A copy that is searched and never written."""

    def __init__(
        self,
        ports: NodePorts,
        gallery: Gallery,
        assignment: ShardAssignment,
        *,
        map_version: int = 1,
    ) -> None:
        super().__init__(ports, gallery, assignment, map_version=map_version)
        self._codebook: NamedCodebook | None = None
        self._catching_up = asyncio.Lock()
        self._heritage: ShardCopy | None = None
        self._erasures_max = limits.ERASURES_NOTED
        self.guessed = False
        """Whether what was committed was told from the store alone, without etcd."""
        self.heard_position = 0
        """Of the newest tip that etcd told."""
        self.ahead: list[tuple[LogGroup, LogRef]] = []
        """Committed objects with a bulk load among them, to be applied by `take_load`."""

    @property
    @override
    def generation(self) -> int:
        """The generation that wrote the last record applied."""
        return 0 if self.state.log is None else self.state.log.generation

    def inherit(self, copy: ShardCopy) -> None:
        """Open with the rows that this process holds as a primary that it has let go."""
        self._heritage = copy

    def go_on(self, former: ShardCopy, codebook: NamedCodebook | None) -> None:
        """Serve at once with the rows of a primary of this process that has served until now, and
        changes nothing any more.

        It applied what was committed and nothing else; the rest comes with the next look. What
        etcd confirmed to it holds of its rows: who may have claimed the shard since acknowledges
        no erasure before that has run out.
        """
        self._codebook = codebook
        self.state, self.persisted = former.state, former.persisted
        self.loaded_from = former.loaded_from
        self.caught_up_s, self.confirmed_s = former.caught_up_s, former.confirmed_s
        # Of a bulk load whose commit was in doubt: if it took effect, the log brings it.
        self.state.unstage()
        self.phase = Phase.SERVING
        self.log.info("following", position=self.state.position)

    @override
    async def open(self, map_revision: int, codebook: NamedCodebook | None) -> None:
        """Load what is committed now.

        Raises:
            UnavailableError: etcd or the store cannot be reached; try again.
            CorruptError: stored bytes are damaged, or etcd is behind the store (ETCD_BEHIND).
        """
        del map_revision
        self._codebook = codebook
        former, self._heritage = self._heritage, None
        if former is not None and former.state.position:
            self.go_on(former, codebook)
            return
        await check_not_behind(
            self.ports.coord, self.ports.store, self.assignment.shard_id, self.log
        )
        await self._reload()
        self.phase = Phase.SERVING
        self.log.info("following", position=self.state.position)

    async def open_without_etcd(self, codebook: NamedCodebook | None) -> None:
        """Load what the store shows to be committed; never confirmed until etcd is back.

        Raises:
            UnavailableError: the store cannot be reached, or changes meanwhile; try again.
            CorruptError: stored bytes are damaged.
        """
        self._codebook = codebook
        try:
            found = await committed_in_store(self.ports.store, self.assignment.shard_id, self.log)
            await self.load(found.manifest, found.tip, codebook)
        except CorruptError as error:
            if error.reason not in ("OBJECT_MISSING", "LOG_BROKEN"):
                raise
            # Perhaps only this node cannot reach etcd, and what was to be read is swept meanwhile.
            raise UnavailableError(error.message, reason="STORE_UNSETTLED") from error
        self.guessed = True
        self.phase = Phase.SERVING
        self.log.warning("serving without etcd", position=self.state.position)

    async def confirm(self, tip: LogRef | None, asked_s: float, *, searched: bool = True) -> None:
        """Apply what was committed up to a tip that etcd gave when asked at a time.

        `searched` tells whether the map of the same moment, or of an earlier one after it was
        asked, has this copy searched. Not of a later one: the primary knows of this copy from a
        map before that in which it is first searched. An erasure for which it did not wait was
        committed before it knew, so it is up to the tip that was read with such a map, or after
        it; a tip read earlier may lack it.

        Raises:
            UnavailableError: etcd or the store cannot be reached, or a bulk load is ahead
                (LOAD_AHEAD): `take_load` brings it in.
            CorruptError: stored bytes are damaged.
        """
        self.heard_position = 0 if tip is None else tip.last_position
        if self._catching_up.locked():
            raise self._load_ahead()
        async with self._catching_up:
            if self.phase is not Phase.SERVING or asked_s < self.caught_up_s:
                # Let go; or loaded anew since that was asked, to a tip that is newer.
                return
            if tip != self.state.log:
                await self._catch_up(tip)
            self.guessed = False
            self.caught_up_s = max(self.caught_up_s, asked_s)
            if searched:
                self.confirmed_s = max(self.confirmed_s, asked_s)

    @property
    def forget_due(self) -> bool:
        """Whether so many erasures are noted that the journal may have some of them by now."""
        return self.phase is Phase.SERVING and len(self.state.erasures) >= self._erasures_max

    async def forget_journalled(self) -> None:
        """Forget the erasures that the committed manifest leads to: a successor finds them there.

        Raises:
            UnavailableError: etcd cannot be reached.
        """
        erasures = self.state.erasures
        item = await self.ports.coord.get(keys.manifest(self.assignment.shard_id))
        if item is not None:
            erasures.forget(decode_manifest_pointer(item.value).position)
        self._erasures_max = max(limits.ERASURES_NOTED, 2 * len(erasures))

    @override
    def handing_over(self) -> asyncio.Lock:
        """Return what to hold while the rows of this copy are exchanged, or become another's."""
        return self._catching_up

    async def come_to(self, tip: LogRef | None) -> bool:
        """Apply the log up to a tip; tell whether it led there from here. Call `handing_over`.

        Raises:
            UnavailableError: the store cannot be reached.
        """
        if self.phase is not Phase.SERVING:
            return False
        try:
            chain = await recovery.read_chain(
                self.ports.store, self.assignment.shard_id, after=self.state.log, tip=tip
            )
            await recovery.replay(self.state, chain, self.loads)
        except CorruptError:
            return False
        self.moved()
        return self.state.log == tip

    async def _catch_up(self, tip: LogRef | None) -> None:
        """Apply the log behind the present position, or load anew where it was trimmed."""
        state = self.state
        if self.guessed:
            # The last object in the store may never have been committed, and another may be.
            await check_not_behind(
                self.ports.coord, self.ports.store, self.assignment.shard_id, self.log
            )
            await self._reload()
            return
        if tip is None or tip.last_position <= state.position:
            # etcd never goes back by itself.
            raise CorruptError(
                "etcd is behind this copy, as after a restored backup: stop the nodes and run"
                f" fgctl meta recover shard={self.assignment.shard_id}",
                reason="ETCD_BEHIND",
                shard=self.assignment.shard_id,
            )
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
        if bulk.has_loads(chain):
            self.ahead = chain
            raise self._load_ahead()
        await recovery.replay(state, chain, self.loads)
        self.moved()

    async def take_load(self) -> None:
        """Apply the log that has a bulk load in it. That may take long, so it is done apart from
        the confirmations of this node's other followers; this one is not confirmed meanwhile.

        Raises:
            UnavailableError, CorruptError: as `confirm`.
        """
        async with self._catching_up:
            chain, self.ahead = self.ahead, []
            if self.phase is not Phase.SERVING:
                return
            if chain and chain[0][0].first_position == self.state.position + 1:
                try:
                    await recovery.replay(self.state, chain, self.loads)
                except CorruptError as error:
                    if error.reason != "OBJECT_MISSING":
                        raise
                    # Flushed and rewritten meanwhile.
                    await self._reload()
                self.moved()

    def _load_ahead(self) -> UnavailableError:
        shard_id = self.assignment.shard_id
        return UnavailableError(
            f"a bulk load is being brought in shard={shard_id}",
            reason="LOAD_AHEAD",
            shard=shard_id,
        )

    async def _reload(self) -> None:
        """Load manifest and log as they are now."""
        shard_id, me = self.assignment.shard_id, self.ports.claimant.node_id
        names = [keys.manifest(shard_id), keys.tip(shard_id), keys.shard_map(self.gallery.name)]
        while True:
            asked_s = self.ports.clock.now_s()
            found = {item.key: item for item in (await self.ports.coord.get_many(names)).items}
            pointer, tip, shard_map = (found.get(name) for name in names)
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
        self.caught_up_s = asked_s
        if shard_id in searched_on(shard_map, self.gallery.uid, me):
            self.confirmed_s = asked_s
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
