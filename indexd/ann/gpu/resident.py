"""One shard in a device's memory: a copy that follows the rows which the processor holds.

The processor's index stays whole: it is what segments are written from, and what is searched when
the device cannot. So nothing is lost with a device, and every answer has the same exact scores.
"""

import weakref
from typing import Final

import numpy as np

from facegrid.tuning import Effort
from facegrid.vectors import Int64
from indexd.ann.gpu.arrays import Arrays
from indexd.ann.gpu.part import DevicePart
from indexd.ann.gpu.rows import DeviceRows, row_bytes
from indexd.ann.gpu.scanner import Scanners, Tables, code_bytes
from indexd.ann.index import ShardIndex
from indexd.ann.looking import Coded, Looking, Wanted

SLICE_ROWS: Final = 1 << 16
"""Rows brought to the device or coded there between two searches."""
TAIL_ROWS_MAX: Final = 1 << 16
"""Rows searched exactly beside the coded ones before they are coded too."""
CODED_ROWS_MIN: Final = 1 << 14
"""Fewer are searched exactly: a product of matrices takes no longer."""
LIST_ROWS: Final = 4096
LISTS_MIN: Final = 16
SAMPLE_FOR_LIST: Final = 64
"""Rows trained on for each list."""
SAMPLE_ROWS_MAX: Final = 1 << 20
SEED: Final = 1


class Resident:
    """The copy of one shard. See `indexd.ann.together.Searchable`.

    Args:
        index: what the processor holds.
        arrays: of the device.
        scanners: make what searches codes there.
    """

    def __init__(self, index: ShardIndex, arrays: Arrays, scanners: Scanners) -> None:
        # Not kept: it goes when the shard does, and its copy with it.
        self._index = weakref.ref(index)
        self._source = index.rows
        self._arrays = arrays
        self._scanners = scanners
        self.rows = DeviceRows(arrays, index.rows)
        self._part: DevicePart | None = None
        self._growing: DevicePart | None = None
        self._erased_count = 0

    @property
    def index(self) -> ShardIndex | None:
        """What the processor holds; None: the shard is gone."""
        return self._index()

    @property
    def coded(self) -> DevicePart | None:
        """The part that has codes; None: everything is searched exactly."""
        return self._part

    @property
    def rows_count(self) -> int:
        """Rows on the device."""
        return self.rows.count

    @property
    def behind_count(self) -> int:
        """Rows that the device does not have yet."""
        return self._source.count - self.rows.count

    def effort(self, wanted: Effort | None) -> Effort | None:
        """Return how hard to search: the same share of the lists, though there are others here."""
        part, index = self._part, self.index
        if part is None or index is None:
            return None
        effort, codebook = index.effort(wanted), index.codebook
        if effort is None or codebook is None:
            return None
        nprobe = -(-effort.nprobe * part.nlist // codebook.nlist)
        return Effort(nprobe=min(max(nprobe, 1), part.nlist), depth=effort.depth)

    def looking(
        self,
        wanted: Wanted,
        nearest: Int64,
        effort: Effort | None,
        *,
        rows_count: int,
        share: float,
    ) -> Looking:
        """See `Searchable`. Whoever wants an exhaustive search gets it exact."""
        coded = None
        if self._part is not None and effort is not None and not wanted.exhaustive:
            coded = Coded(self._part, effort, share)
        return Looking(
            self._source, coded, wanted, nearest, rows_count=rows_count, kernels=self.rows
        )

    def follow(self, rows_max: int) -> None:
        """Bring the next rows to the device, at most so many, and what was erased."""
        first = self.rows.count
        last = min(self._source.count, first + rows_max)
        for block in self._source.blocks(first, last, rows_max=SLICE_ROWS):
            self.rows.append(block)
        # Read before the mask: what is erased after that is found at the next look.
        erased_count = self._source.erased_count
        if erased_count != self._erased_count or last > first:
            begin = 0 if erased_count != self._erased_count else first
            for block in self._source.blocks(begin, last, rows_max=last - begin or 1):
                self.rows.mask(block.first, block.erased)
            self._erased_count = erased_count
        for part in (self._part, self._growing):
            if part is not None:
                part.erased_count = erased_count

    @property
    def lists_wanted(self) -> int:
        """How many lists the rows on the device should have; 0: none, they are few or there is no
        codebook yet.
        """
        count = self.rows.count
        if count < CODED_ROWS_MIN or self.index is None or self.index.codebook is None:
            return 0
        wanted = max(LISTS_MIN, 1 << (count // LIST_ROWS).bit_length() - 1)
        return min(wanted, self._scanners.lists_max)

    @property
    def wants_tables(self) -> bool:
        """Tell whether its rows want to be coded anew: they never were, or there are four times as
        many by now.
        """
        newest = self._growing or self._part
        return self.lists_wanted >= (4 * newest.nlist if newest is not None else 1)

    def train(self) -> Tables:
        """Return tables for the rows that there are."""
        nlist = self.lists_wanted
        wanted = min(SAMPLE_ROWS_MAX, max(SAMPLE_FOR_LIST * nlist, CODED_ROWS_MIN))
        sample = np.arange(self.rows.count)
        if wanted < self.rows.count:
            rng = np.random.default_rng(SEED)
            sample = np.sort(rng.choice(self.rows.count, wanted, replace=False))
        units = self.rows.sample(sample)
        return self._scanners.train(units, nlist, SEED)

    def code_with(self, tables: Tables) -> None:
        """Begin to code all rows with tables; what is coded already serves until that is done."""
        self._growing = DevicePart(self._arrays, self._scanners, tables, self.rows)
        self._growing.erased_count = self._erased_count

    def code(self) -> bool:
        """Code the next rows if there are enough; tell whether there was something to do."""
        part = self._growing or self._part
        if part is None:
            return False
        tail = self.rows.count - part.count
        if part is self._part and tail <= TAIL_ROWS_MAX:
            return False
        last = min(self.rows.count, part.count + SLICE_ROWS)
        if last > part.count:
            part.add(self.rows.units(part.count, last))
        if part is self._growing and self.rows.count - part.count <= TAIL_ROWS_MAX:
            self._part, self._growing = part, None
        return True


def needed_bytes(dim: int, rows_count: int) -> int:
    """Return the bytes that so many rows take on a device, while they are coded anew too."""
    return rows_count * (row_bytes(dim) + 2 * code_bytes(dim))
