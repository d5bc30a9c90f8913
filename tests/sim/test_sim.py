"""The protocols under one seed: every promise holds, and broken protocols are found out."""

import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SEEDS = os.environ.get("FACEGRID_SEEDS", "")  # noqa: TID251 - the edge where replays come in
"""Seeds to replay with their history, such as 1341 or 1,2,5-9; unset: those of every run."""
PARTS = 2
CPU_S_MAX = 1800
"""Processor time of one part: several times what the longest takes on a slow machine."""
# They compute in what the other tests leave of the cores: how long that takes says little of them.
pytestmark = pytest.mark.timeout(4500)

MUST_HAPPEN = (
    "acknowledged",
    "crashes",
    "crashes_in_calls",
    "cutovers",
    "cuts",
    "drops",
    "drops_without_the_first_node",
    "erasures_in_journals",
    "graceful_stops",
    "manifests_committed",
    "movers_crashed",
    "moves_aborted",
    "moves_done",
    "objects_deleted",
    "outages_of_etcd",
    "pauses",
    "processes_deafened",
    "processes_fenced_off",
    "searches_answered",
    "searches_refused",
    "stalls_in_calls",
    "starts_from_a_saved_view",
    "takeovers",
    "times_repacked",
    "unconfirmed_answers",
)
"""A simulation in which one of these never happens shows less than it seems to."""


def play(*options: str, parts: int = PARTS, hash_seed: str = "0") -> tuple[int, list[str]]:
    """Play seeds in processes of their own; return the highest exit status and all lines."""
    environment = {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tools")]),
        "PYTHONHASHSEED": hash_seed,
    }
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.sim.run", "--part", f"{part}/{parts}", *options],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for part in range(parts)
    ]
    for process in running:
        resource.prlimit(process.pid, resource.RLIMIT_CPU, (CPU_S_MAX, CPU_S_MAX))
    try:
        lines = [line for process in running for line in process.communicate()[0].splitlines()]
    finally:
        for process in running:
            process.kill()
            process.wait()
    return max(abs(process.returncode) for process in running), lines


def totals(lines: Sequence[str]) -> dict[str, int]:
    """Return what happened in all runs together."""
    found: dict[str, int] = {}
    for line in lines:
        pairs = [pair.split("=") for pair in line.split() if pair.count("=") == 1]
        if len(pairs) == len(line.split()) > 0 and "spent_s" not in line:
            for what, count in pairs:
                found[what] = found.get(what, 0) + int(count)
    return found


def test_every_promise_holds_whatever_fails() -> None:
    """Crashes, pauses, cuts, lost requests and answers, late arrivals, outages; see nemesis."""
    if SEEDS:
        status, lines = play("--seeds", SEEDS, "--trace", parts=1)
    else:
        status, lines = play("--seeds", "1-2000")

    assert status == 0, "\n".join(lines[-450:])
    if not SEEDS:
        assert [what for what in MUST_HAPPEN if not totals(lines).get(what)] == []


def test_damaged_objects_are_never_served() -> None:
    """Bits of stored objects flip: a copy serves the truth, or refuses and says so."""
    status, lines = play("--seeds", "1-150", "--flips")

    assert status == 0, "\n".join(lines)
    happened = totals(lines)
    assert (happened["bits_flipped"] > 0, happened["copies_that_refuse_damaged_bytes"] > 0) == (
        True,
        True,
    )


def test_loads_take_effect_once_beside_all_that() -> None:
    """A loader stores segments, has them committed, and gives some up, under the same faults."""
    status, lines = play("--seeds", "1-250,646", "--loads")

    assert status == 0, "\n".join(lines)
    happened = totals(lines)
    wanted = ("loads_acknowledged", "loads_given_up", "loads_refused", "takeovers")
    assert [what for what in wanted if not happened.get(what)] == []


def test_a_sweep_that_heeds_no_pins_is_found_out() -> None:
    """A negative control: segments that wait for their commit are swept."""
    status, lines = play("--seeds", "1-100", "--loads", "--without", "pins")

    assert status == 1
    assert any("a pinned segment was missing" in line for line in lines), lines


def test_copies_move_beside_processes_that_hear_of_no_new_map() -> None:
    """Who joins, serves and leaves is known to the primary in time, or is not confirmed."""
    status, lines = play("--seeds", "1-40", "--deaf")

    assert status == 0, "\n".join(lines)
    happened = totals(lines)
    wanted = ("steps_join", "steps_serve", "steps_cutover", "steps_leave", "processes_deafened")
    assert [what for what in wanted if not happened.get(what)] == []


@pytest.mark.parametrize(
    ("without", "complaints"),
    [
        ("joining_waits", ("an erased template came back",)),
        (
            "map_confirms",
            ("confirmed without a map that says so", "an erased template came back"),
        ),
    ],
)
def test_moves_without_a_safeguard_are_found_out(
    without: str, complaints: tuple[str, ...]
) -> None:
    """Negative controls: erasures wait for no copy that joins or left; maps confirm nobody."""
    status, lines = play("--seeds", "1-40", "--deaf", "--without", without)

    assert status == 1
    verdicts = [line for line in lines if "Violation" in line]
    assert any(complaint in line for line in verdicts for complaint in complaints), lines


def test_shards_are_split_and_merged_beside_all_that() -> None:
    """Operations are driven by the real driver, which dies, is doubled and comes late."""
    status, lines = play("--seeds", "1-40,1389", "--splits")

    assert status == 0, "\n".join(lines)
    happened = totals(lines)
    wanted = (
        "drivers_crashed",
        "drivers_paused",
        "late_copies",
        "merges_done",
        "operations_told_abort",
        "operations_told_pause",
        "records_brought_over",
        "shapes_changed",
        "shards_deleted",
        "splits_aborted",
        "splits_done",
        "takeovers",
    )
    assert [what for what in wanted if not happened.get(what)] == []


@pytest.mark.parametrize(
    ("without", "seeds", "complaint"),
    [
        ("cutover_guards", "15-30", "cut over before all was brought over"),
        ("children_wait", "160-170", "an erased template came back"),
        ("inherits", "1-12", "a request took effect again in a child"),
    ],
)
def test_splits_without_a_safeguard_are_found_out(
    without: str, seeds: str, complaint: str
) -> None:
    """Negative controls: cutovers that do not ask what was written since; children that do not
    wait for who searches their sources, or do not know what these carried out.
    """
    status, lines = play("--seeds", seeds, "--splits", "--without", without)

    assert status == 1
    verdicts = [line for line in lines if "Violation" in line]
    assert any(complaint in line for line in verdicts), lines


def test_the_same_seed_gives_the_same_run() -> None:
    """Two processes that hash text differently agree on every event of a run."""
    for options in (("--seeds", "1-12"), ("--seeds", "1-12", "--splits")):
        first = play(*options, "--digests", parts=1, hash_seed="1")[1][:12]
        again = play(*options, "--digests", parts=1, hash_seed="2")[1][:12]

        assert first == again
        assert len({line.split(": ")[1] for line in first}) == 12, "other seeds, other runs"


@pytest.mark.parametrize(
    ("without", "complaints"),
    [
        (
            "fencing",
            (
                "committed without the claim",
                "the log has a gap or goes back",
                "a generation did not grow by one",
            ),
        ),
        (
            "commit_before_ack",
            ("acknowledged, but not committed", "told other counts", "told another"),
        ),
        ("erase_waits", ("an erased template came back",)),
        ("claim_waits", ("an erased template came back",)),
    ],
)
def test_a_broken_protocol_is_found_out(without: str, complaints: tuple[str, ...]) -> None:
    """Negative controls: the same seeds with one safeguard taken out."""
    status, lines = play("--seeds", "1-200", "--without", without)

    assert status == 1
    verdicts = [line for line in lines if "Violation" in line]
    assert any(complaint in line for line in verdicts for complaint in complaints), lines
