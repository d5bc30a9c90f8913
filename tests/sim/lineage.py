"""Shards that take the place of others: what they must have, and what holds of both then."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from facegrid.format.log import EnrolRecord, EraseRecord, LogRecord
from facegrid.ids import ShardId, subject_key
from facegrid.model import HashRange, ShardMap
from router.plan.tiles import is_covered

if TYPE_CHECKING:
    from tests.sim.truth import Key, ShardTruth, Truth


class Lineage:
    """Knows which shards were replaced by which."""

    def __init__(self, truth: "Truth") -> None:
        self._truth = truth
        self._world = truth.world
        self._had: set[ShardId] = set()

    def map_changed(self, before: ShardMap, after: ShardMap) -> None:
        """Checker 4: shards come as pending ones, and take the place of all their sources at once,
        of which they have everything; what is gone never comes back.
        """
        require = self._world.require
        known = {shard.shard_id for shard in before.held}
        pending = {shard.shard_id: shard for shard in before.pending}
        served = {shard.shard_id for shard in before.shards}
        self._had |= known
        for shard in after.held:
            self._truth.shard(shard.shard_id).range = shard.range
            if shard.shard_id not in known:
                new = shard.shard_id not in self._had and bool(shard.sources)
                require(new, "a shard comes from nowhere", shard)
        gone = served - {shard.shard_id for shard in after.shards}
        children = [shard for shard in after.shards if shard.shard_id not in served]
        for child in children:
            require(child.shard_id in pending, "a shard serves that was not filled", child)
            sources = pending[child.shard_id].sources
            require(set(sources) <= gone, "a shard serves beside its source", child, sources)
            gone_names = [self._truth.shard(source) for source in sources]
            self._replaces(self._truth.shard(child.shard_id), gone_names)
        replaced = {one for child in children for one in pending[child.shard_id].sources}
        require(gone <= replaced, "a shard is gone, and nothing has its place", gone - replaced)
        for shard_id in known - {shard.shard_id for shard in after.held}:
            self._truth.shard(shard_id).retired_s = self._world.loop.now_s
            named = self._truth.shard(shard_id).named
            named.append((self._world.loop.now_s, frozenset()))
        if children:
            self._world.count("shapes changed")

    def _replaces(self, child: "ShardTruth", sources: "list[ShardTruth]") -> None:
        """Checker 1: whatever the sources committed is there, and nothing else is."""
        for source in sources:
            self._world.require(
                child.sources.get(source.shard_id, 0) == source.position,
                "cut over before all was brought over",
                child.shard_id,
                source.shard_id,
                child.sources,
                source.position,
            )
            self.alike(child, source, source.position)
            source.children.append(child)
            child.parents.append(source)
            for key, (position, at_s) in source.gone.items():
                if inside(child, key) and source.last_enrol.get(key, 0) < position:
                    child.gone[key] = (child.position, at_s)
        child.began_at = child.position

    def alike(self, child: "ShardTruth", source: "ShardTruth", position: int) -> None:
        """Checker 5: a child has the rows of its source at a position, as far as both may."""
        there = _part(source.lives[position], child.range)
        here = _part(child.live, source.range)
        self._world.require(
            here == there,
            "a child has other rows than its source",
            child.shard_id,
            source.shard_id,
            position,
            sorted(here.keys() ^ there.keys()),
        )

    def brought(self, child: "ShardTruth", record: LogRecord) -> None:
        """Checker 1: a record of a source comes once, in order, when that has committed it."""
        assert record.source is not None, "it was brought over"
        source = self._truth.shard(record.source.shard_id)
        before, position = child.sources.get(source.shard_id, 0), record.source.position
        self._world.require(
            before < position <= source.position,
            "a record was brought over that does not follow",
            child.shard_id,
            source.shard_id,
            before,
            position,
            source.position,
        )
        child.sources[source.shard_id] = position
        self.alike(child, source, position)
        self._world.count("records brought over")

    def done_before(self, child: "ShardTruth", request_id: str, key: "Key") -> bool:
        """Tell whether a shard carried out an enrolment in whose place this one is, for a key."""
        return any(
            request_id in one.by_request
            and isinstance(one.by_request[request_id].record, EnrolRecord)
            and inside(one, key)
            for one in ancestors(child)
        )

    def erasers(self, child: "ShardTruth", request_id: str) -> "list[ShardTruth]":
        """Return the shards in whose place one is that carried out an erasure; none unless that
        was done for all of its range.
        """
        found = [
            one
            for one in ancestors(child)
            if request_id in one.by_request
            and isinstance(one.by_request[request_id].record, EraseRecord)
        ]
        return found if is_covered(child.range, [one.range for one in found]) else []

    def erased(self, shard: "ShardTruth", key: "Key", position: int) -> None:
        """Take in that an erasure was acknowledged: it holds of the shards in this one's place,
        and of those whose place this one took, which somebody may still search.
        """
        if shard.last_enrol.get(key, 0) > position:
            return
        now_s = self._world.loop.now_s
        for one in _not_again(shard, key):
            one.gone.setdefault(key, (one.began_at, now_s))
        for one in ancestors(shard):
            if inside(one, key):
                one.gone[key] = (one.position + 1, now_s)

    def enrolled(self, shard: "ShardTruth", key: "Key") -> None:
        """Take in that a template is there again: who still has the former one is only behind."""
        for one in ancestors(shard):
            one.gone.pop(key, None)


def inside(shard: "ShardTruth", key: "Key") -> bool:
    """Tell whether a template's place is in a shard."""
    return shard.range.contains(subject_key(key[0]))


def ancestors(shard: "ShardTruth") -> "Iterator[ShardTruth]":
    """Yield the shards in whose place one is."""
    for parent in shard.parents:
        yield parent
        yield from ancestors(parent)


def _not_again(shard: "ShardTruth", key: "Key") -> "Iterator[ShardTruth]":
    """Yield the shards in one's place, as far as a template was not enrolled again in them."""
    for child in shard.children:
        if inside(child, key) and child.last_enrol.get(key, 0) <= child.began_at:
            yield child
            yield from _not_again(child, key)


def _part(live: "dict[Key, bytes]", key_range: HashRange) -> "dict[Key, bytes]":
    return {key: data for key, data in live.items() if key_range.contains(subject_key(key[0]))}
