"""One batch of probes, asked of all shards of a gallery at one version of its map."""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from facegrid.api.shard.v1 import shard_service_pb2 as shard_pb2
from facegrid.clock import Clock
from facegrid.errors import DeadlineError, FacegridError, InvalidError, UnavailableError
from facegrid.ids import NodeId, ShardId
from facegrid.model import ShardAssignment, Token
from router.dispatch.hedge import Call, Hedger, given_up
from router.dispatch.map_news import PASSES_MAX, MapNews
from router.dispatch.positions import Positions
from router.dispatch.question import (
    Answer,
    Failure,
    Heard,
    Question,
    demanded,
    heard_from,
    joined,
    scanned_share,
    search_request,
)
from router.dispatch.time_left import time_for_node_s
from router.plan import fanout, merge, tiles
from router.plan.confirmed import UNCONFIRMED, Unconfirmed
from router.plan.standing import not_of
from router.topology.directory import unknown_gallery
from router.topology.pool import NodePool
from router.topology.snapshot import ServedGallery, Topology
from router.topology.watcher import Watcher


@dataclass(frozen=True, slots=True, eq=False)
class _Pass:
    """One pass over the copies of a gallery's shards; each copy is asked for a shard once.

    Attributes:
        topology: says where nodes are.
        served: the gallery with the map that the answer will be of.
        question: what is asked.
        deadline_s: until when.
        accepting: whether answers that cannot be confirmed are taken.
        last: whether nothing comes after it, so that even a silent node is waited for.
        asked: whom not to ask for a shard, or not before all others.
        failed: what went wrong with a shard, copy by copy.
    """

    topology: Topology
    served: ServedGallery
    question: Question
    deadline_s: float
    accepting: bool
    last: bool = False
    asked: dict[ShardId, set[NodeId]] = field(default_factory=dict)
    failed: dict[ShardId, list[Failure]] = field(default_factory=dict)

    def open_copies(self, shard: ShardAssignment) -> bool:
        """Tell whether a shard has copies not asked for it yet."""
        return not self.asked.get(shard.shard_id, set()).issuperset(shard.node_ids)

    def told(self, failure: Failure) -> Failure:
        """Return what to tell of a shard that was not searched: that a copy could not confirm its
        answer, since the caller can do something about that; else what failed last.
        """
        refused = [
            item
            for item in self.failed.get(failure.shard_id, ())
            if item.error.reason == UNCONFIRMED
        ]
        return refused[-1] if refused else failure


@dataclass(slots=True)
class SearchCounts:
    """Batches searched so far, their probes, how often one was begun anew since the map was
    another by then, and how many answers were less than whole or not all confirmed.
    """

    batches: int = 0
    probes: int = 0
    restarts: int = 0
    partial: int = 0
    unconfirmed: int = 0

    def note(self, answer: Answer, probes_count: int) -> None:
        """Count a batch that was answered."""
        self.batches += 1
        self.probes += probes_count
        self.partial += answer.coverage.share < 1
        self.unconfirmed += answer.coverage.unconfirmed_share > 0


class Searcher:
    """Asks nodes and brings their answers together.

    Args:
        watcher: holds the topology.
        pool: reaches the nodes.
        clock: for what is left of deadlines.
        positions: told how far the shards have come.
        hedger: asks second copies where first ones are slow or silent.
    """

    def __init__(
        self,
        watcher: Watcher,
        pool: NodePool,
        clock: Clock,
        *,
        positions: Positions,
        hedger: Hedger,
    ) -> None:
        self._watcher = watcher
        self._pool = pool
        self._clock = clock
        self._positions = positions
        self._hedger = hedger
        self._news = MapNews(watcher, clock)
        self._turn = 0
        self.counts = SearchCounts()

    async def search(self, question: Question, *, deadline_s: float) -> Answer:
        """Return the merged answer with its coverage, which may be less than the whole.

        A shard is asked of one copy after the other until one answers. What no copy could confirm
        is asked for once more where the caller takes it unconfirmed; what failed otherwise, after
        a moment in which a newer topology may come, or the newer map that a node told of. A newer
        map starts over, so that an answer is always of one map. While a map is new, what failed
        is asked for again and again, since nodes may not have acted on it yet.

        Raises:
            InvalidError: a node refused the question itself.
            NotFoundError: there is no such gallery any more.
        """
        known_failing = self._pool.failing()
        present = self._first_pass(question, deadline_s)
        heard = await self._gather(present, present.served.shard_map.shards)
        for _ in range(PASSES_MAX - 1):
            _raise_invalid(heard)
            told = [present.told(item) for item in heard.failures]
            if not _worth_another_pass(
                heard.failures, told, question, known_failing
            ) and not self._hopeful(present, heard.failures):
                break
            following = await self._next_pass(present, told)
            if following is None:
                break
            shards = following.served.shard_map.shards
            if following.last:
                again = {item.shard_id for item in told}
                shards = tuple(shard for shard in shards if shard.shard_id in again)
                heard = heard.without(again)
            else:
                heard = Heard()
                self.counts.restarts += 1
            present = following
            heard += await self._gather(present, shards)
        _raise_invalid(heard)
        answer = self._answer(present, heard)
        self.counts.note(answer, question.rows_count)
        return answer

    def _hopeful(self, present: _Pass, failures: Sequence[Failure]) -> bool:
        """Tell whether what failed may do better on a newer map, or soon, the map being new."""
        if not failures or any(isinstance(item.error, DeadlineError) for item in failures):
            return False
        heard = [item.error for failed in present.failed.values() for item in failed]
        return self._news.hopeful(present.served, heard)

    def _first_pass(self, question: Question, deadline_s: float) -> _Pass:
        topology = self._watcher.topology
        at_once = question.unconfirmed is Unconfirmed.TAKEN and not self._watcher.confirmed
        return _Pass(topology, _served(topology, question), question, deadline_s, at_once)

    async def _next_pass(self, before: _Pass, told: Sequence[Failure]) -> _Pass | None:
        """Return the pass that may do better: over a newer map, or once more over copies that may
        answer now. None: there is nothing more to be done.
        """
        errors = [item.error for failed in before.failed.values() for item in failed]
        insists = before.question.unconfirmed is Unconfirmed.REFUSED
        if insists or any(item.error.reason != UNCONFIRMED for item in told):
            await self._news.wait(
                before.served, before.topology, errors, deadline_s=before.deadline_s
            )
        newer = self._first_pass(before.question, before.deadline_s)
        if newer.served.shard_map != before.served.shard_map:
            return newer
        if before.last and not self._news.settling(before.served):
            return None
        return _Pass(
            newer.topology,
            newer.served,
            before.question,
            before.deadline_s,
            accepting=before.question.unconfirmed is not Unconfirmed.REFUSED,
            last=True,
            asked={
                item.shard_id: {
                    failure.node_id
                    for failure in before.failed.get(item.shard_id, ())
                    if failure.error.reason != UNCONFIRMED
                }
                for item in told
            },
        )

    def _answer(self, done: _Pass, heard: Heard) -> Answer:
        question = done.question
        covered = tiles.coverage(
            (shard.range for answer in heard.answers for shard in answer.shards),
            shards_count=len(done.served.shard_map.shards),
            unconfirmed=(
                shard.range
                for answer in heard.answers
                for shard in answer.shards
                if shard.shard_id in answer.unconfirmed
            ),
        )
        return Answer(
            merge.merge(
                [answer.part for answer in heard.answers],
                probes_count=question.rows_count,
                k=question.k,
                threshold=question.threshold,
            ),
            replace(covered, scanned_share=scanned_share(heard.answers)),
            done.served.shard_map.version,
            tuple(done.told(item) for item in heard.failures),
        )

    async def _gather(self, present: _Pass, shards: Sequence[ShardAssignment]) -> Heard:
        """Ask for shards, one call per node, all at once; then others for what these refuse."""
        self._turn += 1
        avoid: Mapping[ShardId, Collection[NodeId]] = present.asked
        if present.question.positions:
            avoid = self._avoiding_followers(present, shards)
        groups = fanout.group_by_node(
            shards, loads=self._pool.loads(), avoid=avoid, turn=self._turn
        )
        for node_id, members in groups.items():
            for shard in members:
                present.asked.setdefault(shard.shard_id, set()).add(node_id)
        asked = [self._of_node(present, node_id, members) for node_id, members in groups.items()]
        if not asked:
            return Heard()
        async with asyncio.TaskGroup() as group:
            # The first one by this task: every search would need one task more.
            tasks = [group.create_task(one) for one in asked[1:]]
            heard = await asked[0]
        return sum((task.result() for task in tasks), heard)

    def _avoiding_followers(
        self, present: _Pass, shards: Sequence[ShardAssignment]
    ) -> Mapping[ShardId, Collection[NodeId]]:
        """Return whom to avoid: besides those asked, followers that may not have a position yet,
        as long as the primary can be asked.
        """
        avoid: dict[ShardId, Collection[NodeId]] = {}
        for shard in shards:
            asked = present.asked.get(shard.shard_id, set())
            least = present.question.positions.get(shard.shard_id, 0)
            behind = () if shard.primary in asked else self._positions.behind(shard, least)
            avoid[shard.shard_id] = {*asked, *behind}
        return avoid

    async def _of_node(
        self, present: _Pass, node_id: NodeId, shards: Sequence[ShardAssignment]
    ) -> Heard:
        """Ask a node for shards, others too where it is slow or silent, and then others for what
        it does not have.
        """
        others = [shard for shard in shards if present.open_copies(shard)]
        request = self._request(present, node_id, shards)
        may_wait = self._positions.may_wait(node_id, demanded(request))
        patient = present.last or all(len(shard.node_ids) == 1 for shard in shards)
        heard = await self._hedger.first_of(
            Call(
                node_id,
                kind=f"search {present.question.gallery}",
                may_wait=may_wait,
                ask=lambda: self._ask(present, node_id, shards, request, may_wait=may_wait),
                elsewhere=(lambda: self._gather(present, others)) if others else None,
                give_up=None if patient else (lambda: _silent(present, node_id, shards)),
                whole=lambda outcome: not outcome.failures and outcome.shards_count == len(shards),
                joined=joined,
            )
        )
        failed = {item.shard_id for item in heard.failures if not _is_final(item.error)}
        again = [
            shard for shard in shards if shard.shard_id in failed and present.open_copies(shard)
        ]
        if not again:
            return heard
        heard = heard.without({shard.shard_id for shard in again})
        return heard + await self._gather(present, again)

    def _request(
        self, present: _Pass, node_id: NodeId, shards: Sequence[ShardAssignment]
    ) -> shard_pb2.SearchRequest:
        trusts = {
            shard.shard_id: shard_pb2.Trust(
                primary_boot_id=self._watcher.vouched_boot_id(shard.shard_id, node_id),
                unconfirmed_accepted=present.accepting,
            )
            for shard in shards
        }
        return search_request(present.question, present.served.shard_map.version, shards, trusts)

    async def _ask(
        self,
        present: _Pass,
        node_id: NodeId,
        shards: Sequence[ShardAssignment],
        request: shard_pb2.SearchRequest,
        *,
        may_wait: bool,
    ) -> Heard:
        """Ask one node. Errors are values here, so that one node's never cancels the others."""
        try:
            response = await self._pool.search(
                present.topology,
                node_id,
                request,
                timeout_s=time_for_node_s(present.deadline_s, self._clock),
                may_wait=may_wait,
            )
            heard = heard_from(node_id, shards, request, response)
        except FacegridError as error:
            heard = Heard(
                failures=tuple(Failure(shard.shard_id, node_id, error) for shard in shards)
            )
        else:
            self._positions.note(
                node_id, ((ShardId(item.shard_id), item.position) for item in response.searched)
            )
        return _noted(present, heard)


def _noted(present: _Pass, heard: Heard) -> Heard:
    """Remember what failed in this pass."""
    for item in heard.failures:
        present.failed.setdefault(item.shard_id, []).append(item)
    return heard


def _silent(present: _Pass, node_id: NodeId, shards: Sequence[ShardAssignment]) -> Heard:
    error = given_up(node_id)
    return _noted(
        present,
        Heard(failures=tuple(Failure(shard.shard_id, node_id, error) for shard in shards)),
    )


def _served(topology: Topology, question: Question) -> ServedGallery:
    served = topology.galleries.get(question.gallery)
    if served is None:
        raise unknown_gallery(question.gallery)
    foreign = not_of(served.shard_map, Token(question.positions))
    if foreign is not None:
        # The token was of this gallery when the call began, and others may be in the batch.
        raise UnavailableError(
            f"the gallery was replaced during the call gallery={question.gallery} shard={foreign}",
            reason="GALLERY_REPLACED",
            gallery=question.gallery,
        )
    return served


def _is_final(error: FacegridError) -> bool:
    """Tell whether no other copy will do better: the question is wrong, or the time is over."""
    return isinstance(error, InvalidError | DeadlineError)


def _raise_invalid(heard: Heard) -> None:
    for item in heard.failures:
        if isinstance(item.error, InvalidError):
            raise item.error


def _worth_another_pass(
    failures: Sequence[Failure],
    told: Sequence[Failure],
    question: Question,
    known_failing: Collection[NodeId],
) -> bool:
    """Tell whether asking again may help: not once the time is over, nor where nothing but
    confirmation is missing and the caller insists on it, nor if all that failed were failing
    before they were asked.
    """
    if not failures or any(isinstance(item.error, DeadlineError) for item in failures):
        return False
    if any(item.error.reason == UNCONFIRMED for item in told):
        insists = question.unconfirmed is Unconfirmed.REFUSED
        return not insists or any(item.error.reason != UNCONFIRMED for item in told)
    return any(item.node_id not in known_failing for item in failures)
