"""A day's worth of enrolments in some minutes: does anything grow? `python -m bench.soak`.

On a cluster of three nodes with two copies of each shard, cycle after cycle enrols as many
templates as the gallery holds and erases those of the cycle before, so that the population stays
the same. After each cycle it is noted what every process holds: memory, open files, threads; and
how many objects lie in the store and how many keys in etcd. The last third of the cycles must not
hold more than the first third, by more than a stated share.
"""

import argparse
import asyncio
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

import numpy as np

import facegrid
from bench import report
from bench.report import Json
from facegrid import limits
from facegrid.clock import Clock, SystemClock
from facegrid.coord.etcd import EtcdCoordinator
from facegrid.vectors import Float32
from fgctl.local import processes
from fgctl.local.cluster import LocalCluster

GALLERY = "soak"
NODES = 3
REPLICAS = 2
SHARDS = 4
DIM = 64
CYCLES = 24
TEMPLATES = 20_000
BATCH_ROWS = 1024
PROBES = 256
PROBES_PER_CALL = 64
TIMEOUT_S = 60.0
ERASED_REWRITE_S = 2
"""So that what was erased has left the store some seconds after a cycle."""
SETTLE_S = 4.0
"""Waited after a cycle, for segments to be rewritten and copies to be repacked."""
GROWTH_MAX = 0.10
"""Share by which the mean of the last third of the cycles may exceed that of the first."""
COUNT_GROWTH_MAX = 2.0
"""Likewise, by so many open files or threads: runtimes start one now and then."""
COUNTED = ("files", "threads")
THIRDS = 3
MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Held:
    """What one process holds."""

    memory_bytes: int
    files: int
    threads: int


@dataclass(frozen=True, slots=True)
class Sample:
    """What there is after a cycle.

    Attributes:
        processes: by name.
        objects: in the store, without the erasure journal.
        stored_bytes: of all of them.
        journal_objects: of the erasure journal, which is meant to grow: it is never deleted as
            long as its gallery is there (docs/rfcs/0008-snapshots.md).
        journal_bytes: of all of these.
        keys: in etcd.
        templates: that the gallery counts.
    """

    processes: Mapping[str, Held]
    objects: int
    stored_bytes: int
    journal_objects: int
    journal_bytes: int
    keys: int
    templates: int

    def line(self, cycle: int) -> str:
        """Return what to print."""
        memory = " ".join(
            f"{name}={held.memory_bytes // MIB}" for name, held in self.processes.items()
        )
        return (
            f"cycle={cycle} templates={self.templates} objects={self.objects} keys={self.keys}"
            f" stored_mib={self.stored_bytes / MIB:.1f} journal={self.journal_objects}"
            f" journal_mib={self.journal_bytes / MIB:.1f} memory_mib: {memory}"
        )


@dataclass(frozen=True, slots=True)
class Growth:
    """How much more of something there is in the last third than in the first."""

    what: str
    first: float
    last: float

    @property
    def share(self) -> float:
        """The difference as a share of what there was at first."""
        return (self.last - self.first) / max(self.first, 1.0)

    @property
    def flat(self) -> bool:
        """Whether that is no growth."""
        few = self.what.startswith(COUNTED) and self.last - self.first <= COUNT_GROWTH_MAX
        return few or self.share <= GROWTH_MAX

    @property
    def line(self) -> str:
        """Return what to print."""
        return f"{self.what}: first={self.first:.1f} last={self.last:.1f} share={self.share:+.3f}"


def growths(samples: Sequence[Sample]) -> list[Growth]:
    """Compare the last third of the samples with the first third, in everything that they note."""
    size = len(samples) // THIRDS
    assert size >= 1, f"too few cycles: {len(samples)}"
    found: list[Growth] = []
    for what in sorted(_numbers(samples[0])):
        values = [_numbers(sample)[what] for sample in samples]
        found.append(Growth(what, fmean(values[:size]), fmean(values[-size:])))
    return found


def _numbers(sample: Sample) -> dict[str, float]:
    numbers: dict[str, float] = {
        "objects": sample.objects,
        "stored_mib": sample.stored_bytes / MIB,
        "keys": sample.keys,
        "templates": sample.templates,
    }
    for name, held in sample.processes.items():
        numbers[f"memory_mib {name}"] = held.memory_bytes / MIB
        numbers[f"files {name}"] = held.files
        numbers[f"threads {name}"] = held.threads
    return numbers


class Soak:
    """One run on a cluster that is up.

    Args:
        cluster: to look at.
        client: of it.
        clock: for the pauses.
        templates_count: enrolled in each cycle.
        seed: of the vectors.
    """

    def __init__(
        self,
        cluster: LocalCluster,
        client: facegrid.Client,
        *,
        clock: Clock,
        templates_count: int,
        seed: int,
    ) -> None:
        self._cluster = cluster
        self._client = client
        self._clock = clock
        self._templates_count = templates_count
        self._seed = seed

    def cycle(self, number: int) -> Sample:
        """Enrol, search, erase what the cycle before enrolled, and look."""
        batches = [
            self._batch(number, first) for first in range(0, self._templates_count, BATCH_ROWS)
        ]
        self._client.enrol_stream(GALLERY, batches)
        self._search(np.concatenate([batch.vectors for batch in batches])[:PROBES])
        if number:
            before = [_subject(number - 1, row) for row in range(self._templates_count)]
            for first in range(0, len(before), limits.ERASE_IDS_MAX):
                part = before[first : first + limits.ERASE_IDS_MAX]
                self._client.erase(GALLERY, subject_ids=part)
        return self.look()

    def look(self) -> Sample:
        """Return what there is once everything has settled."""
        asyncio.run(self._clock.sleep(SETTLE_S))
        held: dict[str, Held] = {}
        for record in self._cluster.record.processes:
            process = processes.find(record)
            assert process is not None, f"a process ended by itself: {record.name}"
            held[record.name] = Held(
                process.memory_info().rss, process.num_fds(), process.num_threads()
            )
        store = self._cluster.store
        journal = _sizes(store / "journal")
        sizes = _sizes(store)
        return Sample(
            processes=held,
            objects=len(sizes) - len(journal),
            stored_bytes=sum(sizes) - sum(journal),
            journal_objects=len(journal),
            journal_bytes=sum(journal),
            keys=asyncio.run(self._keys()),
            templates=self._client.get_gallery(GALLERY).templates_count or 0,
        )

    def _batch(self, cycle: int, first: int) -> facegrid.EnrolBatch:
        rows = range(first, min(first + BATCH_ROWS, self._templates_count))
        rng = np.random.default_rng([self._seed, cycle, first])
        return facegrid.EnrolBatch(
            template_ids=[f"{cycle}-{row}" for row in rows],
            subject_ids=[_subject(cycle, row) for row in rows],
            vectors=_unit(rng.standard_normal((len(rows), DIM)).astype(np.float32)),
        )

    def _search(self, probes: Float32) -> None:
        for first in range(0, len(probes), PROBES_PER_CALL):
            self._client.identify(GALLERY, probes[first : first + PROBES_PER_CALL])

    async def _keys(self) -> int:
        endpoints = [member.address for member in self._cluster.record.of_kind("etcd")]
        coordinator = EtcdCoordinator(endpoints, clock=self._clock)
        try:
            return len((await coordinator.list("")).items)
        finally:
            await coordinator.aclose()


def _subject(cycle: int, row: int) -> str:
    return f"subject-{cycle}-{row}"


def _sizes(folder: Path) -> list[int]:
    return [path.stat().st_size for path in folder.rglob("*") if path.is_file()]


def _unit(x: Float32) -> Float32:
    unit: Float32 = x / np.linalg.norm(x, axis=1, keepdims=True)
    return unit


def run(
    cycles: int, templates_count: int, *, seed: int, folder: Path, clock: Clock
) -> list[Sample]:
    """Play all cycles on a cluster that is stopped again; return a sample of each."""
    with ExitStack() as stack:
        cluster = LocalCluster(folder / "cluster", nodes=NODES, replicas=REPLICAS, etcd=1)
        routers = list(cluster.up().router_targets)
        stack.callback(cluster.down)
        client = stack.enter_context(facegrid.Client(routers, timeout_s=TIMEOUT_S))
        client.create_gallery(
            GALLERY,
            dim=DIM,
            extractor="soak@1",
            shards=SHARDS,
            replicas=REPLICAS,
            train_at=max(limits.TRAIN_ROWS_MIN, templates_count // 2),
        )
        soak = Soak(cluster, client, clock=clock, templates_count=templates_count, seed=seed)
        # The first two fill the gallery, train it and warm all caches.
        soak.cycle(0)
        soak.cycle(1)
        samples: list[Sample] = []
        for number in range(2, cycles + 2):
            samples.append(soak.cycle(number))
            print(f"  {samples[-1].line(number - 1)}", flush=True)
    return samples


def as_json(samples: Sequence[Sample], found: Sequence[Growth]) -> dict[str, Json]:
    """Return everything as JSON."""
    return {
        "cluster": {"shards": SHARDS, "nodes": NODES, "routers": 1, "replicas": REPLICAS},
        "dim": DIM,
        "growth_max": GROWTH_MAX,
        "growth": {
            one.what: {"first": one.first, "last": one.last, "share": one.share} for one in found
        },
        "samples": [asdict(sample) for sample in samples],
    }


def main() -> int:
    """Play, write the results down, and return 0 only if nothing grew."""
    parser = argparse.ArgumentParser(prog="bench.soak", description="Does anything grow?")
    parser.add_argument("--cycles", type=int, default=CYCLES, help="at least three")
    parser.add_argument("--templates", type=int, default=TEMPLATES, help="enrolled in a cycle")
    parser.add_argument("--seed", type=int, default=1, help="of the vectors")
    parser.add_argument("--results", type=Path, default=report.RESULTS, help="folder for the JSON")
    given = parser.parse_args()
    if given.cycles < THIRDS:
        parser.error(f"at least {THIRDS} cycles")
    os.environ["FACEGRID_INDEXD_ERASED_REWRITE_S"] = str(ERASED_REWRITE_S)  # noqa: TID251 - nodes inherit it
    clock = SystemClock()
    with tempfile.TemporaryDirectory(prefix="facegrid-soak-") as folder:
        samples = run(
            given.cycles, given.templates, seed=given.seed, folder=Path(folder), clock=clock
        )
    found = growths(samples)
    parameters = {name: value for name, value in vars(given).items() if name != "results"}
    command = ["python", "-m", "bench.soak", *report.without_folders(sys.argv[1:])]
    path = report.write(
        "soak",
        command,
        unix_ms=clock.unix_ms(),
        results={"parameters": parameters} | as_json(samples, found),
        folder=given.results,
    )
    for one in found:
        print(f"  {one.line}")
    print(f"written: {path}")
    grown = [one.what for one in found if not one.flat]
    enrolled = given.cycles * given.templates
    verdict = f"failed grew: {', '.join(grown)}" if grown else "ok"
    print(f"soak: {verdict} cycles={given.cycles} enrolled={enrolled} growth_max={GROWTH_MAX:g}")
    return 1 if grown else 0


if __name__ == "__main__":
    sys.exit(main())
