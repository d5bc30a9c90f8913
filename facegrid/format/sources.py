"""How far other shards have been brought into one, see docs/rfcs/0009-resharding.md."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from facegrid.api.storage.v1 import storage_pb2
from facegrid.format.checks import SOURCES, require
from facegrid.ids import KEY_LAST, ShardId
from facegrid.model import HashRange

FEATURE: Final = SOURCES
"""What an object with such positions requires of its reader: who ignored them would bring records
in twice, or take a copy for one that has everything."""


@dataclass(frozen=True, slots=True, order=True)
class SourcePosition:
    """A shard that is brought into another, and its last record that has part or none there."""

    shard_id: ShardId
    position: int


@dataclass(frozen=True, slots=True)
class InheritedRequest:
    """A request that another shard carried out for the keys of a range. It is done there, whatever
    was erased since: when it comes again it changes nothing in that range.
    """

    request_id: str
    range: HashRange


def inherited_to_message(request: InheritedRequest) -> storage_pb2.InheritedRequest:
    """Return an inherited request as it is stored."""
    return storage_pb2.InheritedRequest(
        request_id=request.request_id, first=request.range.first, last=request.range.last
    )


def inherited_from_message(message: storage_pb2.InheritedRequest, what: str) -> InheritedRequest:
    """Return a stored inherited request; CorruptError if it cannot be one."""
    require(bool(message.request_id), what, "an inherited request without id")
    require(
        message.first <= message.last <= KEY_LAST, what, "range of an inherited request is empty"
    )
    return InheritedRequest(message.request_id, HashRange(message.first, message.last))


def source_to_message(source: SourcePosition) -> storage_pb2.SourcePosition:
    """Return a position as it is stored."""
    problem = source_problem(source)
    assert not problem, problem
    return storage_pb2.SourcePosition(shard_id=source.shard_id, position=source.position)


def source_from_message(message: storage_pb2.SourcePosition, what: str) -> SourcePosition:
    """Return a stored position; CorruptError if it cannot be one."""
    source = SourcePosition(ShardId(message.shard_id), message.position)
    problem = source_problem(source)
    require(not problem, what, problem)
    return source


def source_problem(source: SourcePosition) -> str:
    """Say what is wrong with a position; empty when nothing is."""
    if not source.shard_id or source.position < 1:
        return f"source={source.shard_id[:80]!r} position={source.position}"
    return ""


def sources_problem(sources: Sequence[SourcePosition]) -> str:
    """Say what is wrong with the sources of a shard; empty when each stands once, sorted."""
    names = [source.shard_id for source in sources]
    return "" if names == sorted(set(names)) else "sources are not sorted, or one stands twice"


def features(*, sources: bool) -> list[str]:
    """Return the features that an object requires."""
    return [FEATURE] if sources else []
