"""Compares facegrid with its peers: `make bench-peers`, or `python -m bench.peers`.

Each peer, in a process of its own, is raced against ours in turns: libraries against the index in
process, embedded servers against client, router and two nodes. Settings are found by the same
search for all, on other probes than they are judged by.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import psutil

from bench import report
from bench.peers.compare import Bench, Chosen, Limits
from bench.peers.environment import failures
from bench.peers.process import ROOT, PeerError
from bench.peers.systems_known import FACEGRID, SERVED, SYSTEMS, System
from bench.peers.targets import targets
from bench.peers.truth_files import GALLERIES, gallery_of, prepare
from bench.report import Json
from facegrid.clock import Clock, SystemClock

DIM = 512
SEED = 1
VENV = ROOT / ".venv-peers"
EXACT_FLOPS = 3e10
MEMORY_SPARE_BYTES = 2 << 30
PART = "peers-part"
"""What a comparison with some of the peers is called."""

Values = dict[str, Json]


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="bench.peers", description="facegrid and its peers.")
    names = [system.name for system in SYSTEMS]
    parser.add_argument("--templates", type=int, default=200_000, help="in the gallery")
    parser.add_argument(
        "--probes", type=int, default=12_800, help="in each set, half of them mated"
    )
    parser.add_argument("--galleries", default="default,clustered", help=", ".join(GALLERIES))
    parser.add_argument("--systems", default=",".join(names), help="peers to compare with")
    parser.add_argument("--threads", type=int, default=2, help="of each system")
    parser.add_argument("--budget-s", type=float, default=120.0, help="to find settings, each")
    parser.add_argument("--limit-s", type=float, default=1800.0, help="for one build or search")
    parser.add_argument("--rounds", type=int, default=5, help="of each race")
    parser.add_argument("--round-s", type=float, default=1.0, help="of one side of a round")
    parser.add_argument("--venv", type=Path, default=VENV, help="the peers' environment")
    parser.add_argument("--results", type=Path, default=report.RESULTS, help="where to write")
    given = parser.parse_args(argv)
    for name, known in (("galleries", GALLERIES), ("systems", names)):
        unknown = {*getattr(given, name).split(",")} - {*known}
        if unknown:
            parser.error(f"unknown {name}: {' '.join(sorted(unknown))}")
    return given


def estimate(given: argparse.Namespace, systems: Sequence[System]) -> tuple[float, int]:
    """Return about how many seconds a run takes, and bytes of memory at its peak."""
    count = given.templates
    exact_s = 2 * given.probes * count * 2 * DIM / EXACT_FLOPS
    race_s = (given.rounds + 1) * 4 * given.round_s
    each = [one.build_ms_per_template * count / 1000 + given.budget_s + race_s for one in systems]
    # Ours, the best build so far and the next one, and the templates as a file in memory.
    largest = max(one.bytes_per_template for one in systems)
    memory = count * (FACEGRID.bytes_per_template + 2 * largest + 4 * DIM)
    return (exact_s + sum(each)) * len(given.galleries.split(",")), memory + MEMORY_SPARE_BYTES


class Run:
    """One comparison.

    Args:
        given: the command line.
        failed: packages that could not be installed, and why.
        clock: for budgets.
    """

    def __init__(self, given: argparse.Namespace, failed: dict[str, str], clock: Clock) -> None:
        self._given = given
        self._failed = failed
        self._clock = clock
        self.rows: list[Values] = []
        self.parameters: list[Json] = []

    def gallery(self, name: str, systems: Sequence[System], folder: Path) -> None:
        """Measure all systems on one gallery."""
        given = self._given
        truth = prepare(gallery_of(name, given.templates, DIM, SEED), given.probes, folder)
        self.parameters.append({"gallery": name, **truth.parameters})
        limits = Limits(given.threads, given.budget_s, given.limit_s, given.rounds, given.round_s)
        bench = Bench(truth, folder, python_of=self._python_of, limits=limits, clock=self._clock)
        for ours, kind in ((FACEGRID, "library"), (SERVED, "server")):
            peers = [system for system in systems if system.kind == kind]
            if peers:
                self._against(bench, ours, peers, name)

    def _against(self, bench: Bench, ours: System, peers: list[System], gallery: str) -> None:
        with ExitStack() as stack:
            mine = bench.choose(ours)
            stack.callback(mine.process.close)
            own: Values = {"gallery": gallery, "name": ours.name, "kind": ours.kind}
            own |= bench.judged(mine)
            own |= bench.raced(mine, mine).values
            self._say(own)
            for system in peers:
                row: Values = {"gallery": gallery, "name": system.name, "kind": system.kind}
                row |= self._peer(bench, mine, system)
                self._say(row)

    def _peer(self, bench: Bench, mine: Chosen, system: System) -> Values:
        if system.package in self._failed:
            return {"state": "not installed", "reason": self._failed[system.package]}
        try:
            chosen = bench.choose(system)
        except PeerError as error:
            return {"state": error.state, "reason": error.reason}
        try:
            return bench.judged(chosen) | bench.raced(mine, chosen).values
        except PeerError as error:
            return {"state": error.state, "reason": error.reason}
        finally:
            chosen.process.close()

    def _python_of(self, system: System) -> Path:
        return self._given.venv / "bin" / "python" if system.package else Path(sys.executable)

    def _say(self, row: Values) -> None:
        self.rows.append(row)
        print(line_of(row), flush=True)


def line_of(row: Values) -> str:
    """Return a row as a line; the settings last."""
    start = f"{row['gallery']:<10} {row['name']:<16}"
    if row["state"] != "measured":
        return f"{start} {row['state']}: {row['reason']}"
    ratio = row["ours_by_it_64"]
    assert isinstance(ratio, float), "measured"
    winner = "ours is faster" if ratio > 1 else "IT IS FASTER"
    note = "" if row["enough_in_tuning"] else "; no settings found miss few enough"
    return (
        f"{start} probes/s {row['probes_per_s_64']:.0f} at 64, {row['probes_per_s_1']:.0f} alone;"
        f" ours x{ratio:.2f} ({row['ours_by_it_64_low']:.2f} to {row['ours_by_it_64_high']:.2f},"
        f" {winner}), x{row['ours_by_it_1']:.2f} alone; extra FNIR {row['extra_fnir']:.5f}"
        f" (at most {row['extra_fnir_max']:.5f}{note}); recall@10 {row['recall_at_10']:.3f};"
        f" build {row['build_s']:.1f} s; {row['memory_bytes_per_template']:.0f} B/template;"
        f" {row['settings']}"
    )


def main() -> int:
    """Compare, print, and write the results down."""
    given = parse(sys.argv[1:])
    clock = SystemClock()
    systems = [system for system in SYSTEMS if system.name in given.systems.split(",")]
    seconds, memory = estimate(given, systems)
    print(f"about {seconds / 60:.0f} minutes and {memory / 2**30:.1f} GiB of memory", flush=True)
    if psutil.virtual_memory().available < memory:
        print("this machine has not enough free memory: fewer --templates, please")
        return 2
    external = any(system.package for system in systems)
    if external and not (given.venv / "bin" / "python").exists():
        print("the peers are not installed: make bench-peers")
        return 2
    run = Run(given, failures(given.venv) if external else {}, clock)
    for name in given.galleries.split(","):
        with tempfile.TemporaryDirectory(prefix="facegrid-peers-") as folder:
            run.gallery(name, systems, Path(folder))
    whole = len(systems) == len(SYSTEMS)
    # A comparison with some of the peers is one of its own, and tells of nothing else.
    reached = [one for one in targets(run.rows) if whole or one.value is not None or one.unreached]
    results: Values = {
        "parameters": run.parameters,
        "limits": {
            name: getattr(given, name)
            for name in ("templates", "probes", "threads", "budget_s", "limit_s", "rounds")
        },
        "peers_versions": report.versions_in(given.venv / "bin" / "python") if external else {},
        "systems": run.rows,
        "targets": [one.as_json() for one in reached],
    }
    command = ["python", "-m", "bench.peers", *report.without_folders(sys.argv[1:])]
    path = report.write(
        "peers" if whole else PART,
        command,
        unix_ms=clock.unix_ms(),
        results=results,
        folder=given.results,
    )
    for one in reached:
        print(one.line())
    print(f"written: {path.name}; targets are at the size given, {given.templates:,} templates")
    return 0


if __name__ == "__main__":
    sys.exit(main())
