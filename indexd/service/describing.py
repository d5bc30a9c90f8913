"""What a node says of the shards that it holds."""

from collections.abc import Sequence

from facegrid.api.shard.v1 import shard_service_pb2 as pb
from facegrid.format import digest as digests
from facegrid.tuning import Profile
from facegrid.tuning_messages import to_profile_message
from indexd.ann.gpu.unit import Unit
from indexd.engine.state import ShardState
from indexd.replica.primary import Primary
from indexd.replica.shard_copy import Phase, ShardCopy

_STATES = {
    Phase.OPENING: pb.SHARD_STATE_OPENING,
    Phase.SERVING: pb.SHARD_STATE_SERVING,
    Phase.FENCED: pb.SHARD_STATE_FENCED,
    Phase.CLOSED: pb.SHARD_STATE_FENCED,
    Phase.FAILED: pb.SHARD_STATE_FAILED,
}


def shard_status(copy: ShardCopy, alarms: Sequence[Profile] = ()) -> pb.ShardStatus:
    """Describe one shard, of whose gallery some profiles miss more than they may.

    `map_version` is that of the map by which the copy acts: once a primary tells a version, every
    erasure that it acknowledges from then on has waited for the copies of that map, or was
    committed before it knew them. `confirmed` is about searches where the map has the copy
    searched, and else about whether it has everything.
    """
    state = copy.state
    return pb.ShardStatus(
        shard_id=copy.assignment.shard_id,
        gallery=copy.gallery.name,
        state=_STATES[copy.phase],
        role=pb.SHARD_ROLE_PRIMARY if isinstance(copy, Primary) else pb.SHARD_ROLE_FOLLOWER,
        generation=copy.generation,
        position=state.position,
        templates_count=state.templates_count,
        subjects_count=len(state.subjects),
        erased_count=state.erased_count,
        indexed_count=state.index.indexed_count,
        codebook=state.codebook,
        memory_bytes=state.memory_bytes,
        digest=digests.to_bytes(state.digest).hex(),
        segments_count=len(copy.persisted.segments),
        problem=copy.problem,
        confirmed=copy.confirmed if copy.searched else copy.caught_up,
        map_version=copy.map_version,
        sources=[
            pb.SourcePosition(shard_id=source, position=position)
            for source, position in sorted(state.sources.items())
        ],
        stored_bytes=stored_bytes(state),
        canary_alarms=[to_profile_message(profile) for profile in alarms],
    )


def device_status(unit: Unit) -> pb.DeviceStatus:
    """Describe a device."""
    counts = unit.counts
    return pb.DeviceStatus(
        name=unit.name,
        memory_total_bytes=unit.ledger.total_bytes,
        memory_taken_bytes=unit.ledger.taken_bytes,
        shards_count=unit.shards_count,
        searches_count=counts.searches,
        failures_count=counts.failures,
        shards_left_count=counts.moved_away,
        lost=unit.lost,
    )


def stored_bytes(state: ShardState) -> int:
    """Return about how many bytes a node reads from the store to have this shard: a row is stored
    once, in the log or in a segment, with its ids and, where there is a codebook, its codes.
    """
    ids = state.subjects.memory_bytes + state.templates.memory_bytes
    codes = state.dim // 8 * state.index.indexed_count
    return state.rows_count * state.dim + codes + ids
