"""What each shard is asked of one write, by the map that a router knows."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from facegrid.api.shard.v1 import shard_service_pb2 as pb
from facegrid.ids import subject_key
from facegrid.model import HashRange, ShardAssignment
from indexd.engine.requests import EnrolRequest, EraseRequest, WriteRequest

Part = tuple[ShardAssignment, Any]


def parts_of(
    request: WriteRequest, shards: Sequence[ShardAssignment], within: HashRange
) -> list[Part]:
    """Return the shards of a map that a write concerns, and what each is asked.

    Args:
        request: of a client.
        shards: of the map.
        within: where an erasure by template id looks: in every shard that has a part of this.
    """
    parts: list[Part] = []
    for shard in shards:
        part = _part(request, shard, within)
        if part is not None:
            parts.append((shard, part))
    return parts


def _part(request: Any, shard: ShardAssignment, within: HashRange) -> Any:
    rows = [
        row
        for row, subject_id in enumerate(request.subject_ids)
        if shard.range.contains(subject_key(subject_id))
    ]
    if isinstance(request, EraseRequest):
        subjects = [request.subject_ids[row] for row in rows]
        meets = shard.range.first <= within.last and within.first <= shard.range.last
        templates = request.template_ids if meets else []
        return (
            replace(request, subject_ids=subjects, template_ids=templates)
            if (subjects or templates)
            else None
        )
    if not rows:
        return None
    assert isinstance(request, EnrolRequest), "a load names segments of one shard"
    return replace(
        request,
        template_ids=[request.template_ids[row] for row in rows],
        subject_ids=[request.subject_ids[row] for row in rows],
        codes=request.codes[rows],
    )


def message_of(shard: ShardAssignment, request: Any, dim: int) -> tuple[str, Any]:
    """Return the method for a write to one shard, and the message that asks for it."""
    if isinstance(request, EraseRequest):
        return "Erase", pb.EraseRequest(
            shard_id=shard.shard_id,
            request_id=request.request_id,
            template_ids=request.template_ids,
            subject_ids=request.subject_ids,
        )
    rows = pb.StoredRows(
        template_ids=request.template_ids,
        subject_ids=request.subject_ids,
        codes=request.codes.tobytes(),
        dim=dim,
    )
    return "Append", pb.AppendRequest(
        shard_id=shard.shard_id, request_id=request.request_id, rows=rows
    )
