"""The loader: stores all segments of an input, then commits them shard by shard.

Every step is noted in the journal before the next begins, and every step may be repeated. So a
load that was killed anywhere goes on when it is run again, and loads no row twice.
"""

import asyncio
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, Protocol, TypeVar

from facegrid.blob.port import BlobStore
from facegrid.errors import (
    ConflictError,
    CorruptError,
    FacegridError,
    InvalidError,
    NotFoundError,
)
from facegrid.ids import ShardId
from facegrid.rpc.together import all_of
from facegrid.vectors import Int64
from fgctl.bulk.cut import Chunk, ChunkSource, Repeats, cut, pair_hashes, split, suspects
from fgctl.bulk.journal import Journal, Parameters, Progress, ShardCounts
from fgctl.bulk.publish import Committed, LoadStore
from fgctl.bulk.segments import StoredSegment

THREADS: Final = 2
"""Chunks worked on at a time: hashing and arithmetic let go of the interpreter."""
COMMITS_AT_ONCE: Final = 4

REFUSALS: Final = (InvalidError, NotFoundError, CorruptError)
"""What a shard says that has taken nothing; after all other errors the outcome is open."""
INPUT_CHANGED: Final = "an input has changed since it was begun"

T = TypeVar("T")


class Commit(Protocol):
    """What LoadCommitter.commit does."""

    async def __call__(
        self, gallery: str, load_id: str, segments: Sequence[StoredSegment]
    ) -> Committed:
        """Commit the segments of one shard."""
        ...


@dataclass(frozen=True, slots=True)
class LoadPorts:
    """What a load needs of the world.

    Attributes:
        store: the object store of the cluster.
        commit: commits one shard.
        new_load_id: returns an id that no load had before.
        on_rows: told of every few rows that are stored.
    """

    store: BlobStore
    commit: Commit
    new_load_id: Callable[[], str]
    on_rows: Callable[[int], None] = lambda _: None


@dataclass(frozen=True, slots=True)
class Report:
    """What a load came to; the last three together are all rows.

    Attributes:
        rows_count: rows of the input.
        loaded_count: rows added by this run.
        unchanged_count: rows that the gallery had before, with the same vector.
        already_count: rows that an earlier run of this load had committed.
    """

    load_id: str
    rows_count: int
    loaded_count: int
    unchanged_count: int
    already_count: int


class Load:
    """One load, from wherever its journal says that it stands."""

    def __init__(self, ports: LoadPorts, journal: Journal, source: ChunkSource) -> None:
        self._ports = ports
        self._journal = journal
        self._source = source

    async def run(self, parameters: Parameters) -> Report:
        """Do what is left to do.

        Raises:
            ConflictError: it is not the load that the journal is of (LOAD_CHANGED).
            InvalidError: a row is not fit. Where nothing was committed yet, the load is given up
                and all of it taken back.
            FacegridError: see LoadCommitter.commit; run it again to go on.
        """
        progress = self._journal.progress
        if not progress.load_id:
            self._journal.begin(self._ports.new_load_id(), parameters)
        progress = self._journal.progress
        assert progress.parameters is not None, "the journal begins with them"
        await self._check_same(parameters)
        # Chunks are cut as they were, also by a later version.
        parameters = progress.parameters
        before = dict(progress.committed)
        if not progress.done:
            if not progress.committed and not progress.committing:
                await self._store_or_give_up(parameters)
            await self._commit()
            await self._unpin(parameters)
            self._journal.finish()
        sizes = {
            shard_id: sum(one.rows_count for one in segments)
            for shard_id, segments in progress.segments().items()
        }
        now = [counts for one, counts in progress.committed.items() if one not in before]
        return Report(
            load_id=progress.load_id,
            rows_count=sum(sizes.values()),
            loaded_count=sum(counts.enrolled_count for counts in now),
            unchanged_count=sum(counts.unchanged_count for counts in now),
            already_count=sum(sizes[shard_id] for shard_id in before),
        )

    async def _check_same(self, now: Parameters) -> None:
        """Raise ConflictError (LOAD_CHANGED) unless the load can go on as this one.

        Files that were only touched or copied count as the same: samples of their bytes agree,
        and they give the very segments that the journal names, as far as these were stored.
        """
        progress = self._journal.progress
        assert progress.parameters is not None, "the journal begins with them"
        before = progress.parameters
        moved = before.inputs != now.inputs and contents(before) == contents(now)
        check_same(progress, replace(now, inputs=before.inputs) if moved else now)
        if moved:
            if not await asyncio.to_thread(self._gives_what_is_stored):
                raise changed(progress, "inputs", INPUT_CHANGED)
            self._journal.inputs(now.inputs)

    def _gives_what_is_stored(self) -> bool:
        """Tell whether the input gives the segments that the journal names. Takes long."""
        progress = self._journal.progress
        assert progress.parameters is not None, "the journal begins with them"
        parameters = progress.parameters
        last = max(progress.chunks, default=-1)
        try:
            for number, chunk in enumerate(self._source.chunks(parameters.chunk_rows)):
                if number > last:
                    break
                if number in progress.chunks:
                    made = cut(chunk, parameters, progress.load_id)
                    if tuple(one.named for one in made.segments) != progress.chunks[number]:
                        return False
        except InvalidError:
            # What was stored was sound.
            return False
        return True

    async def _store_or_give_up(self, parameters: Parameters) -> None:
        try:
            await self._store_all(parameters)
        except InvalidError:
            await give_up(self._journal, self._ports.store)
            raise

    async def _store_all(self, parameters: Parameters) -> None:
        """Store the segments of all chunks, and see that no template stands twice."""
        store = LoadStore(self._ports.store, self._journal.progress.load_id)
        hashes: list[Int64] = []
        errors: list[FacegridError] = []
        room = asyncio.Semaphore(THREADS + 1)
        with ThreadPoolExecutor(THREADS, "load") as threads:
            run = partial(_in_thread, threads)

            async def one(number: int, chunk: Chunk) -> None:
                try:
                    hashes.append(await self._store_chunk(number, chunk, store=store, run=run))
                except FacegridError as error:
                    errors.append(error)
                finally:
                    room.release()

            chunks = enumerate(self._source.chunks(parameters.chunk_rows))
            async with asyncio.TaskGroup() as tasks:
                await room.acquire()
                while not errors and (item := await run(partial(_next, chunks, errors))):
                    tasks.create_task(one(*item))
                    await room.acquire()
        if errors:
            raise min(errors, key=_telling)
        await self._check_repeats(parameters, hashes)

    async def _store_chunk(
        self, number: int, chunk: Chunk, *, store: LoadStore, run: "Run"
    ) -> Int64:
        """Store the segments of a chunk, if they are not; return its hashes."""
        progress = self._journal.progress
        if number in progress.chunks:
            hashes = await run(lambda: pair_hashes(chunk.ids()))
            self._ports.on_rows(len(hashes))
            return hashes
        assert progress.parameters is not None, "the journal begins with them"
        made = await run(partial(cut, chunk, progress.parameters, progress.load_id))
        await all_of([store.put(segment) for segment in made.segments])
        self._journal.stored(number, [segment.named for segment in made.segments])
        self._ports.on_rows(len(made.hashes))
        return made.hashes

    async def _check_repeats(self, parameters: Parameters, hashes: Sequence[Int64]) -> None:
        suspected = suspects(hashes)
        if not len(suspected):
            return
        repeats = Repeats(suspected)
        for chunk in self._source.chunks(parameters.chunk_rows):
            repeats.look(chunk)

    async def _commit(self) -> None:
        """Commit all shards that are not; all are tried before an error is raised."""
        progress = self._journal.progress
        room = asyncio.Semaphore(COMMITS_AT_ONCE)

        async def one(shard_id: ShardId, segments: Sequence[StoredSegment]) -> None:
            async with room:
                try:
                    await commit_one(
                        self._journal, self._ports.commit, shard_id=shard_id, segments=segments
                    )
                except REFUSALS as error:
                    raise self._with_row(error, shard_id) from error

        left = {
            shard_id: segments
            for shard_id, segments in progress.segments().items()
            if shard_id not in progress.committed
        }
        await all_of([one(*item) for item in left.items()])

    async def _unpin(self, parameters: Parameters) -> None:
        store = LoadStore(self._ports.store, self._journal.progress.load_id)
        await store.unpin_all(shard.shard_id for shard in parameters.shards)

    def _with_row(self, error: FacegridError, shard_id: ShardId) -> FacegridError:
        """Return a primary's error about a row of a segment as one about that row of the input."""
        if error.row is None or "segment" not in error.facts:
            return error
        progress = self._journal.progress
        assert progress.parameters is not None, "the journal begins with them"
        numbers = [
            number
            for number in sorted(progress.chunks)
            if any(one.shard_id == shard_id for one in progress.chunks[number])
        ]
        wanted = numbers[int(error.facts["segment"])]
        for number, chunk in enumerate(self._source.chunks(progress.parameters.chunk_rows)):
            if number == wanted:
                rows = {
                    shard.shard_id: rows
                    for shard, rows in split(chunk.ids(), progress.parameters.shards)
                }
                row = chunk.first + int(rows[shard_id][error.row])
                facts = {key: value for key, value in error.facts.items() if key != "segment"}
                sentence = re.sub(r" segment=\d+", "", error.message)
                sentence = re.sub(r"\brow=\d+", f"row={row}", sentence)
                return type(error)(sentence, reason=error.reason, **{**facts, "row": row})
        return error


class Run(Protocol):
    """Runs work in a thread."""

    async def __call__(self, work: Callable[[], T]) -> T:
        """Return what the work returns."""
        ...


async def commit_one(
    journal: Journal, commit: Commit, *, shard_id: ShardId, segments: Sequence[StoredSegment]
) -> None:
    """Commit a shard, or ask again for what became of that, and note the outcome.

    Raises:
        InvalidError, NotFoundError, CorruptError: it was refused, and has not happened.
        FacegridError: the outcome is open.
    """
    progress = journal.progress
    assert progress.parameters is not None, "the journal begins with them"
    journal.committing(shard_id)
    try:
        done = await commit(progress.parameters.gallery, progress.load_id, segments)
    except REFUSALS:
        journal.refused(shard_id)
        raise
    journal.committed(shard_id, ShardCounts(done.enrolled_count, done.unchanged_count))


async def settle(journal: Journal, commit: Commit) -> None:
    """Learn what became of commits that were sent and not answered: they are sent again, as they
    were, and so have happened before, happen now, or are refused. The input is not needed.

    Raises:
        ConflictError: one is not answered again (LOAD_IN_DOUBT); the others are settled.
    """
    segments = journal.progress.segments()
    problems: list[str] = []

    async def one(shard_id: ShardId) -> None:
        try:
            await commit_one(journal, commit, shard_id=shard_id, segments=segments[shard_id])
        except REFUSALS:
            # Noted in the journal: nothing of the shard was taken.
            return
        except FacegridError as error:
            problems.append(f"{error.message} reason={error.reason}")

    await all_of([one(shard_id) for shard_id in sorted(journal.progress.committing)])
    if journal.progress.committing:
        raise in_doubt(journal.progress, f" problem={problems[0]}")


async def give_up(journal: Journal, store: BlobStore) -> int:
    """Give a load up: take its pins away, so that the next sweep takes its segments; return how
    many there were. Shards that are committed stay so.

    Raises:
        ConflictError: the outcome of a commit is open (LOAD_IN_DOUBT): the record that was perhaps
            committed needs the segments. See settle.
    """
    progress = journal.progress
    if progress.parameters is None:
        return 0
    if progress.committing:
        raise in_doubt(progress)
    shards = [shard.shard_id for shard in progress.parameters.shards]
    count = await LoadStore(store, progress.load_id).unpin_all(shards)
    journal.set_aside()
    return count


def in_doubt(progress: Progress, more: str = "") -> ConflictError:
    """Return the error for a load that cannot be given up yet."""
    return ConflictError(
        "a commit was sent and is not answered, so nothing was given up; repeat --abort, which"
        " asks again, once the shards can be reached"
        f" shards={','.join(sorted(progress.committing))}{more}",
        reason="LOAD_IN_DOUBT",
    )


def contents(parameters: Parameters) -> list[tuple[int, str]]:
    """Return what the journal knows of each input's content: its size, and a hash of samples."""
    return [(one.size_bytes, one.sampled) for one in parameters.inputs]


def check_same(progress: Progress, now: Parameters) -> None:
    """Raise ConflictError (LOAD_CHANGED) where a load cannot go on as another."""
    before = progress.parameters
    for name, what in (
        ("gallery", "it was begun for another gallery"),
        ("gallery_uid", "the gallery was dropped and created anew since it was begun"),
        ("shards", "the gallery's shards have changed since it was begun"),
        ("inputs", INPUT_CHANGED),
        ("rows_count", INPUT_CHANGED),
        ("dim", INPUT_CHANGED),
        ("component_bits", "the gallery rounds to another number of bits than it was begun with"),
    ):
        if getattr(before, name) != getattr(now, name):
            raise changed(progress, name, what)


def changed(progress: Progress, field: str, what: str) -> ConflictError:
    """Return the error for a work folder of another load; it names the way out."""
    if progress.done:
        sentence = (
            f"this work folder holds a finished load of other data: {what}; say another --work,"
            " or remove the folder"
        )
    else:
        sentence = (
            f"this work folder holds another load: {what}; go on with what it was begun with,"
            " or give it up with --abort"
        )
        if progress.committing:
            sentence += (
                ", which first asks for the commits that are not answered and does not need the"
                f" input shards={','.join(sorted(progress.committing))}"
            )
    return ConflictError(sentence, reason="LOAD_CHANGED", field=field)


async def _in_thread(threads: ThreadPoolExecutor, work: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(threads, work)


def _next(
    chunks: Iterable[tuple[int, Chunk]], errors: list[FacegridError]
) -> tuple[int, Chunk] | None:
    """Return the next chunk; None at the end, or when the input cannot be read any further."""
    try:
        return next(iter(chunks), None)
    except FacegridError as error:
        errors.append(error)
        return None


def _telling(error: FacegridError) -> tuple[bool, int]:
    row = error.row
    return not isinstance(error, InvalidError), -1 if row is None else row
