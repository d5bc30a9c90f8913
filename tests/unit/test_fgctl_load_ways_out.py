"""The loader: no state of a work folder is one that no command gets out of."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from facegrid.errors import ConflictError, UnavailableError
from fgctl.bulk.journal import Journal
from fgctl.bulk.load import Report, give_up, settle
from fgctl.bulk.publish import Committed
from fgctl.bulk.segments import StoredSegment
from indexd.engine.requests import EraseRequest
from tests.fakes.load_world import Dying, Files, Killed, commit_to, load
from tests.unit.test_fgctl_load import LOAD, ROWS, files, ids, killed_at, kinds, vectors_of
from tests.unit.test_replica import SHARD, World, enrol
from tests.unit.test_replica_load import world

__all__ = ["files", "world"]

NEXT = "d" * 32
BEFORE_COMMIT, AFTER_COMMIT = "commit", "journal committed"


def touch(files: Files) -> None:
    """Give all files another time of change."""
    for path in files.folder.glob("*.*"):
        os.utime(path, ns=(1, 1))


def other_words(files: Files) -> None:
    """Write other subject ids of the same length."""
    files.write(vectors_of(1, 5), ids(1, 5, "x"), ids(1, 5, "t"))


def journal_of(files: Files) -> Journal:
    return Journal(files.folder / "work")


@pytest.mark.parametrize(
    "step", ["put segments", "journal committing", BEFORE_COMMIT, AFTER_COMMIT, "journal done"]
)
async def test_a_load_goes_on_with_files_that_were_only_touched(
    world: World, files: Files, step: str
) -> None:
    async with world.primary("b1") as primary:
        await killed_at(world, files, primary, step)
        touch(files)
        report = await load(files, world.store, primary, load_id=NEXT)
        assert report.load_id == LOAD, "the same load"
        assert report.loaded_count + report.already_count == ROWS
        assert primary.state.templates_count == ROWS
    with journal_of(files) as journal:
        assert journal.progress.parameters == files.parameters(), "the new times are noted"


async def test_a_load_goes_on_with_a_copy_of_its_files(
    world: World, files: Files, tmp_path: Path
) -> None:
    async with world.primary("b1") as primary:
        await killed_at(world, files, primary, BEFORE_COMMIT)
        copied = Files(tmp_path / "copy")
        copied.folder.mkdir()
        for path in files.folder.glob("*.*"):
            (copied.folder / path.name).write_bytes(path.read_bytes())
            path.unlink()
        (files.folder / "work").rename(copied.folder / "work")
        assert await load(copied, world.store, primary) == Report(LOAD, ROWS, ROWS, 0, 0)


async def test_a_finished_load_with_touched_files_is_one_already_loaded(
    world: World, files: Files
) -> None:
    async with world.primary("b1") as primary:
        await load(files, world.store, primary)
        touch(files)
        assert await load(files, world.store, primary) == Report(LOAD, ROWS, 0, 0, ROWS)


async def test_a_finished_load_and_other_data_are_told_apart(world: World, files: Files) -> None:
    async with world.primary("b1") as primary:
        await load(files, world.store, primary)
        other_words(files)
        with pytest.raises(ConflictError) as refused:
            await load(files, world.store, primary)
        assert refused.value.reason == "LOAD_CHANGED"
        assert "finished load of other data" in refused.value.message
        assert "another --work, or remove the folder" in refused.value.message
        assert "--abort" not in refused.value.message


@pytest.mark.parametrize("finished", [False, True])
async def test_a_change_that_the_samples_miss_is_seen_by_the_segments(
    world: World, files: Files, *, finished: bool
) -> None:
    """Of a large file, size and samples may be the same and a row another."""
    async with world.primary("b1") as primary:
        if finished:
            await load(files, world.store, primary)
        else:
            await killed_at(world, files, primary, BEFORE_COMMIT)
        before = files.parameters().inputs
        x = vectors_of(1, 5)
        x[7] = -x[7]
        np.save(files.folder / "x.npy", x)
        touch(files)
        seen = tuple(
            type(now)(now.path, now.size_bytes, now.mtime_ns, then.sampled)
            for now, then in zip(files.parameters().inputs, before, strict=True)
        )
        with pytest.raises(ConflictError) as refused:
            await load(files, world.store, primary, parameters=files.parameters(inputs=seen))
        assert (refused.value.reason, refused.value.facts["field"]) == ("LOAD_CHANGED", "inputs")


@pytest.mark.parametrize("step", [BEFORE_COMMIT, AFTER_COMMIT])
async def test_a_load_in_doubt_is_settled_without_its_input_and_given_up(
    world: World, files: Files, step: str
) -> None:
    """1 killed around its commit; 2 the input changes; 3 the message names the way; 4 taken."""
    async with world.primary("b1") as primary:
        await killed_at(world, files, primary, step)
        other_words(files)
        with pytest.raises(ConflictError) as refused:
            await load(files, world.store, primary)
        assert "--abort, which first asks" in refused.value.message
        assert f"shards={SHARD.shard_id}" in refused.value.message
        for path in files.folder.glob("*.*"):
            path.unlink()
        with journal_of(files) as journal:
            await settle(journal, commit_to(primary))
            assert journal.progress.committed[SHARD.shard_id].enrolled_count == ROWS
            await give_up(journal, world.store)
            assert not journal.progress.load_id, "another load may begin"
        assert (primary.state.templates_count, "loads" in kinds(world)) == (ROWS, False)
        assert primary.state.position == 1, "committed once"


async def test_a_load_in_doubt_that_is_refused_is_given_up_and_swept(
    world: World, files: Files
) -> None:
    """1 killed before its commit; 2 a template with another vector comes; 3 given up."""
    async with world.primary("b1") as primary:
        await killed_at(world, files, primary, BEFORE_COMMIT)
        other = enrol(3)
        other.codes[:] = other.codes[::-1].copy()
        await primary.write(other)
        with journal_of(files) as journal:
            await settle(journal, commit_to(primary))
            assert not journal.progress.committed
            assert await give_up(journal, world.store) == 3
        await primary.write(EraseRequest("e", [], other.subject_ids))
        other_words(files)
        assert (await load(files, world.store, primary, load_id=NEXT)).loaded_count == ROWS


async def test_a_load_in_doubt_that_nobody_answers_stays_and_may_be_asked_again(
    world: World, files: Files
) -> None:
    async def silent(gallery: str, load_id: str, segments: Sequence[StoredSegment]) -> Committed:
        del gallery, load_id, segments
        raise UnavailableError("no router answers")

    async with world.primary("b1") as primary:
        await killed_at(world, files, primary, BEFORE_COMMIT)
        with journal_of(files) as journal, pytest.raises(ConflictError) as refused:
            await settle(journal, silent)
        assert refused.value.reason == "LOAD_IN_DOUBT"
        assert "repeat --abort" in refused.value.message
        assert "no router answers" in refused.value.message
        assert "loads" in kinds(world), "still pinned"
        with journal_of(files) as journal:
            await settle(journal, commit_to(primary))
            await give_up(journal, world.store)


async def test_giving_up_that_is_killed_while_it_asks_may_be_repeated(
    world: World, files: Files
) -> None:
    async with world.primary("b1") as primary:
        await killed_at(world, files, primary, BEFORE_COMMIT)
        with journal_of(files) as journal, pytest.raises((Killed, BaseExceptionGroup)):
            await settle(journal, commit_to(primary, Dying(0, after=True)))
        with journal_of(files) as journal:
            await settle(journal, commit_to(primary))
            assert journal.progress.committed[SHARD.shard_id].enrolled_count == ROWS
        assert primary.state.templates_count == ROWS
