"""The engine of a node beside faiss, in one process: `python -m bench.engine`.

The same rows, codebook, candidates and one thread for every side, in turns. What is given is the
median of the ratios within each round, with the least and the greatest: on a shared machine the
times themselves mean little.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from bench import dataset, measure, report, textbook
from bench.accuracy import Accuracy
from bench.accuracy import measure as measure_accuracy
from bench.dataset import Dataset
from bench.raw import Kernel, RawFaiss
from bench.report import Json, Spread
from bench.target import as_json as targets_of
from bench.target import line as target
from bench.textbook import Setting, Textbook
from bench.truth import Ranking
from facegrid import vectors
from facegrid.clock import Clock, SystemClock
from facegrid.vectors import Float32, Int64
from indexd.ann.index import ShardIndex
from indexd.ann.threads import set_threads
from indexd.ann.train import train

DIM: Final = 512
K: Final = 10
SEED: Final = 1
ALL: Final = -2.0
BATCHES: Final = (64, 256)
PEERS_BATCH: Final = 256
PEERS_PROBES: Final = 256
"""Of every peer that is slow: rates need no more, and accuracy is measured on all."""
BUILD_ROWS: Final = 8192
RATIO_NEEDS: Final = {64: 0.90, 256: 0.95}
KERNEL_NEED: Final = 0.60
PEER_NEEDS: Final = {"IVFx,PQ64": 5.0, "IVFx,Flat": 20.0}

Search = Callable[[Float32], object]


@dataclass(frozen=True, slots=True)
class Size:
    """How much to measure."""

    templates: int = 200_000
    probes: int = 2048
    rounds: int = 7


class Sides:
    """Every side, ready to search the same rows with one thread.

    Args:
        data: rows and probes.
    """

    def __init__(self, data: Dataset) -> None:
        set_threads(1)
        self.data = data
        codes = np.concatenate([vectors.quantize(b.vectors) for b in data.blocks(BUILD_ROWS)])
        self.codebook = train(codes, seed=SEED, threads=1)
        self._index = ShardIndex(data.dim)
        names: dict[str, int] = {}
        numbers = [names.setdefault(name, len(names)) for name in data.subject_ids]
        self._index.append(codes, np.array(numbers, np.int32))
        self._index.swap(self._index.rebuilt(self.codebook))
        self.raw = RawFaiss(self.codebook, codes)
        self.kernel = Kernel(self.codebook, codes)
        x = vectors.dequantize(codes)
        self.peers: dict[str, Textbook] = {
            "IVFx,PQ64": textbook.ivf_pq(x, SEED),
            "IVFx,Flat": textbook.ivf_flat(x, SEED),
        }
        self.exact = measure.exact_rankings(data, k=K)

    def engine(self, probes: Float32) -> Int64:
        """Search as a node does, from checked probes on; return the best row of each, or -1."""
        hits = self._index.search(vectors.prepare_probes(probes), K, ALL)
        firsts = np.cumsum(hits.counts) - hits.counts
        best = np.append(hits.rows, -1)[np.where(hits.counts > 0, firsts, -1)]
        return best.astype(np.int64)

    def scanned_share(self, probes: Float32) -> float:
        """Return the share of the rows that the engine looks at."""
        hits = self._index.search(vectors.prepare_probes(probes), K, ALL)
        return float(hits.scanned.mean()) / hits.rows_count

    def accuracy(self, best: Int64) -> Accuracy:
        """Judge the best row found for each of all probes, by its true score."""
        data = self.data
        found = np.maximum(best, 0)
        rows = np.asarray(data.source[data.rows[found]])
        scores = np.einsum("md,md->m", data.probes.vectors, rows).tolist()
        rankings = [
            Ranking((data.subject_ids[row],), (score,)) if row >= 0 else Ranking((), ())
            for row, score in zip(best.tolist(), scores, strict=True)
        ]
        return measure_accuracy(data.probes.mate_subject_ids, exact=self.exact, found=rankings)

    def extra_fnir(self, best: Int64) -> float:
        """Return the share of mates that exact search accepts and this misses."""
        extra = self.accuracy(best).extra_fnir
        assert extra is not None, "synthetic data has mated and non-mated probes"
        return extra

    def setting(self, name: str, *, extra_fnir_max: float) -> Setting:
        """Return the fewest lists with which a peer misses no more than allowed."""
        peer, probes = self.peers[name], self.data.probes.vectors

        def missed(nprobe: int) -> float:
            return self.extra_fnir(peer.search(probes, 1, nprobe)[:, 0])

        return textbook.least(peer.nlist, missed, extra_fnir_max=extra_fnir_max)


def rates(
    sides: dict[str, Search], probes: Float32, *, batch: int, rounds: int, clock: Clock
) -> dict[str, list[float]]:
    """Return probes a second of every side, round by round, taken in turns."""
    batches = [probes[first : first + batch] for first in range(0, len(probes), batch)]
    kept: dict[str, list[float]] = {name: [] for name in sides}
    # The first round warms the caches.
    for number in range(rounds + 1):
        for name, search in sides.items():
            started_s = clock.now_s()
            for piece in batches:
                search(piece)
            rate = len(probes) / (clock.now_s() - started_s)
            if number:
                kept[name].append(rate)
    return kept


def ratio(one: Sequence[float], other: Sequence[float]) -> Spread:
    """Return how many times faster one side was, round by round."""
    return report.spread([a / b for a, b in zip(one, other, strict=True)])


@dataclass(frozen=True, slots=True)
class Results:
    """Everything one run measured."""

    parameters: dict[str, str]
    codebook: dict[str, int]
    extra_fnir: float
    raw_extra_fnir: float
    scanned_share: float
    rates: dict[int, dict[str, list[float]]]
    peer_rates: dict[str, list[float]]
    settings: dict[str, Setting]

    def kernel_ratio(self) -> Spread:
        """Return rows scanned a second by the engine, against those of the kernel alone."""
        both = self.rates[max(BATCHES)]
        return ratio([rate * self.scanned_share for rate in both["engine"]], both["kernel"])

    def lines(self) -> list[str]:
        """Return what to print."""
        lines = [
            f"engine: extra FNIR {self.extra_fnir:.4g}",
            f"engine: share of rows looked at {self.scanned_share:.3f}",
            f"raw faiss, the same index: extra FNIR {self.raw_extra_fnir:.4g}",
        ]
        for batch, both in self.rates.items():
            lines += [
                f"{name}, {batch} at once: probes/s {report.spread(values).text}"
                for name, values in both.items()
            ]
            spread = ratio(both["engine"], both["raw"])
            lines.append(f"engine against raw, {batch} at once: {spread.text}")
            lines.append(target("G2", spread.median, RATIO_NEEDS[batch]))
        lines.append(f"rows scanned a second, against the kernel: {self.kernel_ratio().text}")
        lines.append(target("G6", self.kernel_ratio().median, KERNEL_NEED))
        for name, setting in self.settings.items():
            spread = ratio(self.peer_rates["engine"], self.peer_rates[name])
            reached = "" if setting.reached else ", not as good with all lists"
            lines.append(
                f"engine against {name}, nprobe {setting.nprobe},"
                f" extra FNIR {setting.extra_fnir:.4g}{reached}: {spread.text}"
            )
            lines.append(target("G5", spread.median, PEER_NEEDS[name]))
        return lines

    def as_json(self) -> dict[str, Json]:
        """Return it as JSON."""
        return {
            "parameters": self.parameters,
            "codebook": self.codebook,
            "calls": {"k": K, "threads": 1},
            "extra_fnir": self.extra_fnir,
            "raw_extra_fnir": self.raw_extra_fnir,
            "scanned_share": self.scanned_share,
            "probes_per_s": {str(batch): both for batch, both in self.rates.items()},
            "peer_probes_per_s": self.peer_rates,
            "peer_settings": {name: asdict(one) for name, one in self.settings.items()},
            "kernel_ratio": self.kernel_ratio().as_json(),
        }


def run(size: Size, *, folder: Path, clock: Clock) -> Results:
    """Measure everything once."""
    data = dataset.synthetic(
        size.templates, probes_count=size.probes, dim=DIM, seed=SEED, folder=folder
    )
    sides = Sides(data)
    probes = data.probes.vectors
    extra_fnir = sides.extra_fnir(sides.engine(probes))
    settings = {name: sides.setting(name, extra_fnir_max=extra_fnir) for name in sides.peers}
    whole: dict[str, Search] = {
        "engine": sides.engine,
        "raw": lambda piece: sides.raw.search(piece, K),
        "kernel": lambda piece: sides.kernel.search(piece, K),
    }
    against: dict[str, Search] = {"engine": sides.engine}
    for name, setting in settings.items():
        against[name] = partial(_ask, sides.peers[name], setting.nprobe)
    fields = ("nlist", "nprobe", "pq_m", "pq_bits", "rescore_factor", "sample_count")
    return Results(
        parameters=data.parameters,
        codebook={name: getattr(sides.codebook, name) for name in fields},
        extra_fnir=extra_fnir,
        raw_extra_fnir=sides.extra_fnir(sides.raw.search(probes, K)[:, 0]),
        scanned_share=sides.scanned_share(probes),
        rates={
            batch: rates(whole, probes, batch=batch, rounds=size.rounds, clock=clock)
            for batch in BATCHES
        },
        peer_rates=rates(
            against, probes[:PEERS_PROBES], batch=PEERS_BATCH, rounds=size.rounds, clock=clock
        ),
        settings=settings,
    )


def _ask(peer: Textbook, nprobe: int, probes: Float32) -> Int64:
    return peer.search(probes, K, nprobe)


def main() -> int:
    """Measure, print, and write the results down."""
    parser = argparse.ArgumentParser(prog="bench.engine", description="The engine beside faiss.")
    size = Size()
    parser.add_argument("--templates", type=int, default=size.templates, help="templates")
    parser.add_argument("--probes", type=int, default=size.probes, help="half of them mated")
    parser.add_argument("--rounds", type=int, default=size.rounds, help="at least five")
    parser.add_argument("--results", type=Path, default=report.RESULTS, help="folder")
    given = parser.parse_args()
    size = Size(given.templates, given.probes, given.rounds)
    clock = SystemClock()
    with tempfile.TemporaryDirectory(prefix="facegrid-bench-") as folder:
        results = run(size, folder=Path(folder), clock=clock)
    path = report.write(
        "engine",
        ["python", "-m", "bench.engine", *report.without_folders(sys.argv[1:])],
        unix_ms=clock.unix_ms(),
        results=results.as_json() | {"targets": targets_of(results.lines())},
        folder=given.results,
    )
    for line in results.lines():
        print(line)
    print(f"written: {path.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
