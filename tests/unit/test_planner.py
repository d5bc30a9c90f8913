"""The planner on calibrations made by hand: whole plans, refusals, and what is printed."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from facegrid.errors import InvalidError, NotFoundError
from facegrid.tuning import Profile
from fgctl.__main__ import run
from fgctl.plan import calibration as calibrations
from fgctl.plan import fan_out, memory, readings, storage
from fgctl.plan.calibration import Calibration, Curve
from fgctl.plan.demand import GIB, H200, Demand, Machine
from fgctl.plan.fan_out import Crowd, simulated
from fgctl.plan.readings import FEW, MANY, SPLIT, Readings, Sizes
from fgctl.plan.remedies import remedies
from fgctl.plan.sizing import Broken, Plan, Trial, planned
from router.plan import hedge
from tests.fakes.plans import CALM, calibration_json

SMALL = Demand(templates_count=2e6, probes_per_s=50, p99_ms=100)
MACHINE = Machine()


def the_plan(demand: Demand, machine: Machine = MACHINE) -> Plan:
    found = planned(demand, machine, CALM)
    assert isinstance(found, Plan)
    return found


def test_a_small_gallery_fits_on_as_many_nodes_as_copies() -> None:
    plan = the_plan(SMALL)

    assert (plan.trial.nodes, plan.trial.shape.shards, plan.trial.shape.copies) == (2, 8, 2)
    assert plan.trial.shape.held(SMALL) == 2e6
    assert plan.recovery.reads_fail is False
    assert plan.routers == 2


def test_memory_is_what_the_arrays_and_ids_are_times_what_was_measured() -> None:
    demand = replace(SMALL, dim=512, id_bytes=16, templates_per_subject=1.0)

    assert memory.row_bytes(demand) == 512 + 9.125
    assert memory.code_bytes(demand) == 64 + 8
    assert memory.ids_bytes(demand) == (16 + 8) + 17 + (16 + 8 + 164)
    node = memory.node_memory(demand, MACHINE, CALM, held=1000, shard_rows=250)
    assert node.resident == CALM.node_base_bytes + 1000 * memory.template_bytes(demand) * 1.25


def test_rows_of_four_bits_take_half_as_much_and_are_named_where_memory_is_short() -> None:
    demand = replace(SMALL, dim=512, component_bits=4)
    assert memory.row_bytes(demand) == 256 + 9.125
    assert memory.code_bytes(demand) == memory.code_bytes(replace(SMALL, dim=512))
    with pytest.raises(InvalidError, match="8 or 4"):
        replace(SMALL, component_bits=5)


def test_where_memory_is_short_rows_of_four_bits_are_among_what_would_do() -> None:
    demand = replace(SMALL, p99_ms=10_000, replicas=1, probes_per_s=1)
    roomy = planned(demand, MACHINE, CALM, nodes_max=1)
    assert isinstance(roomy, Plan)
    tight = Machine(memory_bytes=0.9 * roomy.trial.node_memory.peak / 0.8)

    found = planned(demand, tight, CALM, nodes_max=1)

    assert isinstance(found, Broken)
    assert found.limit == "memory of a node"
    changes = {one.option: one.value for one in remedies(found, demand, tight, CALM, 1)}
    assert changes["--component-bits"] == "4"


def test_on_a_device_codes_leave_the_memory_of_the_node() -> None:
    machine = replace(MACHINE, device=H200)
    node = memory.node_memory(SMALL, machine, CALM, held=1e6, shard_rows=250_000)

    assert node.codes == 0
    assert memory.device_memory(SMALL, machine, held=1e6) == 72e6 + 0.15 * 139 * GIB
    assert the_plan(SMALL, machine).trial.device_bytes > 0


def test_one_copy_means_that_reads_fail_until_the_node_is_back() -> None:
    plan = the_plan(replace(SMALL, replicas=1))

    assert plan.recovery.reads_fail
    assert plan.recovery.writes_s == plan.load_s


def test_loading_takes_as_long_as_the_slower_of_store_and_node() -> None:
    fast = storage.load_s(SMALL, MACHINE, CALM, held=1e6)
    slow = storage.load_s(SMALL, replace(MACHINE, store_bytes_per_s=1e6), CALM, held=1e6)

    assert fast == CALM.start_s + 1e6 / CALM.load_per_s
    assert slow == CALM.start_s + storage.stored_bytes(SMALL, CALM)


def test_a_profile_looks_at_the_share_that_was_measured_to_suffice() -> None:
    curve = (Curve(1e-2, 0.1), Curve(1e-3, 0.4), Curve(1e-4, 0.9))
    known = replace(CALM, curve=curve)
    shares = {
        profile: Trial(replace(SMALL, profile=profile), MACHINE, known, 2).scanned_share
        for profile in Profile
    }

    assert shares == {Profile.EXHAUSTIVE: 0.9, Profile.BALANCED: 0.4, Profile.FAST: 0.1}
    assert CALM.scanned_share(0.5) == 1


def test_a_p99_below_one_scan_says_so_and_what_would_meet_it() -> None:
    demand = Demand(templates_count=20e6, probes_per_s=1, p99_ms=20, replicas=1)
    machine = Machine(cores=4)
    found = planned(demand, machine, CALM, nodes_max=4)

    assert isinstance(found, Broken)
    assert (found.limit, found.unit, found.need) == ("p99", "ms", 20)
    assert found.times == found.value / 20 > 1
    assert "one probe alone takes that long" in found.why
    changes = {one.option: one for one in remedies(found, demand, machine, CALM, 4)}
    assert {"--nodes-max", "--cores", "--p99-ms"} <= changes.keys()
    relaxed = replace(demand, p99_ms=float(changes["--p99-ms"].value))
    assert isinstance(planned(relaxed, machine, CALM, nodes_max=4), Plan)


@pytest.mark.parametrize(
    ("change", "machine", "nodes_max", "limit"),
    [
        ({"replicas": 3}, MACHINE, 2, "replicas"),
        ({"templates_count": 1e9}, MACHINE, 4, "memory of a node"),
        (
            {"templates_count": 4e9},
            Machine(memory_bytes=1e6 * GIB, device=H200),
            3,
            "device memory",
        ),
        ({"enrolments_per_s": 1e6}, MACHINE, 4, "enrolments"),
        ({"probes_per_s": 1e5}, MACHINE, 4, "throughput"),
    ],
)
def test_the_limit_that_breaks_is_named(
    change: dict[str, Any], machine: Machine, nodes_max: int, limit: str
) -> None:
    found = planned(replace(SMALL, **change), machine, CALM, nodes_max=nodes_max)

    assert isinstance(found, Broken)
    assert found.limit == limit
    assert found.times > 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("templates_count", 0),
        ("templates_count", float("nan")),
        ("probes_per_s", 0),
        ("p99_ms", -1),
        ("dim", 510),
        ("replicas", 6),
        ("miss_rate_max", 0.2),
        ("templates_per_subject", 0.5),
    ],
)
def test_what_cannot_be_asked_is_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(InvalidError) as caught:
        replace(SMALL, **{name: value})  # type: ignore[arg-type]  # wrong on purpose

    assert caught.value.reason == "OUT_OF_BOUNDS"


def test_a_calibration_survives_being_written(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    whole = replace(CALM, curve=(Curve(1e-3, 0.5),))
    calibrations.save(whole, path)

    assert calibrations.load(path) == whole


def test_the_built_in_calibration_says_where_it_was_measured() -> None:
    found = calibrations.built_in()

    assert found.hardware["processor"]
    assert found.versions["facegrid"]
    assert found.described.endswith("GiB")


@pytest.mark.parametrize(
    "change",
    [
        {"facegrid_calibration": 1},
        {"spread_at_s": 0},
        {"probes": [8, 64]},
        {"row_s": [1e-9]},
        {"load_per_s": -1},
        {"spread": [2.0, 1.0]},
        {"cores_share": 1.5},
        {"curve": [{"miss_rate": 0.1, "scanned_share": 0}]},
        {"hardware": {}},
        {"dim": None},
    ],
)
def test_a_calibration_that_cannot_be_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidError, match="cannot be used as a calibration"):
        calibrations.from_document(calibration_json() | change, source="test")


def test_a_calibration_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        calibrations.load(tmp_path / "none.json")
    (tmp_path / "text").write_text("no JSON")
    with pytest.raises(InvalidError):
        calibrations.load(tmp_path / "text")


def made_of(known: Calibration, sizes: Sizes) -> Readings:
    """Return what would be read off a cluster that is exactly as a calibration says."""
    counts = zip(known.probes, known.call_s, known.shard_s, known.row_s, strict=True)
    calls = {
        (name, count): [call_s + shards * shard_s + rows * row_s] * 5
        for count, call_s, shard_s, row_s in counts
        for name, rows, shards in (
            (FEW, sizes.few_rows, 1),
            (SPLIT, sizes.few_rows, sizes.shards),
            (MANY, sizes.many_rows, sizes.shards),
        )
    }
    each = memory.template_bytes(sizes.demand()) * known.memory_factor
    at = known.probes.index(64)
    fixed = known.call_s[at] + sizes.shards * known.shard_s[at]
    return Readings(
        sizes=sizes,
        calls_s=calls,
        narrow_s=[fixed + sizes.many_rows * known.row_s[at]],
        wide_s=[fixed + sizes.many_rows * known.row_s[at] / (1 + 3 * known.cores_share)],
        wide_probes=64,
        wide_threads=4,
        half_bytes=round(known.node_base_bytes + (sizes.rows - sizes.many_rows // 2) * each),
        full_bytes=round(known.node_base_bytes + sizes.rows * each),
        router_bytes=int(known.router_bytes),
        segments_bytes=round(sizes.rows * storage.stored_bytes(sizes.demand(), known)),
        start_s=known.start_s,
        all_start_s=known.start_s + 0.2,
        load_s=known.start_s + 0.2 + sizes.rows / known.load_per_s,
        enrol_s=sizes.many_rows / known.enrol_per_s,
        store_bytes_per_s=known.store_bytes_per_s,
        client_call_cpu_s=known.client_call_cpu_s,
        router_call_cpu_s=known.router_call_cpu_s,
        router_probe_cpu_s=known.router_probe_cpu_s,
        node_call_cpu_s=known.node_call_cpu_s,
    )


def test_what_is_read_off_comes_to_what_made_it() -> None:
    sizes = Sizes(10_000, 1_000_000, 4, 512, 16, 1.3)

    found = readings.calibration(
        made_of(CALM, sizes), time=CALM.time, hardware={}, versions={}, parameters={}
    )

    for name in ("call_s", "shard_s", "row_s"):
        assert getattr(found, name) == pytest.approx(getattr(CALM, name)), name
    for name in ("cores_share", "memory_factor", "disk_factor", "load_per_s", "enrol_per_s"):
        assert getattr(found, name) == pytest.approx(getattr(CALM, name), rel=1e-4), name
    assert found.node_base_bytes == pytest.approx(CALM.node_base_bytes, rel=1e-4)
    assert set(found.spread) == {1.0}


def test_noise_that_makes_times_fall_does_not_make_them_negative() -> None:
    sizes = Sizes(10_000, 100_000, 4, 512, 16, 1.3)
    calls = {(name, count): [0.01, 0.02, 0.03] for name in (FEW, SPLIT, MANY) for count in (1, 64)}
    noisy = replace(made_of(CALM, sizes), calls_s=calls, half_bytes=10**9, full_bytes=10**8)

    found = readings.calibration(noisy, time="", hardware={}, versions={}, parameters={})

    assert min(*found.row_s, *found.shard_s, *found.call_s) > 0
    assert found.memory_factor == readings.FACTOR_TYPICAL
    assert found.spread[0] < 1 < found.spread[-1]


def test_a_node_that_has_grown_little_does_not_show_what_a_template_takes() -> None:
    few = Sizes(6_000, 60_000, 4, 512, 16, 1.3)
    rough = replace(made_of(CALM, few), half_bytes=0)

    found = readings.calibration(rough, time="", hardware={}, versions={}, parameters={})

    assert found.parameters["memory_factor"] == "typical"
    each = memory.template_bytes(few.demand()) * readings.FACTOR_TYPICAL
    assert found.node_base_bytes + few.rows * each == pytest.approx(rough.full_bytes)


def test_the_simulation_hedges_as_the_router_does() -> None:
    names = ("SLOW_SHARE", "SLOW_S_MIN", "CALLS_PER_HEDGE", "HEDGES_SAVED_MAX")

    for name in names:
        assert getattr(fan_out, name) == getattr(hedge, name), name


def test_hedging_helps_against_one_slow_node_within_its_budget() -> None:
    crowd = Crowd(20, 0.1, 0.001, CALM.spread, slow_nodes=1, slow_factor=5)

    found = simulated(crowd, seed=1, searches=2000)

    assert found == simulated(crowd, seed=1, searches=2000)
    assert found.hedged.p50_s < 0.7 * found.plain.p50_s
    assert 0 < found.hedged.hedged_share <= 0.051
    sound = simulated(replace(crowd, slow_nodes=0), seed=1, searches=2000)
    assert sound.plain.p99_s < found.plain.p99_s


def test_more_nodes_have_longer_tails() -> None:
    tails = [
        simulated(Crowd(nodes, 0.1, 0, CALM.spread), seed=2, searches=2000).plain.p50_s
        for nodes in (1, 10, 100)
    ]

    assert tails == sorted(tails)
    assert np.ptp(tails) > 0


def lines_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[str]]:
    code = run(["plan", *arguments])
    shown = capsys.readouterr()
    assert shown.err == ""
    return code, shown.out.splitlines()


ASKED = ("--templates", "2e6", "--probes-per-s", "50", "--p99-ms", "100")


@pytest.fixture
def calm(tmp_path: Path) -> str:
    path = tmp_path / "calm.json"
    calibrations.save(CALM, path)
    return str(path)


def test_a_plan_for_people(capsys: pytest.CaptureFixture[str], calm: str) -> None:
    code, lines = lines_of(capsys, *ASKED, "--calibration", calm)

    assert code == 0
    text = "\n".join(lines)
    for word in ("nodes", "memory a node", "disk in the store", "load of a node", "assumptions:"):
        assert word in text
    assert "calm.json" in text
    assert "doubled" in text


def test_a_plan_for_programs(capsys: pytest.CaptureFixture[str], calm: str) -> None:
    code, lines = lines_of(capsys, *ASKED, "--calibration", calm, "--json")
    document = json.loads(lines[0])

    assert (code, len(lines), document["met"], document["nodes"]) == (0, 1, True, 2)
    again = {one["input"]: one for one in document["doubled"]}
    doubled = planned(replace(SMALL, templates_count=4e6), MACHINE, CALM)
    assert isinstance(doubled, Plan)
    assert again["templates_count"]["nodes"] == doubled.trial.nodes
    assert again["templates_count"]["p99_ms"] == doubled.trial.latency.p99_s * 1000


def test_a_plan_that_cannot_be_met(capsys: pytest.CaptureFixture[str], calm: str) -> None:
    asked = ("--templates", "1e9", "--probes-per-s", "1", "--p99-ms", "500", "--nodes-max", "4")
    code, lines = lines_of(capsys, *asked, "--calibration", calm)

    assert code == 1
    assert lines[0].startswith("this cannot be met: memory of a node ")
    assert "--nodes-max" in "\n".join(lines)
    code, lines = lines_of(capsys, *asked, "--calibration", calm, "--json")
    assert (code, json.loads(lines[0])["met"]) == (1, False)


def test_a_simulation_is_marked_as_one(capsys: pytest.CaptureFixture[str], calm: str) -> None:
    more = ("--calibration", calm, "--nodes", "30")
    code, lines = lines_of(capsys, "simulate", *ASKED, *more)

    assert code == 0
    assert lines[0].startswith("SIMULATED")
    code, lines = lines_of(capsys, "simulate", *ASKED, *more, "--json")
    assert json.loads(lines[0])["simulated"] is True


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "--templates --probes-per-s --p99-ms"),
        (("--templates", "0", *ASKED[2:]), "templates must be at least 1"),
        ((*ASKED, "--dim", "7"), "dim must be at least 8"),
        ((*ASKED, "--scanned-share", "2"), "scanned-share"),
        ((*ASKED, "--calibration", "nowhere.json"), "no such calibration"),
        ((*ASKED, "--device", "tpu"), "tpu"),
    ],
)
def test_bad_input_is_refused_with_the_reason(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], words: str
) -> None:
    code = run(["plan", *arguments])
    shown = capsys.readouterr()

    assert code in (1, 2)
    assert shown.out == ""
    assert words in shown.err
