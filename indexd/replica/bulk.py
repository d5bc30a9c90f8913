"""The primary's part in bulk loads: segments that a loader stored are checked, then committed.

docs/rfcs/0007-bulk-load.md tells the whole of it.
"""

import asyncio
from collections.abc import Callable, Collection, Coroutine, Sequence
from dataclasses import replace
from functools import partial

from facegrid.blob.port import BlobStore
from facegrid.errors import FacegridError, InvalidError, UnavailableError
from facegrid.format.load_pin import parse_pin_name, pin_prefix
from facegrid.format.log import LoadRecord, LogGroup, LogRef
from facegrid.format.segment import segment_name, segment_prefix
from facegrid.ids import ShardId
from facegrid.rpc.together import all_of
from indexd.engine import flush, recovery, staging
from indexd.engine.flush import Persisted
from indexd.engine.loading import (
    PreparedSegment,
    ShardShape,
    check_hash,
    check_repeats,
    prepare,
)
from indexd.engine.requests import LoadRequest, NamedSegment, Outcome
from indexd.engine.state import ShardState
from indexd.replica.shard_copy import ShardCopy

FETCHED_AHEAD = 2
"""Segments fetched at a time: one is prepared while the next one comes."""


async def settle(
    future: asyncio.Future[Outcome], work: Callable[[], Coroutine[None, None, Outcome]]
) -> None:
    """Do the work, and tell whoever still waits what came of it."""
    try:
        outcome = await work()
    except FacegridError as error:
        if not future.done():
            future.set_exception(error)
    except asyncio.CancelledError:
        if not future.done():
            future.set_exception(node_stops())
        raise
    else:
        if not future.done():
            future.set_result(outcome)


def node_stops() -> UnavailableError:
    """Return the error for loads while the node ends."""
    return UnavailableError("the node is stopping", reason="NODE_STOPPING")


async def fetch(
    copy: ShardCopy, request: LoadRequest, check: Callable[[], None]
) -> list[PreparedSegment]:
    """Return the segments of a load, fetched and checked.

    Args:
        copy: of the shard that they are for.
        request: names them.
        check: raises once the load would come to nothing.

    Raises:
        CorruptError: one is missing (OBJECT_MISSING), or damaged.
        InvalidError: one is not fit for the shard, or a template stands twice (segment, row).
    """
    room = asyncio.Semaphore(FETCHED_AHEAD)
    shard_id = copy.assignment.shard_id
    shape = copy.shape

    async def one(number: int, named: NamedSegment) -> PreparedSegment:
        async with room:
            copy.check_serving()
            check()
            name = segment_name(shard_id, named.sha256)
            data = await recovery.fetch_unchecked(copy.ports.store, name)
            work = partial(_prepared, data, number, named=named, shape=shape)
            return await copy.on(copy.ports.build_thread, work)

    segments = await all_of([one(number, named) for number, named in enumerate(request.segments)])
    await copy.on(copy.ports.build_thread, partial(check_repeats, segments))
    return segments


def _prepared(
    data: bytes, number: int, *, named: NamedSegment, shape: ShardShape
) -> PreparedSegment:
    """Check a segment, and say which one it was that is not fit. For a thread."""
    check_hash(data, named.sha256, segment_name(shape.shard_id, named.sha256))
    try:
        segment = prepare(data, named.sha256, shape)
        _check_count(len(segment), named)
    except InvalidError as error:
        raise type(error)(
            f"{error.message} segment={number}",
            reason=error.reason,
            **{**error.facts, "segment": number},
        ) from error
    return segment


def _check_count(rows: int, named: NamedSegment) -> None:
    if rows != named.rows_count:
        raise InvalidError(
            f"segment has another number of rows rows={rows} expected={named.rows_count}",
            reason="LOAD_REFUSED",
        )


async def pinned(store: BlobStore, shard_id: ShardId) -> set[str]:
    """Return the names of segments that loads under way still need."""
    pins = [parse_pin_name(name) for name in await store.list(pin_prefix(shard_id))]
    return {segment_name(shard_id, pin.sha256) for pin in pins if pin is not None}


async def unpin_committed(store: BlobStore, state: ShardState, persisted: Persisted) -> None:
    """Take the pins from what bulk loads have committed, before any of it is rewritten. Not from
    what is staged: its commit may be in doubt.
    """
    hashes = {one.sha256 for one in persisted.segments} | {one.sha256 for one in state.loaded}
    await unpin(store, state.shard_id, {segment_name(state.shard_id, one) for one in hashes})


async def unpin(store: BlobStore, shard_id: ShardId, names: Collection[str]) -> None:
    """Take the pins from segments that are committed: log or manifest name them, and what a pin
    kept when they are rewritten would stay for ever, if the loader has died.
    """
    for name in await store.list(pin_prefix(shard_id)):
        pin = parse_pin_name(name)
        if pin is not None and segment_name(shard_id, pin.sha256) in names:
            await store.delete(name)


def done_before(state: ShardState, persisted: Persisted, request: LoadRequest) -> Outcome | None:
    """Return what a load did that came before; None for one that is new.

    A load from another shard is known by that shard's position; any other by its request, or, in
    a retry so late that this is not remembered any more, by its segments.
    """
    if request.step is not None:
        return None if state.follows(request.step) else Outcome(state.position)
    return state.requests.recall(request) or _committed_before(state, persisted, request)


def usable(segment: PreparedSegment, codebook: str) -> PreparedSegment:
    """Return a segment of another shard without its codes, if they are of another codebook than
    is in use here: then the rows are coded anew.
    """
    if segment.codebook == codebook:
        return segment
    return replace(segment, codebook="", encoded=None)


def _committed_before(
    state: ShardState, persisted: Persisted, request: LoadRequest
) -> Outcome | None:
    known = {one.sha256 for one in persisted.segments} | {one.sha256 for one in state.loaded}
    if not any(one.sha256 in known for one in request.segments):
        return None
    rows = sum(one.rows_count for one in request.segments)
    return Outcome(state.position, unchanged_count=rows)


def loaded(state: ShardState, persisted: Persisted) -> set[str]:
    """Return the names of segments that records of the log name, or one about to be committed."""
    known = flush.not_persisted(state, persisted.rows_count)
    names = {segment_name(state.shard_id, one.sha256) for one in known}
    if state.staged is not None:
        names |= {segment_name(state.shard_id, one.sha256) for one in state.staged.segments}
    return names


def has_loads(chain: Sequence[tuple[LogGroup, LogRef]]) -> bool:
    """Tell whether there is a bulk load among log objects."""
    return any(isinstance(record, LoadRecord) for group, _ in chain for record in group.records)


async def all_stored(store: BlobStore, group: LogGroup) -> bool:
    """Tell whether all segments are there that records of bulk loads in a log object name."""
    wanted = {
        segment_name(group.shard_id, one.sha256)
        for record in group.records
        if isinstance(record, LoadRecord)
        for one in record.segments
        if staging.brings_rows(one)
    }
    return not wanted or wanted <= set(await store.list(segment_prefix(group.shard_id)))
