"""fgctl against a router in memory: what it prints, how it ends, what it refuses."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from structlog.testing import capture_logs

from facegrid.api.admin.v1 import admin_service_pb2
from facegrid.api.shard.v1 import shard_service_pb2
from facegrid.errors import UnavailableError
from facegrid.testing.fake_router import FakeRouter
from fgctl import cluster_file
from fgctl.__main__ import run
from fgctl.cluster_file import ClusterRecord, ProcessRecord
from fgctl.online.cluster import status_json
from fgctl.online.sources import derived_template_id
from tests.fakes.shell import Shell

DIM = 8
ROWS = 5


@pytest.fixture
async def fgctl(capsys: pytest.CaptureFixture[str]) -> AsyncIterator[Shell]:
    # The router's log would go to stdout, where fgctl's results are looked for.
    with capture_logs():
        async with FakeRouter() as router:
            yield Shell(router, capsys)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """x.npy, s.txt and t.txt of ROWS templates."""
    x = np.random.default_rng(3).normal(size=(ROWS, DIM)).astype(np.float32)
    np.save(tmp_path / "x.npy", x / np.linalg.norm(x, axis=1, keepdims=True))
    (tmp_path / "s.txt").write_text("".join(f"s{row}\n" for row in range(ROWS)))
    (tmp_path / "t.txt").write_text("".join(f"t{row}\n" for row in range(ROWS)))
    return tmp_path


CREATE = ("gallery", "create", "staff", "--dim", str(DIM), "--extractor", "e@1")


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def enrol(files: Path, *more: str) -> tuple[str, ...]:
    names = ("--vectors", str(files / "x.npy"), "--subjects", str(files / "s.txt"))
    return ("enrol", "--gallery", "staff", *names, *more)


STAFF = {
    "name": "staff",
    "uid": "1f00aa23",
    "dim": DIM,
    "extractor": "e@1",
    "shards_count": 4,
    "replicas_count": 1,
    "train_at_templates_count": 100,
    "codebook": "",
    "created_unix_ms": 0,
    "templates_count": 0,
    "profile": "balanced",
    "miss_rate_max": 0.001,
    "component_bits": 8,
    "tuning": None,
}


async def test_a_gallery_is_created_listed_trained_and_dropped(fgctl: Shell) -> None:
    created = await fgctl(*CREATE, "--shards", "4", "--train-at", "100", "--json")
    shown = await fgctl("gallery", "show", "staff", "--json")
    listed = await fgctl("gallery", "list", "--json")
    trained = await fgctl("gallery", "train", "staff", "--json")
    dropped = await fgctl("gallery", "drop", "staff", "--yes", "--json")
    assert created.document["name"] == "staff"
    assert shown.document == STAFF
    assert [one["name"] for one in listed.document["galleries"]] == ["staff"]
    assert trained.document["codebook"] == "c0debeef"
    assert json.loads(dropped.out) == {"dropped": {**STAFF, "codebook": "c0debeef"}}
    assert (await fgctl("gallery", "list", "--json")).document == {"galleries": []}


async def test_settings_of_searches_are_changed_and_shown(fgctl: Shell) -> None:
    created = await fgctl(*CREATE, "--profile", "fast", "--miss-rate-max", "0.01", "--json")
    changed = await fgctl("gallery", "set", "staff", "--profile", "exhaustive", "--json")
    shown = await fgctl("gallery", "show", "staff")
    nothing = await fgctl("gallery", "set", "staff")
    beyond = await fgctl("gallery", "set", "staff", "--miss-rate-max", "0.2")

    assert (created.document["profile"], created.document["miss_rate_max"]) == ("fast", 0.01)
    assert (changed.document["profile"], changed.document["miss_rate_max"]) == ("exhaustive", 0.01)
    assert "never" in shown.out
    assert nothing.code == beyond.code == 2
    assert "say what to change" in nothing.err


async def test_tuning_shows_the_curve_in_80_columns_and_writes_it_to_a_file(
    fgctl: Shell, tmp_path: Path
) -> None:
    await fgctl(*CREATE)
    untrained = await fgctl("gallery", "tune", "staff")
    await fgctl("gallery", "train", "staff")
    told = await fgctl("gallery", "tune", "staff", "--svg", str(tmp_path / "curve.svg"))
    document = (await fgctl("gallery", "tune", "staff", "--mates", "1000", "--json")).document

    assert "NOT_TRAINED" in untrained.err
    assert max(len(line.rstrip()) for line in told.out.splitlines()) <= 80
    assert "balanced: at most 0.001 of the mates wanted, shown" in told.out
    assert ET.fromstring((tmp_path / "curve.svg").read_text()).tag.endswith("svg")
    assert document["tuning"]["mates_count"] == 1000
    assert not document["tuning"]["efforts"]["exhaustive"]["proven"]


async def test_dropping_says_first_what_will_be_lost_and_needs_a_yes(
    fgctl: Shell, files: Path
) -> None:
    await fgctl(*CREATE)
    await fgctl(*enrol(files))
    refused = await fgctl("gallery", "drop", "staff")
    assert refused.code == 2
    assert refused.err.splitlines() == [
        f"gallery staff will be lost: {ROWS} templates of dim {DIM} by e@1, in 1 shards",
        "error: this cannot be undone: repeat it with --yes (see fgctl gallery drop --help)",
    ]
    assert (await fgctl("gallery", "show", "staff", "--json")).document["templates_count"] == ROWS


async def test_enrolling_twice_changes_nothing(fgctl: Shell, files: Path) -> None:
    await fgctl(*CREATE)
    once = (await fgctl(*enrol(files, "--batch-rows", "2"), "--json")).document
    before = set(fgctl.router.store.find("staff").rows)
    again = (await fgctl(*enrol(files, "--batch-rows", "3"), "--json")).document
    x = np.load(files / "x.npy")
    assert (once["rows_count"], again["rows_count"]) == (ROWS, ROWS)
    assert before == {(f"s{row}", derived_template_id(x[row])) for row in range(ROWS)}
    assert set(fgctl.router.store.find("staff").rows) == before


async def test_a_refused_row_is_named_as_it_stands_in_the_file(fgctl: Shell, files: Path) -> None:
    await fgctl(*CREATE)
    templates = ("--templates", str(files / "t.txt"), "--batch-rows", "2")
    await fgctl(*enrol(files, *templates))
    x = np.load(files / "x.npy")
    x[3] = -x[3]
    np.save(files / "x.npy", x)
    refused = await fgctl(*enrol(files, *templates))
    assert refused.code == 1
    assert refused.err.splitlines()[-1] == "error: taken row=3 reason=TEMPLATE_EXISTS"


async def test_nothing_is_sent_when_a_row_at_the_end_is_bad(fgctl: Shell, files: Path) -> None:
    await fgctl(*CREATE)
    x = np.load(files / "x.npy")
    x[ROWS - 1, 0] = np.nan
    np.save(files / "x.npy", x)
    refused = await fgctl(*enrol(files, "--batch-rows", "2"), "--json")
    assert (refused.code, refused.out) == (1, "")
    assert refused.err == (
        "error: vector has a component that is not finite row=4"
        " reason=VECTOR_NOT_FINITE field=vectors\n"
    )
    assert fgctl.router.store.find("staff").rows == {}


async def test_vectors_of_another_dimension_are_refused(fgctl: Shell, files: Path) -> None:
    await fgctl(*CREATE)
    np.save(files / "x.npy", np.ones((ROWS, DIM * 2), np.float32))
    refused = await fgctl(*enrol(files))
    assert refused.code == 1
    assert "dim=16 gallery_dim=8 reason=DIM_MISMATCH" in refused.err


async def test_probes_of_another_dimension_are_refused_as_such(fgctl: Shell, files: Path) -> None:
    await fgctl(*CREATE)
    np.save(files / "x.npy", np.full((ROWS, 6), 9, np.float32))
    on = ("--gallery", "staff")
    asked = await fgctl("identify", *on, "--probes", str(files / "x.npy"))
    probe = ("--subject", "s1", "--probe", str(files / "x.npy"))
    scored = await fgctl("verify", *on, *probe)
    for refused in (asked, scored):
        assert refused.code == 1
        assert refused.err.splitlines()[-1] == (
            "error: the gallery's dimension is another dim=6 gallery_dim=8"
            " reason=DIM_MISMATCH field=dim"
        )


async def test_writes_in_doubt_say_what_a_user_can_do(fgctl: Shell, files: Path) -> None:
    """1. the stream dies, and every answer after it is lost. 2. an erasure stays in doubt."""
    await fgctl(*CREATE)
    fgctl.router.faults.dying, fgctl.router.faults.lost_acks = [0], 1000
    enrolled = await fgctl(*enrol(files, "--timeout", "0.3", "--json"))
    fgctl.router.faults.errors = [
        UnavailableError(
            "etcd did not confirm the write; retry with the same request id shard=g.0",
            reason="COMMIT_IN_DOUBT",
        )
    ] * 1000
    on = ("--gallery", "staff", "--subject", "s1", "--yes", "--timeout", "0.3")
    erased = await fgctl("erase", *on)
    advice = (
        "error: the write, or a part of it, is not confirmed; run the same command again, {}: {}"
    )
    assert (enrolled.code, erased.code) == (1, 1)
    assert [ended.err.splitlines()[-1] for ended in (enrolled, erased)] == [
        advice.format(
            "rows already there count as unchanged", "the answer is lost reason=UNAVAILABLE"
        ),
        advice.format(
            "what is gone already is not counted again",
            "etcd did not confirm the write shard=g.0 reason=COMMIT_IN_DOUBT",
        ),
    ]
    fgctl.router.faults.errors, fgctl.router.faults.lost_acks = [], 0
    assert (await fgctl(*enrol(files), "--json")).document["rows_count"] == ROWS
    assert len(fgctl.router.store.find("staff").rows) == ROWS


async def test_probes_find_their_mates_and_go_to_a_file_on_demand(
    fgctl: Shell, files: Path
) -> None:
    await fgctl(*CREATE)
    await fgctl(*enrol(files, "--templates", str(files / "t.txt")))
    ask = ("identify", "--gallery", "staff", "--probes", str(files / "x.npy"), "--k", "1")
    found = (await fgctl(*ask, "--json")).document
    written = await fgctl(*ask, "--out", str(files / "out.jsonl"))
    lines = (files / "out.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == found["lists"]
    assert written.out == f"wrote 5 candidate lists to {files / 'out.jsonl'}\n"
    assert [
        (
            one["row"],
            one["coverage"],
            [(best["subject_id"], best["rank"]) for best in one["candidates"]],
        )
        for one in found["lists"]
    ] == [(row, 1.0, [(f"s{row}", 1)]) for row in range(ROWS)]


async def test_a_search_that_fails_leaves_no_file(fgctl: Shell, files: Path) -> None:
    probes = ("--probes", str(files / "x.npy"), "--out", str(files / "out.jsonl"))
    failed = await fgctl("identify", "--gallery", "nobody", *probes)
    assert failed.code == 1
    assert failed.err.splitlines()[-1] == (
        "error: no such gallery gallery=nobody reason=GALLERY_UNKNOWN"
    )
    assert names_in(files) == ["s.txt", "t.txt", "x.npy"]


async def test_single_templates_are_shown_compared_and_erased(fgctl: Shell, files: Path) -> None:
    await fgctl(*CREATE)
    await fgctl(*enrol(files, "--templates", str(files / "t.txt")))
    on = ("--gallery", "staff")
    got = (
        await fgctl("get", *on, "--template", "t2", "--out", str(files / "v.npy"), "--json")
    ).document
    probe = ("--probe", str(files / "x.npy"), "--row", "2")
    scored = (await fgctl("verify", *on, "--subject", "s2", *probe, "--json")).document
    erased = await fgctl("erase", *on, "--subject", "s2", "--template", "t0", "--yes", "--json")
    assert (got["subject_id"], np.load(files / "v.npy").tolist()) == ("s2", got["vector"])
    assert (scored["template_id"], scored["score"] > 0.99) == ("t2", True)
    assert json.loads(erased.out) == {"gallery": "staff", "erased_templates_count": 2}
    assert "1 subjects with all their templates and templates of 1 ids" in erased.err
    assert sorted(fgctl.router.store.find("staff").rows) == [
        ("s1", "t1"),
        ("s3", "t3"),
        ("s4", "t4"),
    ]


async def test_answers_that_are_not_confirmed_say_so_in_words_and_in_json(
    fgctl: Shell, files: Path
) -> None:
    await fgctl(*CREATE)
    await fgctl(*enrol(files, "--templates", str(files / "t.txt")))
    on, probe = ("--gallery", "staff"), ("--probe", str(files / "x.npy"))
    asks = [
        ("identify", *on, "--probes", str(files / "x.npy")),
        ("verify", *on, "--subject", "s2", *probe),
        ("get", *on, "--template", "t2"),
    ]
    sound = [await fgctl(*ask) for ask in asks]
    fgctl.router.faults.unconfirmed_share = 0.25
    said = [await fgctl(*ask) for ask in asks]
    found, scored, got = [(await fgctl(*ask, "--json")).document for ask in asks]
    strict = ("--timeout", "0.3")
    refused = [
        await fgctl(*asks[0], "--unconfirmed-max", "0.2", *strict),
        await fgctl(*asks[1], "--confirmed-only", *strict),
        await fgctl(*asks[2], "--confirmed-only", *strict),
    ]

    assert ["unconfirmed" in ended.err for ended in (*sound, *said)] == [False] * 3 + [True] * 3
    assert "25% of the gallery was answered unconfirmed" in said[0].err
    assert {one["unconfirmed_share"] for one in found["lists"]} == {0.25}
    assert (scored["unconfirmed"], got["unconfirmed"]) == (True, True)
    assert ["reason=UNCONFIRMED" in ended.err for ended in refused] == [True] * 3


async def test_people_get_tables(fgctl: Shell, files: Path) -> None:
    await fgctl(*CREATE)
    enrolled = await fgctl(*enrol(files))
    shown = await fgctl("gallery", "show", "staff")
    listed = await fgctl("gallery", "list")
    found = await fgctl("identify", "--gallery", "staff", "--probes", str(files / "x.npy"))
    assert enrolled.out.startswith("enrolled 5 templates into staff (")
    assert "gallery staff" in shown.out
    assert "exact search" in listed.out
    assert "s4" in found.out
    assert [ended.code for ended in (enrolled, shown, listed, found)] == [0] * 4


async def test_a_cluster_that_is_away_is_an_error_in_one_line(fgctl: Shell) -> None:
    fgctl.router.faults.errors = [UnavailableError("away now")] * 50
    failed = await fgctl("gallery", "show", "staff", "--timeout", "0.3")
    assert (failed.code, failed.out, len(failed.err.splitlines())) == (1, "", 1)
    assert failed.err.startswith("error: ")


async def test_a_local_cluster_is_found_by_its_folder_with_its_replicas(
    fgctl: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    router = ProcessRecord("router1", "router", fgctl.router.address)
    cluster_file.save(tmp_path, ClusterRecord(replicas=3, search_threads=1, processes=(router,)))
    monkeypatch.setenv("FACEGRID_ROUTER", "127.0.0.1:1")
    code = await asyncio.to_thread(run, [*CREATE, "--dir", str(tmp_path)])
    assert code == 0
    assert fgctl.router.store.find("staff").gallery.replicas_count == 3


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["gallery", "list"], "say which cluster"),
        (["gallery", "create", "x", "--router", "a:1"], "Missing option '--dim'"),
        (["enrol", "--gallery", "g", "--router", "a:1"], "say what to enrol"),
        (["erase", "--gallery", "g", "--router", "a:1"], "say what to erase"),
        (["identify", "--gallery", "g", "--probes", "/nowhere", "--router", "a:1"], "/nowhere"),
        (["nonsense"], "No such command 'nonsense'"),
        (["local", "up", "--dir", "/nowhere/x", "--replicas", "9"], "replicas=9"),
    ],
)
def test_wrong_usage_ends_with_a_line_and_code_2(
    arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ")
    assert problem in shown.err
    assert len(shown.err.splitlines()) == 1


def test_a_folder_without_a_cluster_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["local", "down", "--dir", str(tmp_path / "none")]) == 1
    assert capsys.readouterr().err.endswith(" reason=CLUSTER_UNKNOWN\n")
    assert not (tmp_path / "none").exists()


def test_the_status_of_a_cluster_is_told_in_words() -> None:
    report = shard_service_pb2.ShardStatus(
        shard_id="g.0",
        gallery="g",
        state=shard_service_pb2.SHARD_STATE_SERVING,
        role=shard_service_pb2.SHARD_ROLE_PRIMARY,
        templates_count=3,
    )
    answer = admin_service_pb2.ClusterStatusResponse(
        nodes=[admin_service_pb2.ClusterStatusResponse.Node(id="n1", shards=[report])],
        shards=[
            admin_service_pb2.ClusterStatusResponse.Shard(
                id="g.0", gallery="g", first=0, last=2**64 - 1, node_ids=["n1"]
            )
        ],
        etcd_reachable=True,
    )
    document: Any = status_json(answer)
    told = document["nodes"][0]["shards"][0]
    assert (told["state"], told["role"], told["templates_count"]) == ("serving", "primary", 3)
    assert document["shards"] == [
        {
            "id": "g.0",
            "gallery": "g",
            "first": "0" * 16,
            "last": "f" * 16,
            "node_ids": ["n1"],
            "joining_node_ids": [],
            "source_shard_ids": [],
        }
    ]
    assert document["etcd_reachable"]


@pytest.mark.cluster
def test_ctrl_c_while_loading_ends_quietly() -> None:
    """Numpy, which everything loads first, stands for a person who is quick with Ctrl-C."""
    program = (
        "import sys\n"
        "class Quick:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'numpy': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Quick())\n"
        "from fgctl.__main__ import main\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=30
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "")
