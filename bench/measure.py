"""The public API under a stopwatch. Only the calls are timed."""

from dataclasses import dataclass
from pathlib import Path

import psutil

import facegrid
from bench.dataset import Dataset
from bench.report import percentile
from bench.truth import ExactSearch, Ranking
from facegrid.clock import Clock
from facegrid.testing.synthetic import Block
from facegrid.vectors import Float32
from fgctl.local.cluster import LocalCluster
from fgctl.local.processes import find
from fgctl.render import metered

ENROL_ROWS = 1024
EXACT_ROWS = 8192
WARM_UP_CALLS = 2


@dataclass(frozen=True, slots=True)
class Enrolled:
    """How long it took to enrol a data set, until the last row was acknowledged."""

    token: facegrid.Token
    templates_count: int
    elapsed_s: float

    @property
    def per_s(self) -> float:
        """Templates a second."""
        return self.templates_count / self.elapsed_s


@dataclass(frozen=True, slots=True)
class Identified:
    """The answers to all probes and how long each call took."""

    lists: list[facegrid.CandidateList]
    calls_s: list[float]

    @property
    def probes_per_s(self) -> float:
        """Probes a second of one client that calls again as soon as it is answered."""
        return len(self.lists) / sum(self.calls_s)

    @property
    def p50_ms(self) -> float:
        """Median time of a call."""
        return percentile(self.calls_s, 0.50) * 1000

    @property
    def p99_ms(self) -> float:
        """Time that 99 of 100 calls do not exceed."""
        return percentile(self.calls_s, 0.99) * 1000


def enrol(client: facegrid.Client, gallery: str, data: Dataset, *, clock: Clock) -> Enrolled:
    """Enrol a data set through a stream, with a progress bar."""
    shown = 0
    with metered("enrolling", len(data), quiet=False) as meter:

        def show(acked: int) -> None:
            nonlocal shown
            meter.advance(acked - shown)
            shown = acked

        started_s = clock.now_s()
        token = client.enrol_stream(gallery, map(batch, data.blocks(ENROL_ROWS)), on_ack=show)
        elapsed_s = clock.now_s() - started_s
    return Enrolled(token, len(data), elapsed_s)


def batch(block: Block) -> facegrid.EnrolBatch:
    """Return a block as the client takes it."""
    return facegrid.EnrolBatch(
        template_ids=block.template_ids, subject_ids=block.subject_ids, vectors=block.vectors
    )


def identify(  # noqa: PLR0913 - what is asked, how, and by which clock
    client: facegrid.Client,
    gallery: str,
    probes: Float32,
    *,
    k: int,
    rows: int,
    clock: Clock,
    profile: str | None = None,
) -> Identified:
    """Ask probes one call after the other, `rows` of them in each."""
    for _ in range(WARM_UP_CALLS):
        client.identify(gallery, probes[:rows], k=k, profile=profile)
    lists: list[facegrid.CandidateList] = []
    calls_s: list[float] = []
    for first in range(0, len(probes), rows):
        piece = probes[first : first + rows]
        started_s = clock.now_s()
        answer = client.identify(gallery, piece, k=k, profile=profile)
        calls_s.append(clock.now_s() - started_s)
        lists += answer
    return Identified(lists, calls_s)


def exact_rankings(data: Dataset, *, k: int) -> list[Ranking]:
    """Search a whole data set exactly in float32."""
    search = ExactSearch(data.probes.vectors, k=k)
    with metered("exact search, for comparison", len(data), quiet=False) as meter:
        for block in data.blocks(EXACT_ROWS):
            search.add(block.vectors, block.subject_ids)
            meter.advance(len(block))
    return search.rankings()


def ranking(answer: facegrid.CandidateList) -> Ranking:
    """Return a candidate list in the form that exact search gives."""
    return Ranking(
        subject_ids=tuple(candidate.subject_id for candidate in answer.candidates),
        scores=tuple(candidate.score for candidate in answer.candidates),
    )


def nodes_memory_bytes(cluster: LocalCluster) -> int:
    """Return the resident memory of all nodes, files mapped into it included."""
    running = [find(process) for process in cluster.record.of_kind("node")]
    return sum(process.memory_info().rss for process in running if process is not None)


def stored_bytes(folder: Path) -> int:
    """Return the size of all files under a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def cpu_s(cluster: LocalCluster) -> float:
    """Return the processor time used so far by this process, the routers and the nodes."""
    record = cluster.record
    found = [find(process) for process in (*record.of_kind("router"), *record.of_kind("node"))]
    running = [psutil.Process(), *(process for process in found if process is not None)]
    return sum(sum(process.cpu_times()[:2]) for process in running)
