"""The loader: killed at every step, given bad input, given up."""

from pathlib import Path

import numpy as np
import pytest

from facegrid.errors import ConflictError, CorruptError, InvalidError
from fgctl.bulk.journal import Journal, Shard
from fgctl.bulk.load import Report, give_up
from indexd.engine.requests import EraseRequest
from indexd.replica.primary import Primary
from tests.fakes.load_world import Dying, Files, Killed, load
from tests.unit.test_replica import DIM, SHARD, World, enrol, found
from tests.unit.test_replica_load import world

__all__ = ["world"]

ROWS = 8
LOAD = "c" * 32


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """Eight rows, chunks of three: those of the requests 1 to 4 of `enrol`."""
    made = Files(tmp_path)
    made.write(vectors_of(1, 5), ids(1, 5, "s"), ids(1, 5, "t"))
    return made


def vectors_of(first: int, last: int) -> np.ndarray:
    """The vectors that `enrol` rounds, of requests first to last - 1."""
    return np.concatenate(
        [
            unit(np.random.default_rng(number).normal(size=(2, DIM)).astype(np.float32))
            for number in range(first, last)
        ]
    )


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.abs(x).max(axis=1, keepdims=True) / 2


def ids(first: int, last: int, kind: str) -> list[str]:
    return [f"{kind}-{number}-{row}" for number in range(first, last) for row in range(2)]


def kinds(world: World) -> list[str]:
    """What lies in the store, by kind."""
    return sorted(name.split("/")[2] for name in world.store.objects)


async def test_a_load_through_files_gives_the_rows_that_enrolment_gives(
    world: World, files: Files
) -> None:
    async with world.primary("b1") as primary:
        report = await load(files, world.store, primary)
        assert report == Report(LOAD, ROWS, ROWS, 0, 0)
        loaded = primary.state.digest
        assert (primary.state.position, primary.state.templates_count) == (1, ROWS)
        assert "loads" not in kinds(world), "no pin is left"
        for number in range(1, 5):
            await primary.write(enrol(number))
        assert primary.state.digest == loaded, "the same rows, so all were unchanged"
        again = await load(files, world.store, primary)
        assert again == Report(LOAD, ROWS, 0, 0, ROWS)


STEPS = 17
"""A line for the load; a pin, a segment and a line for each of three chunks; the commit between
two lines; three pins deleted; the last line.
"""


@pytest.mark.parametrize("at", range(STEPS))
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_a_load_killed_at_any_step_goes_on_and_loads_no_row_twice(
    world: World, files: Files, *, at: int, after: bool
) -> None:
    """1 killed; 2 the primary takes a write, flushes and sweeps; 3 it dies too; 4 run again."""
    dying = Dying(at, after=after)
    async with world.primary("b1") as first:
        with pytest.raises((Killed, BaseExceptionGroup)):
            await load(files, world.store, first, dying=dying)
        await first.write(enrol(9))
        await first.flush()
    async with world.primary("b2") as second:
        report = await load(files, world.store, second, load_id="d" * 32)
        assert report.rows_count == ROWS
        assert report.loaded_count + report.unchanged_count + report.already_count == ROWS
        assert report.unchanged_count == 0
        assert second.state.templates_count == ROWS + 2
        assert [found(second, enrol(n)) for n in (1, 4)] == [ids(1, 2, "s"), ids(4, 5, "s")]
        await second.flush()
        digest = second.state.digest
        assert set(kinds(world)) == {"manifests", "segments"}
    async with world.primary("b3") as third:
        assert (third.state.digest, third.state.templates_count) == (digest, ROWS + 2)


async def test_every_step_of_a_load_was_killed(world: World, files: Files) -> None:
    dying = Dying()
    async with world.primary("b1") as primary:
        await load(files, world.store, primary, dying=dying)
    assert len(dying.steps) == STEPS, dying.steps
    assert sorted(set(dying.steps)) == [
        "commit",
        "delete",
        "journal committed",
        "journal committing",
        "journal done",
        "journal load",
        "journal stored",
        "put loads",
        "put segments",
    ]


def damaged(files: Files, what: str) -> None:
    """Write an input with one thing wrong, in the second chunk or later."""
    x, subjects, templates = vectors_of(1, 5), ids(1, 5, "s"), ids(1, 5, "t")
    match what:
        case "nan":
            x[4, 3] = np.nan
        case "zero":
            x[7] = 0
        case "subject":
            subjects[5] = "s-\t"
        case "template":
            templates[6] = ""
        case "twice":
            subjects[6], templates[6] = subjects[0], templates[0]
    files.write(x, subjects, templates)


@pytest.mark.parametrize(
    ("what", "reason", "row"),
    [
        ("nan", "VECTOR_NOT_FINITE", 4),
        ("zero", "VECTOR_NORM", 7),
        ("subject", "ID_MALFORMED", 5),
        ("template", "ID_MALFORMED", 6),
        ("twice", "DUPLICATE_ROW", 6),
    ],
)
async def test_a_bad_row_is_named_and_nothing_of_the_load_stays(
    world: World, files: Files, what: str, reason: str, row: int
) -> None:
    damaged(files, what)
    async with world.primary("b1") as primary:
        with pytest.raises(InvalidError) as refused:
            await load(files, world.store, primary)
        assert (refused.value.reason, refused.value.row) == (reason, row)
        assert (primary.state.position, "loads" in kinds(world)) == (0, False)
        await primary.write(enrol(9))
        await primary.flush()
        assert kinds(world) == ["manifests", "segments"], "what was stored is swept"
        files.write(vectors_of(1, 5), ids(1, 5, "s"), ids(1, 5, "t"))
        mended = await load(files, world.store, primary, load_id="d" * 32)
        assert mended == Report("d" * 32, ROWS, ROWS, 0, 0), "a load given up is in nobody's way"


def test_files_that_do_not_fit_together_are_refused(files: Files) -> None:
    (files.folder / "s.txt").write_text("only-one\n")
    with pytest.raises(InvalidError) as refused:
        files.source()
    assert refused.value.reason == "COUNT_MISMATCH"


async def test_a_template_with_another_vector_is_named_by_its_row_in_the_input(
    world: World, files: Files
) -> None:
    """1 subject s-3-1 (row 5) is enrolled with another vector; 2 load; 3 erase it; 4 go on."""
    other = enrol(3)
    other.codes[:] = other.codes[::-1].copy()
    async with world.primary("b1") as primary:
        await primary.write(other)
        with pytest.raises(ConflictError) as refused:
            await load(files, world.store, primary)
        assert (refused.value.reason, refused.value.row) == ("TEMPLATE_EXISTS", 4)
        assert "row=4" in refused.value.message
        assert primary.state.templates_count == 2, "of the shard nothing was taken"
        await primary.write(EraseRequest("e", [], other.subject_ids))
        assert await load(files, world.store, primary) == Report(LOAD, ROWS, ROWS, 0, 0)


async def test_rows_that_the_gallery_has_are_counted_as_unchanged(
    world: World, files: Files
) -> None:
    async with world.primary("b1") as primary:
        await primary.write(enrol(2))
        assert await load(files, world.store, primary) == Report(LOAD, ROWS, ROWS - 2, 2, 0)
        assert primary.state.templates_count == ROWS


async def killed_at(world: World, files: Files, primary: Primary, step: str) -> None:
    """Run a load that is killed before its first step of a kind."""
    with pytest.raises((Killed, BaseExceptionGroup)):
        await load(files, world.store, primary, dying=DyingAt(step))


class DyingAt(Dying):
    """Dies when a step of this name is about to begin."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def begin(self, name: str) -> None:
        if name == self._name:
            self.dead = True
        super().begin(name)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ("touched", "inputs"),
        ("another gallery", "gallery"),
        ("gallery created anew", "gallery_uid"),
        ("split", "shards"),
        ("created anew of 4 bits", "component_bits"),
    ],
)
async def test_a_load_goes_on_only_with_what_it_began_with(
    world: World, files: Files, change: str, field: str
) -> None:
    async with world.primary("b1") as primary:
        await killed_at(world, files, primary, "commit")
        changed = {
            "touched": {},
            "another gallery": {"gallery": "h"},
            "gallery created anew": {"gallery_uid": "2f00aa23"},
            "created anew of 4 bits": {"component_bits": 4},
            "split": {"shards": (Shard(SHARD.shard_id, 0, 5), Shard(SHARD.shard_id, 6, 9))},
        }[change]
        if change == "touched":
            (files.folder / "s.txt").write_text("\n".join(ids(1, 5, "x")) + "\n")
        with pytest.raises(ConflictError) as refused:
            await load(files, world.store, primary, parameters=files.parameters(**changed))
        assert (refused.value.reason, refused.value.facts["field"]) == ("LOAD_CHANGED", field)


async def test_a_load_given_up_leaves_its_segments_to_be_swept(world: World, files: Files) -> None:
    async with world.primary("b1") as primary:
        await killed_at(world, files, primary, "journal committing")
        await primary.write(enrol(9))
        await primary.flush()
        assert kinds(world).count("segments") == 4, "three are pinned"
        with Journal(files.folder / "work") as journal:
            assert await give_up(journal, world.store) == 3
        await primary.write(enrol(8))
        await primary.flush()
        assert kinds(world) == ["manifests", "segments", "segments"]


async def test_a_load_whose_commit_may_have_happened_cannot_be_given_up(
    world: World, files: Files
) -> None:
    async with world.primary("b1") as primary:
        await killed_at(world, files, primary, "commit")
        with Journal(files.folder / "work") as journal, pytest.raises(ConflictError) as refused:
            await give_up(journal, world.store)
        assert refused.value.reason == "LOAD_IN_DOUBT"
        assert (await load(files, world.store, primary)).loaded_count == ROWS


def test_one_process_at_a_time_has_a_work_folder(tmp_path: Path) -> None:
    with Journal(tmp_path), pytest.raises(ConflictError) as refused:
        Journal(tmp_path)
    assert refused.value.reason == "WORK_IN_USE"


async def test_a_torn_last_line_of_a_journal_is_as_if_never_written(
    world: World, files: Files
) -> None:
    path = files.folder / "work" / "journal"
    async with world.primary("b1") as primary:
        await killed_at(world, files, primary, "commit")
        whole = path.read_bytes()
        path.write_bytes(whole[:-3])
        assert await load(files, world.store, primary) == Report(LOAD, ROWS, ROWS, 0, 0)


async def test_a_flipped_bit_in_a_journal_is_damage(world: World, files: Files) -> None:
    path = files.folder / "work" / "journal"
    async with world.primary("b1") as primary:
        await killed_at(world, files, primary, "commit")
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 4
        path.write_bytes(data)
        with pytest.raises(CorruptError) as refused:
            await load(files, world.store, primary)
        assert refused.value.reason == "JOURNAL_DAMAGED"
