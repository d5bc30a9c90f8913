"""What every system looks like to the run, ours included.

An adapter is made in a worker process of its own, from the interpreter in which its library is
installed: this module and all that adapters import of `bench` need NumPy and nothing else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]

Setting = bool | int | float | str
Settings = Mapping[str, Setting]


@dataclass(frozen=True, slots=True)
class Gallery:
    """What is searched.

    Attributes:
        templates: float32 [n, dim] of norm 1, perhaps on disk.
        subjects: int32 [n], whose they are; those who answer with rows need not care.
    """

    templates: Float32
    subjects: Int32


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to build, and the ways to search what was built.

    Attributes:
        build: settings of the build.
        ladders: settings of a search, each ladder by rising effort: whoever finds enough on one
            rung finds enough on all above it.
    """

    build: Settings
    ladders: tuple[tuple[Settings, ...], ...]


class Peer(Protocol):
    """A system that answers probes with the numbers of rows.

    It may use as many threads as it was made with, and the folder it was made with for files.
    What goes wrong is raised, whatever it is: it ends the worker, and the run says so.
    """

    def __init__(self, folder: Path, threads: int) -> None:
        """Take an empty folder and a number of threads, at least 1."""

    def variants(self, rows: int, dim: int) -> Sequence[Variant]:
        """Return ways to build for so many templates, the most promising first."""

    def open(self, dim: int) -> None:
        """Start what holds the index, still empty: its memory is not the templates'."""

    def build(self, gallery: Gallery, settings: Settings) -> None:
        """Take in the gallery and return when it is searched as fast as it ever will be."""

    def use(self, settings: Settings) -> None:
        """Search with these settings from now on; called before the first search."""

    def search(self, probes: Float32, k: int) -> Int64:
        """Return the rows found for probes, float32 [m, dim] of norm 1: int64 [m, k], best first,
        -1 where there is none.
        """

    def save(self) -> None:
        """Write what it takes to search again after a restart, unless it lies there already."""

    def processes(self) -> Sequence[int]:
        """Return the processes that hold the index; none: this one."""

    def close(self) -> None:
        """Stop what was started; harmless when nothing was."""


class Library:
    """What libraries in this process have in common.

    Args:
        folder: for files.
        threads: that a search or a build may use.
    """

    def __init__(self, folder: Path, threads: int) -> None:
        self.folder = folder
        self.threads = threads

    def open(self, dim: int) -> None:
        """Do nothing: a library holds nothing before the build."""

    def use(self, settings: Settings) -> None:
        """Do nothing: there is one way to search."""

    def save(self) -> None:
        """Do nothing: it lies there already, or cannot be stored."""

    def processes(self) -> Sequence[int]:
        """Return none: it is in this process."""
        return ()

    def close(self) -> None:
        """Do nothing: it ends with the process."""


def powers(first: int, last: int) -> list[int]:
    """Return first, 2 * first, 4 * first and so on, and `last` as the greatest."""
    assert 1 <= first <= last, f"first={first} last={last}"
    steps = (last // first).bit_length()
    return sorted({*(min(first << step, last) for step in range(steps)), last})


def rungs(name: str, values: Sequence[int], **others: Setting) -> tuple[Settings, ...]:
    """Return one ladder over the values of one setting."""
    return tuple({name: value, **others} for value in values)


def lists_of(rows: int, factor: float) -> int:
    """Return the power of two nearest to factor * sqrt(rows), with 39 rows or more in a list:
    faiss warns below that.
    """
    wanted = 2 ** round(np.log2(max(1.0, factor * rows**0.5)))
    return int(max(1, min(wanted, rows // 39)))


def filled(found: Sequence[Sequence[int]], k: int) -> Int64:
    """Return lists of rows of any lengths as int64 [m, k]."""
    rows = np.full((len(found), k), -1, np.int64)
    for probe, one in enumerate(found):
        rows[probe, : min(len(one), k)] = one[:k]
    return rows
