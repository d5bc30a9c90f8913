"""fgctl offline on folders: what it prints and keeps to itself, and that it writes nothing."""

import asyncio
import json
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from facegrid.format import digest as digests
from facegrid.format.stored_gallery import StoredGallery
from facegrid.model import ShardMap
from fgctl import meta_file
from fgctl.__main__ import run
from indexd.engine.requests import EraseRequest
from indexd.replica import gallery_records
from indexd.replica.primary import Primary
from tests.fakes.engine_store import GALLERY, SHARD, EngineWorld, enrol_request
from tests.fakes.small_store import FIRST, SECOND, TRIMMED, UID, small_store

SMALL = small_store()


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command line ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The JSON document on stdout."""
        return json.loads(self.out)


class Shell:
    """Runs `fgctl offline` on one folder."""

    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.root = root
        self._capsys = capsys

    def __call__(self, command: str, *arguments: str) -> Ended:
        self._capsys.readouterr()
        code = run(["offline", command, str(self.root), *arguments])
        shown = self._capsys.readouterr()
        return Ended(code, shown.out, shown.err)


@pytest.fixture
def fgctl(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Shell:
    """On the small store, in a folder, with a temporary file that a crash left."""
    root = tmp_path / "store"
    for name, data in SMALL.store.objects.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (root / ".tmp").mkdir()
    (root / ".tmp" / "tmpx1").write_bytes(b"half")
    (root / ".tmp" / "lock").write_bytes(b"")
    return Shell(root, capsys)


def files(root: Path) -> dict[str, tuple[bytes, int]]:
    return {
        path.relative_to(root).as_posix(): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in root.rglob("*")
        if path.is_file()
    }


def test_verify_says_that_nothing_is_wrong_and_what_nothing_needs(fgctl: Shell) -> None:
    ended = fgctl("verify")

    assert ended.code == 0
    assert f"unneeded: {SMALL.zombie}: orphan: never committed\n" in ended.out
    assert "no object: .tmp/tmpx1\n" in ended.out
    assert ".tmp/lock" not in ended.out, "it belongs to the store"
    assert ended.out.endswith("nothing is wrong\n")


def test_verify_names_what_is_wrong_and_fails(fgctl: Shell) -> None:
    (fgctl.root / SMALL.segment).write_bytes(b"")

    ended = fgctl("verify")

    assert ended.code == 1
    assert f"problem: {SMALL.segment}: bytes do not match the name" in ended.out
    assert ended.out.endswith("reason=OBJECT_DAMAGED\nproblems: 1\n")


def test_verify_tells_programs_the_same(fgctl: Shell) -> None:
    (fgctl.root / SMALL.enrol).unlink()

    ended = fgctl("verify", "--json")

    assert (ended.code, ended.err) == (1, "")
    document = ended.document
    assert document["problems"] == [
        {
            "name": SMALL.enrol,
            "reason": "OBJECT_MISSING",
            "problem": f"log object is missing; {SMALL.erase} follows it",
        }
    ]
    assert document["strangers"] == [".tmp/tmpx1"]
    assert [(one["shard"], one["ok"]) for one in document["shards"]] == [
        (FIRST, False),
        (SECOND, True),
    ]


def test_verify_of_one_shard_is_not_disturbed_by_another(fgctl: Shell) -> None:
    (fgctl.root / SMALL.enrol).unlink()

    assert fgctl("verify", "--shard", SECOND).code == 0
    assert fgctl("verify", "--shard", FIRST).code == 1
    unknown = fgctl("verify", "--shard", "g.0.7")
    assert (unknown.code, unknown.out) == (1, "")
    assert "reason=SHARD_UNKNOWN" in unknown.err


def test_verify_with_saved_records_finds_a_lost_end(fgctl: Shell, tmp_path: Path) -> None:
    (fgctl.root / SMALL.erase).unlink()
    meta_file.save(tmp_path / "meta.json", SMALL.meta)

    assert fgctl("verify").code == 0, "nothing in the store refers to the end of a log"
    ended = fgctl("verify", "--meta", str(tmp_path / "meta.json"))

    assert ended.code == 1
    assert f"problem: {SMALL.erase}: log object is missing" in ended.out


def test_log_lists_records_in_order_and_marks_orphans(fgctl: Shell) -> None:
    objects = fgctl("log", "--shard", FIRST, "--json").document

    assert [(one["name"], one["state"]) for one in objects] == [
        (SMALL.enrol, "log"),
        (SMALL.erase, "log"),
        (SMALL.zombie, "orphan"),
    ]
    assert [one["records"] for one in objects[:2]] == [
        [
            {
                "position": 3,
                "kind": "enrol",
                "rows_count": 1,
                "unchanged_count": 0,
                "template_ids_count": 1,
                "subjects_count": 1,
                "written_unix_ms": 3000,
            }
        ],
        [
            {
                "position": 4,
                "kind": "erase",
                "rows_count": 0,
                "unchanged_count": 0,
                "template_ids_count": 1,
                "subjects_count": 1,
                "written_unix_ms": 4000,
            }
        ],
    ]


def test_a_damaged_log_object_is_listed_as_that(fgctl: Shell) -> None:
    (fgctl.root / SMALL.enrol).write_bytes(b"FGRD")

    objects = fgctl("log", "--shard", FIRST, "--json").document

    assert {one["name"]: one["state"].split(":")[0] for one in objects} == {
        SMALL.enrol: "damaged",
        SMALL.erase: "detached",
        SMALL.zombie: "log",
    }


@pytest.mark.parametrize(
    "arguments",
    [("log", "--shard", FIRST), ("segment", SMALL.segment), ("manifest",), ("verify",)],
)
@pytest.mark.parametrize("form", [(), ("--json",)])
def test_who_is_enrolled_is_shown_only_when_asked_for(
    fgctl: Shell, arguments: tuple[str, ...], form: tuple[str, ...]
) -> None:
    shown = fgctl(*arguments, *form)

    assert shown.code == 0
    for secret in ("s-0", "s-1", "s-3", "t-1", "t-3", "r-3"):
        assert secret not in shown.out


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_ids_are_shown_when_asked_for(fgctl: Shell, form: tuple[str, ...]) -> None:
    log = fgctl("log", "--shard", FIRST, "--ids", *form)
    segment = fgctl("segment", SMALL.segment, "--ids", *form)

    assert all(text in log.out for text in ("r-4", "t-3", "s-1"))
    assert all(text in segment.out for text in ("t-0", "t-2", "s-1"))


def test_manifest_lists_shards_with_what_they_consist_of(fgctl: Shell) -> None:
    first, second = fgctl("manifest", "--json").document

    assert (first["shard"], first["manifest"]) == (FIRST, SMALL.manifest)
    assert (first["position"], first["rows_count"], first["erased_count"]) == (2, 3, 1)
    assert first["log"] == f"1-1-{TRIMMED.uuid}"
    assert second == {"shard": SECOND, "manifest": None, "problem": ""}
    assert FIRST in fgctl("manifest", "--gallery", "g").out
    assert fgctl("manifest", "--gallery", "other").code == 1


def test_segment_and_codebook_describe_one_object_once_it_matches_its_name(fgctl: Shell) -> None:
    segment = fgctl("segment", SMALL.segment, "--json").document
    book = fgctl("codebook", SMALL.codebook, "--json").document

    assert (segment["shard"], segment["rows_count"], segment["subjects_count"]) == (FIRST, 3, 2)
    assert SMALL.codebook == f"codebooks/{UID}/{segment['codebook']}"
    assert (book["dim"], book["nlist"], book["sample_count"]) == (8, 1, 9)
    assert "codebook" in fgctl("codebook", SMALL.codebook).out
    for name in (SMALL.segment, SMALL.codebook):
        (fgctl.root / name).write_bytes((fgctl.root / name).read_bytes()[:-8])
    assert "OBJECT_DAMAGED" in fgctl("segment", SMALL.segment).err
    assert "OBJECT_DAMAGED" in fgctl("codebook", SMALL.codebook).err
    assert "OBJECT_NAME_MALFORMED" in fgctl("segment", SMALL.codebook).err
    assert "OBJECT_NAME_MALFORMED" in fgctl("codebook", SMALL.segment).err


def test_no_command_changes_a_byte(fgctl: Shell) -> None:
    before = files(fgctl.root)
    for arguments in (
        ("verify",),
        ("manifest",),
        ("log", "--shard", FIRST),
        ("segment", SMALL.segment),
        ("codebook", SMALL.codebook),
    ):
        assert fgctl(*arguments).code == 0

    assert files(fgctl.root) == before
    assert {path.name for path in fgctl.root.iterdir()} == {
        ".tmp",
        "cluster",
        "codebooks",
        "journal",
        "shards",
    }


def test_a_folder_that_is_not_there_is_refused_and_not_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = Shell(tmp_path / "missing", capsys)

    assert "STORE_FAILED" in missing("verify").err
    assert not missing.root.exists()
    assert run(["offline", "manifest", f"dir:{tmp_path}"]) == 0
    assert run(["offline", "verify", "s3:bucket"]) == 1


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[EngineWorld]:
    """On which a real primary writes; the node's part is to keep the gallery's records."""
    with ThreadPoolExecutor(1) as threads:
        made = EngineWorld(tmp_path / "store", threads)
        await made.create()
        shard_map = ShardMap(GALLERY.name, GALLERY.uid, 1, (SHARD,))
        await gallery_records.keep(made.store, StoredGallery(GALLERY, shard_map))
        yield made


async def write_and_erase(primary: Primary) -> None:
    """Two segments with erased rows, and a log that erases from both and from itself."""
    await primary.write(enrol_request(1, 5))
    await primary.flush()
    await primary.write(enrol_request(2, 5))
    await primary.write(EraseRequest("e-1", ["t-1-0"], ["s-2-1"]))
    await primary.flush()
    await primary.write(enrol_request(3, 5))
    await primary.write(EraseRequest("e-2", ["t-1-1", "t-3-0", "t-none"], ["s-2-2", "s-3-4"]))
    await primary.write(EraseRequest("e-3", [], ["s-3-4"]))


async def test_what_the_engine_wrote_is_whole_and_has_the_digest_that_the_node_states(
    world: EngineWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with world.primary("b1") as primary:
        await write_and_erase(primary)
        state = primary.state
        expected = {
            "shard": SHARD.shard_id,
            "ok": True,
            "generation": 1,
            "position": state.position,
            "templates_count": state.templates_count,
            "digest": digests.to_bytes(state.digest).hex(),
            "segments_count": 2,
            "log_objects_count": 3,
        }

    fgctl = Shell(tmp_path / "store", capsys)
    document = (await asyncio.to_thread(fgctl, "verify", "--json")).document
    (shard,) = document["shards"]
    del shard["manifest"]

    assert shard == expected
    assert (document["problems"], document["unneeded"]) == ([], [])
    assert expected["templates_count"] == 15 - 2 - 4


async def test_a_crash_amid_deleting_what_a_rewrite_replaced_is_no_damage(
    world: EngineWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """1 a flush; 2 a rewrite at the same position; 3 a crash before the old manifest goes."""
    async with world.primary("b1") as primary:
        await primary.write(enrol_request(1, 5))
        await primary.write(EraseRequest("e-1", ["t-1-0"], []))
        await primary.flush()
        await primary.write(EraseRequest("e-2", ["t-1-1"], []))
        await primary.flush()
        old = {name: await world.store.get(name) for name in await world.store.list("shards/")}
        await primary.rewrite()
    names = await world.store.list("shards/")
    (manifest,) = [name for name in old if "/manifests/" in name]
    await world.store.put_new(manifest, old[manifest])

    ended = await asyncio.to_thread(Shell(tmp_path / "store", capsys), "verify", "--json")

    assert (ended.code, manifest in names) == (0, False)
    assert ended.document["unneeded"] == [
        {"name": manifest, "why": "replaced by another manifest"}
    ]


async def test_every_object_of_the_engine_is_missed_but_the_end_of_the_log(
    world: EngineWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with world.primary("b1") as primary:
        await write_and_erase(primary)
    fgctl = Shell(tmp_path / "store", capsys)
    names = [name for name in await world.store.list("") if not name.endswith("-u5")]
    assert len(names) == 7, "the journal of the erasure and the records of the gallery too"

    for name in names:
        path = fgctl.root / name
        data = path.read_bytes()
        path.unlink()
        lost = await asyncio.to_thread(fgctl, "verify")
        path.write_bytes(bytes(len(data)))
        blank = await asyncio.to_thread(fgctl, "verify")
        path.write_bytes(data)

        assert (lost.code, blank.code) == (1, 1)
        assert f"problem: {name}" in blank.out
