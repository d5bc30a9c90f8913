"""The compiled part of rescoring, where it was built; `hatch_build.py` builds it at installation.

Without it every answer is the same, made by NumPy.
"""

import ctypes
import hashlib
from collections.abc import Sequence
from ctypes import POINTER, c_char_p, c_float, c_int, c_int64, c_void_p
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from facegrid.limits import DIM_MAX
from facegrid.vectors import Float32, Int8, Int64, Probes

PATH: Final = Path(__file__).with_name("rescore.so")
SOURCE: Final = PATH.with_suffix(".c")
PROBE_SUM_MAX: Final = 127 * 128 * 127
"""Largest product of a component of a probe with one of a row."""

PROBES_KEPT_MAX: Final = 256
"""Probes of a search that are held until the next one comes."""

assert PROBE_SUM_MAX * DIM_MAX < 1 << 31, "sums are kept in 32 bits"


@dataclass(frozen=True, slots=True)
class RowArrays:
    """Where rows lie. Whoever asks holds it until the answer is there.

    Attributes:
        erased: bool [n].
        subjects: int32 [n].
        squares: int32 [n], squared norms.
        chunks: int8 [chunk_rows, dim] each; int8 [chunk_rows, dim / 2] of packed rows.
    """

    erased: npt.NDArray[np.bool_]
    subjects: npt.NDArray[np.int32]
    squares: npt.NDArray[np.int32]
    chunks: Sequence[Int8]


@dataclass(frozen=True, slots=True)
class Limits:
    """What ends a list of candidates.

    Attributes:
        k: subjects wanted.
        threshold: lowest score.
        tail_first: rows from here on have no codes.
        whole: bool [2, m], for which probes there are no other rows with codes, and no other rows
            without.
    """

    k: int
    threshold: float
    tail_first: int
    whole: npt.NDArray[np.bool_]


class _Rows(ctypes.Structure):
    _fields_ = (
        ("chunks", POINTER(c_void_p)),
        ("chunk_rows", c_int64),
        ("dim", c_int64),
        ("squares", c_void_p),
        ("subjects", c_void_p),
        ("erased", c_void_p),
        ("packed", c_int64),
    )


class _Probes(ctypes.Structure):
    _fields_ = (
        ("high", c_void_p),
        ("low", c_void_p),
        ("norm", c_void_p),
        ("count", c_int64),
    )


class RowsAt:
    """Rows as the library takes them. Asking for addresses costs as much as rescoring: it is done
    once, not for each search.
    """

    def __init__(self, rows: RowArrays, dim: int, *, packed: bool) -> None:
        assert dim <= DIM_MAX, f"dim: {dim}"
        assert dim % 2 == 0 or not packed, f"dim: {dim}"
        self.kept = rows
        chunks = (c_void_p * len(rows.chunks))(*map(_at, rows.chunks))
        chunk_rows = len(rows.chunks[0]) if rows.chunks else 1
        self.given = _Rows(
            *(chunks, chunk_rows, dim, _at(rows.squares), _at(rows.subjects), _at(rows.erased)),
            packed,
        )


class _ProbesAt:
    """Probes as the library takes them."""

    def __init__(self, probes: Probes) -> None:
        self.whose = probes
        self._kept = [np.ascontiguousarray(one) for one in (probes.high, probes.low, probes.norm)]
        self.given = _Probes(*map(_at, self._kept), len(probes))


class Library:
    """The compiled functions. They may run in several threads at once, beside the interpreter.

    Args:
        path: of the shared library.

    Raises:
        OSError: it cannot be loaded.
        ValueError: it was made from another source than the one here.
    """

    def __init__(self, path: Path) -> None:
        library = ctypes.CDLL(str(path))
        made_from = c_char_p.in_dll(library, "facegrid_source").value
        if made_from != source_id():
            raise ValueError("it was compiled from another source: install facegrid again")
        # ctypes has no types for functions that it finds by name: Any at its edge.
        self._keys: Any = library.facegrid_keys
        self._keys.argtypes = (POINTER(_Rows), POINTER(_Probes), c_void_p, c_int64, c_void_p)
        self._keys.restype = None
        self._answer: Any = library.facegrid_answer
        self._answer.argtypes = (
            *(POINTER(_Rows), POINTER(_Probes), c_void_p, c_int64, c_int64, c_void_p, c_int64),
            *(c_float, c_void_p, c_void_p, c_void_p, c_void_p),
        )
        self._answer.restype = c_int
        self._unpack: Any = library.facegrid_unpack
        self._unpack.argtypes = (c_void_p, c_int64, c_int64, c_void_p)
        self._unpack.restype = None
        # Of the last search: its other shards have the same ones.
        self._probes: _ProbesAt | None = None

    def keys(self, rows: RowsAt, probes: Probes, candidates: Int64) -> Int64:
        """See `indexd.ann.rescore.keys_of`."""
        candidates = np.ascontiguousarray(candidates, np.int64)
        keys = np.empty(candidates.shape, np.int64)
        asked = self._asked(probes)
        self._keys(rows.given, asked.given, _at(candidates), candidates.shape[1], _at(keys))
        return keys

    def answer(
        self, rows: RowsAt, probes: Probes, candidates: Int64, limits: Limits
    ) -> tuple[npt.NDArray[np.int32], Int64, Float32, npt.NDArray[np.bool_]]:
        """Return the arrays of what `indexd.ann.rescore.best` returns."""
        candidates = np.ascontiguousarray(candidates, np.int64)
        whole = np.ascontiguousarray(limits.whole)
        asked = self._asked(probes)
        count, k = len(probes), limits.k
        # One piece of memory, the widest numbers first.
        ends = list(accumulate((8 * count * k, 4 * count * k, 4 * count, count)))
        space = np.empty(ends[-1], np.uint8)
        at = _at(space)
        failed = self._answer(
            *(rows.given, asked.given, _at(candidates), candidates.shape[1], limits.tail_first),
            *(_at(whole), k, limits.threshold),
            *(at + ends[1], at, at + ends[0], at + ends[2]),
        )
        if failed:
            raise MemoryError
        return (
            space[ends[1] : ends[2]].view(np.int32),
            space[: ends[0]].view(np.int64).reshape(count, k),
            space[ends[0] : ends[1]].view(np.float32).reshape(count, k),
            space[ends[2] :].view(np.bool_),
        )

    def unpack(self, packed: Int8) -> Int8:
        """See `indexd.ann.packing.unpack`."""
        packed = np.ascontiguousarray(packed)
        rows, half = packed.shape
        codes = np.empty((rows, 2 * half), np.int8)
        self._unpack(_at(packed), rows, half, _at(codes))
        return codes

    def _asked(self, probes: Probes) -> _ProbesAt:
        asked = self._probes
        if asked is None or asked.whose is not probes:
            asked = _ProbesAt(probes)
            # Many are those of a training, which nobody asks for again, and megabytes.
            self._probes = asked if len(probes) <= PROBES_KEPT_MAX else None
        return asked


def _at(array: npt.NDArray[Any]) -> int:
    """Return where an array lies."""
    return array.ctypes.data


def source_id() -> bytes:
    """Return what tells the source from any other; the build puts it into the library."""
    return hashlib.sha256(SOURCE.read_bytes()).hexdigest().encode()


def load() -> tuple[Library | None, str]:
    """Return the library; None, and why, where there is none that can be used."""
    if not PATH.exists():
        return None, "nothing was compiled at installation"
    try:
        return Library(PATH), ""
    except (OSError, ValueError) as error:
        return None, str(error)
