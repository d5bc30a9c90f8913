"""The comparison with peers: the driver, the search of settings and the targets, without peers."""

import sys
from pathlib import Path

import pytest

from bench.peers.__main__ import Run, estimate, line_of, parse
from bench.peers.compare import Bench, Limits
from bench.peers.process import PeerError
from bench.peers.settings_search import Try, climb, misses_allowed
from bench.peers.systems_known import SYSTEMS, System
from bench.peers.targets import targets
from bench.peers.truth_files import Truth, gallery_of, prepare
from bench.report import Json
from facegrid.clock import SystemClock
from tests.fakes.peer import FakePeer

LIMITS = Limits(threads=1, budget_s=60, limit_s=60, rounds=1, round_s=0.01)
FAKE = System("fake", "library", f"{FakePeer.__module__}:FakePeer")
DYING = System("dying", "library", "tests.fakes.peer:DyingPeer")
ENDLESS = System("endless", "library", "tests.fakes.peer:EndlessPeer")


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Truth:
    return prepare(gallery_of("default", 1500, 64, 1), 400, tmp_path_factory.mktemp("truth"))


def bench(truth: Truth, folder: Path, limits: Limits = LIMITS) -> Bench:
    clock = SystemClock()
    return Bench(
        truth, folder, python_of=lambda _: Path(sys.executable), limits=limits, clock=clock
    )


def test_a_system_is_chosen_judged_and_raced(truth: Truth, tmp_path: Path) -> None:
    """200 mated probes prove no rate of 1e-3, so the one that misses least is taken: the top."""
    run = bench(truth, tmp_path)

    chosen = run.choose(FAKE)
    row = run.judged(chosen) | run.raced(chosen, chosen).values
    chosen.process.close()

    assert row["settings"] == {"kind": "fake", "percent": 100}
    assert (row["extra_fnir"], row["recall_at_10"]) == (0, 1)
    assert row["extra_fnir_max"] == pytest.approx(3 / 200, rel=0.01)
    assert row["disk_bytes_per_template"] == pytest.approx(64 * 4, rel=0.01)
    assert isinstance(row["ours_by_it_64"], float)
    assert "fake" in line_of({"gallery": "default", "name": "fake", **row})


def test_a_system_that_dies_says_why(truth: Truth, tmp_path: Path) -> None:
    with pytest.raises(PeerError) as caught:
        bench(truth, tmp_path).choose(DYING)

    assert caught.value.state == "failed"
    assert caught.value.reason.endswith("MemoryError: no room for so many links")


def test_a_system_that_takes_too_long_is_ended(truth: Truth, tmp_path: Path) -> None:
    limits = Limits(threads=1, budget_s=1, limit_s=0.2, rounds=1, round_s=0.01)

    with pytest.raises(PeerError) as caught:
        bench(truth, tmp_path, limits).choose(ENDLESS)

    assert caught.value.state == "over time"


def test_exact_search_misses_nothing_and_less_misses_some(truth: Truth) -> None:
    probes = truth.judging
    nobody = FakePeer(Path(), 1)
    nobody._templates = truth.templates
    nobody.use({"percent": 100})
    every = nobody.search(probes.vectors, 10)
    nobody.use({"percent": 50})
    half = nobody.search(probes.vectors, 10)

    places = probes.accepted()
    assert truth.misses(places, every[places], probes) == 0
    assert truth.misses(places, half[places], probes) > len(places) / 4
    assert (truth.accuracy(half).extra_fnir or 0) > 0.2
    assert truth.recall(half) < 0.9


@pytest.mark.parametrize("need", range(9))
def test_a_ladder_yields_its_lowest_rung_that_suffices(need: int) -> None:
    ladder = [{"effort": number} for number in range(8)]

    tries = climb(ladder, lambda one: Try(one, 0, 1, int(one["effort"]) >= need), lambda: True)

    assert tries[-1].settings == {"effort": min(need, 7)}
    assert tries[-1].enough == (need < 8)
    assert len(tries) <= 4


def test_without_time_only_the_top_rung_is_tried() -> None:
    ladder = [{"effort": number} for number in range(8)]

    tries = climb(ladder, lambda one: Try(one, 0, 1, enough=True), lambda: False)

    assert [one.settings for one in tries] == [{"effort": 7}]


def test_few_mates_prove_no_rate() -> None:
    assert [misses_allowed(count) for count in (100, 3000, 6400)] == [-1, 0, 2]


def test_targets_count_the_worse_gallery_and_need_every_system() -> None:
    rows: list[dict[str, Json]] = [
        {
            "gallery": one,
            "name": "facegrid",
            "enough_in_tuning": True,
            "build_s": 1,
            "memory_bytes_per_template": 600,
        }
        for one in ("default", "clustered")
    ]
    rows += [{**row, "name": "facegrid-4bit", "memory_bytes_per_template": 400} for row in rows]
    for one, ratio in (("default", 6.0), ("clustered", 4.0)):
        graph = {
            "enough_in_tuning": True,
            "ours_by_it_64": ratio,
            "build_s": 9.0,
            "memory_bytes_per_template": 2400,
        }
        rows.append({"gallery": one, "name": "hnswlib", **graph})
        rows.append({"gallery": one, "name": "qdrant-edge", **graph})

    found = {target.id: target for target in targets(rows)}

    assert found["G8-qdrant"].line() == "target G8-qdrant value=4 need=5 met=no"
    assert (found["G7-build"].value, found["G7-build"].met) == (9, True)
    assert (found["G7-memory"].value, found["G7-memory"].met) == (0.25, False)
    packed = found["G7-memory_of_4_bits"]
    assert (round(packed.value or 0, 3), packed.met) == (0.167, True)
    assert found["G8-milvus"].line() == "target G8-milvus value=unmeasured need=2 met=no"
    assert found["G7-per-gb"].value is None


@pytest.mark.parametrize(
    ("ours", "theirs", "line"),
    [
        (True, False, "target G8-qdrant value=unreached_by_peer need=5 met=yes"),
        (False, True, "target G8-qdrant value=unmeasured need=5 met=no"),
        (True, True, "target G8-qdrant value=0.5 need=5 met=no"),
    ],
)
def test_speeds_count_only_at_equal_extra_fnir(*, ours: bool, theirs: bool, line: str) -> None:
    rows: list[dict[str, Json]] = [
        {"gallery": "default", "name": "facegrid", "enough_in_tuning": ours},
        {
            "gallery": "default",
            "name": "qdrant-edge",
            "enough_in_tuning": theirs,
            "ours_by_it_64": 0.5,
        },
    ]

    found = {target.id: target for target in targets(rows)}

    assert found["G8-qdrant"].line() == line


def test_a_package_that_is_not_there_is_a_row(truth: Truth, tmp_path: Path) -> None:
    run = Run(parse([]), {"hnswlib": "ERROR: no matching distribution"}, SystemClock())
    mine = bench(truth, tmp_path).choose(FAKE)
    system = next(one for one in SYSTEMS if one.name == "hnswlib")

    row = run._peer(bench(truth, tmp_path), mine, system)

    mine.process.close()
    assert row == {"state": "not installed", "reason": "ERROR: no matching distribution"}


def test_the_estimate_grows_with_the_gallery() -> None:
    small = estimate(parse(["--templates", "20000"]), SYSTEMS)
    large = estimate(parse(["--templates", "1000000"]), SYSTEMS)

    assert large[0] > small[0]
    assert large[1] > small[1] + 980_000 * 4 * 512


def test_an_unknown_system_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--systems", "hnswlib,elsewhere"])

    assert "unknown systems: elsewhere" in capsys.readouterr().err
