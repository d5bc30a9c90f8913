"""What is searched: rows made on the device, the same index raw and as the engine has it.

A hundred million rows do not come from a disk or over a bus in a reasonable time. So directions
are drawn on the device, with the spectrum of `bench.dataset` (components of falling variance), and
only what the processor has to hold is copied down. A billion are coded and not kept at all.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from facegrid import vectors
from facegrid.clock import Clock
from facegrid.vectors import Float32, Int64, Probes
from indexd.ann.gpu.arrays import Arrays
from indexd.ann.gpu.part import DevicePart
from indexd.ann.gpu.resident import SAMPLE_FOR_LIST, SAMPLE_ROWS_MAX
from indexd.ann.gpu.rows import DeviceRows
from indexd.ann.gpu.scanner import Scanner, Scanners
from indexd.ann.rows import Rows

DIM: Final = 512
ALPHA: Final = 0.5
OFFSET: Final = 8
"""Variance of component i is proportional to (i + OFFSET) ** -ALPHA, as in `bench.dataset`."""
BLOCK_ROWS: Final = 1 << 16
SEEDS: Final = 1 << 24
"""Blocks that one seed has."""
PLAYED: Final = "processor"
PEAKS: Final = {"H200": 4.8e12, "H100": 3.35e12, "A100": 2.0e12}
"""Bytes that a device reads from its memory each second, of data sheets."""
COSINE_MEAN: Final = 0.64
COSINE_SD: Final = 0.09
"""Of probes with their mates."""


class Faces:
    """Draws templates on a device.

    Args:
        arrays: of the device.
        seed: the same seed gives the same templates on the same kind of device.
        dim: of one.
    """

    def __init__(self, arrays: Arrays, seed: int, dim: int = DIM) -> None:
        self._arrays = arrays
        self._seed = seed
        self.dim = dim
        spectrum = (np.arange(dim) + OFFSET) ** -ALPHA
        rotation = np.linalg.qr(np.random.default_rng(seed).standard_normal((dim, dim)))[0]
        shape = np.sqrt(spectrum)[:, None] * rotation
        self._shape = arrays.put(shape.astype(np.float32))

    def block(self, number: int, count: int) -> Any:
        """Return one block on the device, unit vectors, float32 [count, dim]."""
        x = self._arrays.normal((count, self.dim), self._seed * SEEDS + number) @ self._shape
        return x / self._arrays.root((x * x).sum(1))[:, None]

    def blocks(self, rows_count: int) -> Iterator[Any]:
        """Yield rows_count templates, block by block."""
        for number, first in enumerate(range(0, rows_count, BLOCK_ROWS)):
            yield self.block(number, min(BLOCK_ROWS, rows_count - first))

    def sample(self, rows_count: int) -> Any:
        """Return the first rows_count templates in one array of the device."""
        whole = self._arrays.zeros((rows_count, self.dim), "float32")
        at = 0
        for block in self.blocks(rows_count):
            whole[at : at + len(block)] = block
            at += len(block)
        return whole

    def probes(self, mates: Float32, others_count: int) -> Probes:
        """Return probes: one of each mate, float32 [n, dim], then some of nobody."""
        rng = np.random.default_rng(self._seed)
        cosine = np.clip(rng.normal(COSINE_MEAN, COSINE_SD, (len(mates), 1)), 0.2, 0.98)
        noise = self._arrays.get(self.block(SEEDS - 2, len(mates))).astype(np.float64)
        noise -= (noise * mates).sum(axis=1, keepdims=True) * mates
        noise /= np.linalg.norm(noise, axis=1, keepdims=True)
        mated = cosine * mates + np.sqrt(1 - cosine**2) * noise
        other = self._arrays.get(self.block(SEEDS - 1, others_count))
        return vectors.prepare_probes(np.concatenate([mated, other]).astype(np.float32))


@dataclass(frozen=True, slots=True)
class Built:
    """An index on the device.

    Attributes:
        source: the rows as the processor has them; empty where they were not kept.
        rows: the rows on the device; empty likewise.
        part: the codes.
        raw: the same codes, searched by faiss alone.
        trained_s: how long training took.
        built_s: how long it took to code all rows, and to make them.
    """

    source: Rows
    rows: DeviceRows
    part: DevicePart
    raw: Scanner
    trained_s: float
    built_s: float


@dataclass(frozen=True, slots=True)
class Ground:
    """What an index is built on, in the owner thread of a device.

    Attributes:
        arrays: of the device.
        scanners: make what searches codes there.
        clock: for how long it takes.
    """

    arrays: Arrays
    scanners: Scanners
    clock: Clock


def build(
    faces: Faces, rows_count: int, *, nlist: int, keep: bool, ground: Ground, seed: int
) -> Built:
    """Make an index of so many rows.

    Args:
        faces: what the rows are.
        rows_count: how many.
        nlist: lists.
        keep: whether rows are kept beside their codes, on the device and by the processor.
        ground: what it is built on.
        seed: of the training.
    """
    arrays, scanners, clock = ground.arrays, ground.scanners, ground.clock
    sample_count = min(rows_count, SAMPLE_ROWS_MAX, max(SAMPLE_FOR_LIST * nlist, 1 << 16))
    sample = faces.sample(sample_count)
    started_s = clock.now_s()
    tables = scanners.train(sample, nlist, seed)
    trained_s = clock.now_s() - started_s
    source = Rows(faces.dim)
    rows = DeviceRows(arrays, source)
    part = DevicePart(arrays, scanners, tables, rows)
    started_s = clock.now_s()
    for block in faces.blocks(rows_count):
        if keep:
            subjects = np.arange(len(block), dtype=np.int32) + source.count
            first = source.append(vectors.quantize(arrays.get(block)), subjects)
            for one in source.blocks(first, source.count, rows_max=BLOCK_ROWS):
                rows.append(one)
                part.add(rows.units(one.first, one.first + len(one)))
        else:
            part.add(block)
    built_s = clock.now_s() - started_s
    return Built(source, rows, part, part.scanner, trained_s, built_s)


def exact(built: Built, probes: Probes, *, wanted: int) -> Int64:
    """Return the best rows of each probe, found exactly, int64 [m, wanted]; best first."""
    found = built.rows.scan(0, built.rows.count, probes=probes, wanted=wanted)
    keys = built.rows.keys_of(probes, found)
    order = np.argsort(keys, axis=1)
    ordered: Int64 = np.take_along_axis(found, order, axis=1)
    return ordered


def peak_bytes_per_s(arrays: Arrays) -> float | None:
    """Return how fast a device reads its memory, by its name; None: not known."""
    return next((rate for name, rate in PEAKS.items() if name in arrays.title), None)
