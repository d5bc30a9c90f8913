"""The trained part of a shard's index: IVF-PQ with 4-bit FastScan codes, through faiss.

The faiss index is always built through its API from our own arrays and never read from a file:
faiss loads damaged files without complaint.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import faiss
import numpy as np

from facegrid.errors import InvalidError
from facegrid.vectors import Float32, Int64, Probes, UInt8
from indexd.ann import fastscan
from indexd.ann.coarse import Coarse
from indexd.ann.codebook import PQ_BITS, Codebook
from indexd.ann.rows import Block, Int32, Rows

ENCODE_ROWS = 4096
"""Rows coded at a time: 8 MiB of float32 at 512 dimensions."""


PACKED_ROWS = 65_536
"""Rows packed at a time: packing takes a few times the memory of their codes."""


@dataclass(frozen=True, slots=True)
class EncodedRows:
    """Rows as the codebook codes them.

    Attributes:
        lists: int32 [n], the inverted list of each.
        codes: uint8 [n, pq_m / 2], the low half of a byte first.
    """

    lists: Int32
    codes: UInt8

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.lists)


def joined(parts: Sequence[EncodedRows]) -> EncodedRows:
    """Return the rows of all parts, of which there is at least one."""
    lists = np.concatenate([one.lists for one in parts])
    return EncodedRows(lists, np.concatenate([one.codes for one in parts]))


@dataclass(frozen=True, slots=True)
class Scanned:
    """Rows that look best by their codes, in no order that matters.

    Attributes:
        rows: int64 [m, wanted]; -1 where there are fewer.
        likeness: float32 [m, wanted], by the codes; the lowest there is where there is no row.
    """

    rows: Int64
    likeness: Float32


class IvfPq:
    """Rows 0 to count - 1, coded. Several threads may search it at once, but only while nobody
    adds to it.
    """

    def __init__(self, codebook: Codebook) -> None:
        assert codebook.pq_bits == PQ_BITS, f"FastScan wants 4 bits: {codebook.pq_bits}"
        assert codebook.pq.size == (1 << PQ_BITS) * codebook.dim, f"shape: {codebook.pq.shape}"
        self.codebook = codebook
        self.count = 0
        # Of the lists, and none at the place of -1, which stands for no list.
        self._sizes: Int64 = np.zeros(codebook.nlist + 1, np.int64)
        # faiss has no types worth the name: Any at its edge.
        self._coarse: Any = faiss.IndexFlatIP(codebook.dim)
        self._coarse.add(np.ascontiguousarray(codebook.centroids))
        index: Any = faiss.IndexIVFPQFastScan(
            self._coarse,
            codebook.dim,
            codebook.nlist,
            codebook.pq_m,
            PQ_BITS,
            faiss.METRIC_INNER_PRODUCT,
        )
        # Coding what remains after the centroid is taken off was measured to be worse on faces:
        # centroids of nearly orthogonal vectors say little, and each list gets its own tables.
        index.by_residual = False
        faiss.copy_array_to_vector(codebook.pq.reshape(-1), index.pq.centroids)
        index.is_trained = True
        self._lists: Any = faiss.downcast_InvertedLists(index.invlists)
        self._index = index
        self._unmasked: dict[int, Any] = {}

    @property
    def nlist(self) -> int:
        """Lists."""
        return self.codebook.nlist

    @property
    def sizes(self) -> Int64:
        """How many rows each list holds."""
        return self._sizes[:-1]

    @property
    def memory_bytes(self) -> int:
        """Bytes of codes and row numbers."""
        return self.count * (self.codebook.pq_m // 2 + 8)

    @cached_property
    def coarse(self) -> Coarse:
        """What tells the lists nearest to a probe; made when first asked for."""
        return Coarse(self.codebook.centroids)

    def encode(self, x: Float32) -> EncodedRows:
        """Return unit vectors, float32 [n, dim], coded."""
        if not len(x):
            return EncodedRows(np.empty(0, np.int32), np.empty((0, self.code_bytes), np.uint8))
        lists = self._coarse.assign(x, 1).reshape(-1).astype(np.int32)
        return EncodedRows(lists, self._index.pq.compute_codes(x))

    @property
    def code_bytes(self) -> int:
        """Bytes of one row's PQ code."""
        return self.codebook.pq_m // 2

    def fits(self, encoded: EncodedRows) -> bool:
        """Tell whether rows coded elsewhere could be of this codebook."""
        lists = encoded.lists
        if encoded.codes.shape != (len(lists), self.code_bytes):
            return False
        return not len(lists) or bool(lists.min() >= 0 and lists.max() < self.codebook.nlist)

    def check(self, encoded: EncodedRows) -> None:
        """Raise InvalidError unless rows coded elsewhere fit this codebook."""
        if not self.fits(encoded):
            raise InvalidError("coded rows do not fit the codebook", reason="CODES_MISFIT")

    def add(self, encoded: EncodedRows) -> None:
        """Make the next rows searchable."""
        for first in range(0, len(encoded), PACKED_ROWS):
            part = slice(first, first + PACKED_ROWS)
            self._add(EncodedRows(encoded.lists[part], encoded.codes[part]))

    def _add(self, encoded: EncodedRows) -> None:
        """Do as `add`, with all lists packed together, since a call costs more than packing a row.

        BlockInvertedLists.add_entries is not used: where a list's length is a multiple of the
        bytes of a block it copies the whole list's length from the new codes, past both ends.
        """
        order = np.argsort(encoded.lists, kind="stable")
        counts = np.bincount(encoded.lists, minlength=self.codebook.nlist)
        numbers = np.flatnonzero(counts)
        sizes, added = self._sizes[numbers], counts[numbers]
        # Each list's last block is taken apart and packed again with what comes after.
        opened = sizes % fastscan.BLOCK_ROWS
        blocks_counts = -(-(opened + added) // fastscan.BLOCK_ROWS)
        blocks_ends = np.cumsum(blocks_counts)
        firsts = (blocks_ends - blocks_counts) * fastscan.BLOCK_ROWS
        codes = np.zeros(
            (int(blocks_counts.sum()) * fastscan.BLOCK_ROWS, self.code_bytes), np.uint8
        )
        kept = np.flatnonzero(opened)
        codes[_runs(firsts[kept], opened[kept])] = self._last_rows(numbers[kept], opened[kept])
        codes[_runs(firsts + opened, added)] = encoded.codes[order]
        packed = fastscan.pack(codes)
        ids = order + self.count
        ends = np.cumsum(added)
        wholes = (sizes - opened) * self.code_bytes
        for number, size, begin, end, whole, first, last in zip(
            *(numbers.tolist(), sizes.tolist(), (ends - added).tolist(), ends.tolist()),
            *(wholes.tolist(), (blocks_ends - blocks_counts).tolist(), blocks_ends.tolist()),
            strict=True,
        ):
            self._lists.resize(number, size + end - begin)
            at = faiss.rev_swig_ptr(self._lists.get_ids(number), size + end - begin)
            at[size:] = ids[begin:end]
            blocks = packed[first:last].reshape(-1)
            stored = faiss.rev_swig_ptr(self._lists.get_codes(number), whole + blocks.size)
            stored[whole:] = blocks
        self.count += len(encoded)
        self._sizes = self._sizes + np.append(counts, 0)
        self._index.ntotal = self.count

    def _last_rows(self, numbers: Int64, opened: Int64) -> UInt8:
        """Return the plain codes of the last `opened` rows of each list, list by list: of those in
        blocks that are not full.
        """
        blocks = np.empty((len(numbers), self.code_bytes, fastscan.BLOCK_ROWS), np.uint8)
        wholes = (self._sizes[numbers] - opened).tolist()
        for place, (number, whole) in enumerate(zip(numbers.tolist(), wholes, strict=True)):
            begin, block_bytes = whole * self.code_bytes, blocks[0].size
            memory = faiss.rev_swig_ptr(self._lists.get_codes(number), begin + block_bytes)
            blocks[place] = memory[begin:].reshape(blocks[0].shape)
        rows = fastscan.unpack(blocks)
        return rows[_runs(np.arange(len(numbers)) * fastscan.BLOCK_ROWS, opened)]

    def add_through_faiss(self, x: Float32) -> None:
        """Add unit vectors by faiss's own code path, to compare `add` with."""
        self._index.add(x)
        self.count = self._index.ntotal
        numbers = range(self.codebook.nlist)
        self._sizes = np.array([*map(self._lists.list_size, numbers), 0], np.int64)

    def encoded(self, first: int, last: int) -> EncodedRows:
        """Return rows first to last - 1 as they were coded."""
        assert 0 <= first <= last <= self.count, f"rows: {first} {last} of {self.count}"
        lists = np.empty(last - first, np.int32)
        codes = np.empty((last - first, self.code_bytes), np.uint8)
        # Blocks of all lists are taken apart together, as `add` packs them.
        block_shape = (-1, self.code_bytes, fastscan.BLOCK_ROWS)
        block_bytes = self.code_bytes * fastscan.BLOCK_ROWS
        rows: list[Int64] = []
        blocks: list[UInt8] = []
        runs: list[tuple[int, int, int]] = []
        blocks_count = 0
        for number in np.flatnonzero(self.sizes).tolist():
            ids = faiss.rev_swig_ptr(self._lists.get_ids(number), int(self._sizes[number]))
            begin, end = ids.searchsorted((first, last)).tolist()
            if begin == end:
                continue
            from_block, to_block = begin // fastscan.BLOCK_ROWS, -(-end // fastscan.BLOCK_ROWS)
            memory = faiss.rev_swig_ptr(self._lists.get_codes(number), to_block * block_bytes)
            rows.append(ids[begin:end] - first)
            blocks.append(memory[from_block * block_bytes :].reshape(block_shape))
            skipped = (blocks_count - from_block) * fastscan.BLOCK_ROWS
            runs.append((number, skipped + begin, end - begin))
            blocks_count += to_block - from_block
        if rows:
            numbers, firsts, counts = np.array(runs, np.int64).T
            at = np.concatenate(rows)
            lists[at] = np.repeat(numbers, counts)
            codes[at] = fastscan.unpack(np.concatenate(blocks))[_runs(firsts, counts)]
        return EncodedRows(lists, codes)

    def search(self, probes: Probes, wanted: int, *, nprobe: int, live: UInt8 | None) -> Int64:
        """Return for each probe the rows that look best by their codes, int64 [m, wanted].

        Args:
            probes: m probes.
            wanted: rows per probe; -1 where there are fewer.
            nprobe: lists to look into.
            live: rows that may be returned, bit i % 8 of byte i / 8; None: all.
        """
        return self.scan(probes, self.nearest(probes, nprobe), wanted, live=live).rows

    def nearest(self, probes: Probes, nprobe: int) -> Int64:
        """Return `nprobe` lists for each probe that hold the most alike rows, in any order."""
        if nprobe == self.codebook.nlist:
            return self.coarse.every(len(probes))
        return self.coarse.nearest(probes, nprobe)

    def scan(self, probes: Probes, lists: Int64, wanted: int, *, live: UInt8 | None) -> "Scanned":
        """Return the rows that look best by their codes in lists chosen for each probe.

        Args:
            probes: m probes.
            lists: int64 [m, n], the lists to look into, no two the same; -1 for none.
            wanted: rows per probe.
            live: rows that may be returned, bit i % 8 of byte i / 8; None: all.
        """
        parameters = self._parameters(lists.shape[1], masked=live is not None)
        # Held here until the scan is over: faiss sees only its address.
        selector = None
        if live is not None:
            selector = faiss.IDSelectorBitmap(len(live), faiss.swig_ptr(live))
            parameters.sel = selector
        lists = np.ascontiguousarray(lists)
        # How far the centroids are matters only to codes of what remains after them.
        unused = np.zeros(lists.shape, np.float32)
        likeness = np.empty((len(probes), wanted), np.float32)
        rows = np.empty((len(probes), wanted), np.int64)
        # The wrapper of faiss in Python takes no parameters.
        self._index.search_preassigned_c(
            len(probes),
            faiss.swig_ptr(np.ascontiguousarray(probes.unit)),
            wanted,
            faiss.swig_ptr(lists),
            faiss.swig_ptr(unused),
            faiss.swig_ptr(likeness),
            faiss.swig_ptr(rows),
            False,  # noqa: FBT003 - not ours: whether to return list and place for the row
            parameters,
        )
        return Scanned(rows, likeness)

    def _parameters(self, nprobe: int, *, masked: bool) -> Any:
        """Return parameters of a search; those that no selector is put into are kept."""
        parameters = None if masked else self._unmasked.get(nprobe)
        if parameters is None:
            parameters = faiss.SearchParametersIVF()
            parameters.nprobe = nprobe
            if not masked:
                self._unmasked[nprobe] = parameters
        return parameters

    def rows_in(self, lists: Int64) -> Int64:
        """Return how many rows the lists of each probe hold, int64 [m]; -1 stands for no list."""
        counts: Int64 = self._sizes[lists].sum(axis=1)
        return counts


def _runs(firsts: Int64, counts: Int64) -> Int64:
    """Return firsts[i] to firsts[i] + counts[i] - 1, for each i, one after the other."""
    ends = np.cumsum(counts)
    numbers: Int64 = np.arange(int(counts.sum())) + np.repeat(firsts - ends + counts, counts)
    return numbers


def encode_rows(part: IvfPq, rows: Rows, first: int, last: int) -> EncodedRows:
    """Return rows first to last - 1 coded with the codebook of `part`, which stays as it is."""
    blocks = rows.blocks(first, last, rows_max=ENCODE_ROWS)
    return joined([part.encode(_unit(block)) for block in blocks])


def add_rows(part: IvfPq, rows: Rows, last: int) -> int:
    """Code and add the rows that `part` does not have yet, up to `last`; return how many."""
    first = part.count
    for block in rows.blocks(first, last, rows_max=ENCODE_ROWS):
        part.add(part.encode(_unit(block)))
    return part.count - first


def _unit(block: Block) -> Float32:
    x = block.codes.astype(np.float32)
    x /= np.sqrt(block.squares.astype(np.float32))[:, None]
    return x
