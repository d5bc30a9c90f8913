"""Ids and the rows of each subject, packed: millions of ids without millions of objects."""

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, repeat

import numpy as np
import numpy.typing as npt

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
UInt64 = npt.NDArray[np.uint64]

SPARSE = 8
"""Entries between first and last for each one wanted, from which single ones are cheaper."""


def in_order_met(numbers: Int32) -> tuple[Int64, Int32]:
    """Return the distinct ones of int32 [n] in the order first met, and the place of each among
    them, int32 [n].
    """
    used, first_met, places = np.unique(numbers, return_index=True, return_inverse=True)
    order = np.argsort(first_met)
    ranks = np.empty(len(order), np.int32)
    ranks[order] = np.arange(len(order), dtype=np.int32)
    return used[order].astype(np.int64), ranks[places]


@dataclass(frozen=True, slots=True, eq=False)
class PackedTexts:
    """Many short texts as one run of UTF-8; `ends` is uint64 [n], where each ends."""

    data: bytes
    ends: UInt64

    @classmethod
    def of(cls, encoded: Sequence[bytes]) -> "PackedTexts":
        """Pack texts given in UTF-8."""
        lengths = np.fromiter(map(len, encoded), np.uint64, len(encoded))
        return cls(b"".join(encoded), np.cumsum(lengths, dtype=np.uint64))

    def __len__(self) -> int:
        """Return the number of texts."""
        return len(self.ends)

    def __getitem__(self, number: int) -> str:
        """Return one text."""
        begin = int(self.ends[number - 1]) if number else 0
        return self.data[begin : int(self.ends[number])].decode()


class TextColumn:
    """A growing list of short texts, held as one run of bytes.

    Appending while another thread reads earlier entries is safe: entries never move in the index
    and each operation on the buffers holds the interpreter lock.
    """

    def __init__(self) -> None:
        self._data = bytearray()
        self._ends = array("Q", [0])

    def __len__(self) -> int:
        """Return the number of entries."""
        return len(self._ends) - 1

    def __getitem__(self, number: int) -> str:
        """Return one entry."""
        return bytes(self._data[self._ends[number] : self._ends[number + 1]]).decode()

    def take(self, numbers: Int64) -> list[str]:
        """Return some entries: many at once, in a small part of the time of one after another."""
        if len(numbers) == 0:
            return []
        first, last = int(numbers.min()), int(numbers.max()) + 1
        if last - first > SPARSE * len(numbers):
            return [self[number] for number in numbers.tolist()]
        # Copies, because an array cannot grow while a view of it exists.
        ends = np.frombuffer(self._ends[first : last + 1], np.uint64).astype(np.int64)
        data = bytes(self._data[int(ends[0]) : int(ends[-1])])
        ends -= ends[0]
        begins, ends = ends[numbers - first].tolist(), ends[numbers - first + 1].tolist()
        if data.isascii():
            text = data.decode()
            return [text[begin:end] for begin, end in zip(begins, ends, strict=True)]
        return [data[begin:end].decode() for begin, end in zip(begins, ends, strict=True)]

    def add(self, encoded: Sequence[bytes]) -> None:
        """Add entries, given in UTF-8, at the end: without NumPy, which costs more for a few."""
        ends = list(accumulate(map(len, encoded), initial=len(self._data)))
        self._data += b"".join(encoded)
        self._ends.extend(ends[1:])

    def extend(self, texts: PackedTexts) -> None:
        """Add many entries at the end."""
        ends = texts.ends + np.uint64(len(self._data))
        self._data += texts.data
        self._ends.frombytes(ends.tobytes())

    @property
    def memory_bytes(self) -> int:
        """Bytes held."""
        return len(self._data) + self._ends.itemsize * len(self._ends)


class SubjectRows:
    """Subjects by number, and the rows of each: a chain from a subject's newest row backwards.

    Many rows at once are added in two steps. `stage` gives numbers to their subjects and may run
    in another thread as long as nobody else adds rows; nothing that it does can be seen. `publish`
    or `unstage` follow, on the event loop.
    """

    def __init__(self) -> None:
        self.names = TextColumn()
        self._numbers: dict[str, int] = {}
        """Also those staged: their numbers begin at len(names)."""
        self._staged: list[str] = []
        self._newest = array("i")
        self._previous = array("i")
        self._subjects = array("i")

    def __len__(self) -> int:
        """Return the number of subjects ever seen."""
        return len(self.names)

    def number(self, subject_id: str) -> int | None:
        """Return a subject's number, or None when it was never enrolled."""
        number = self._numbers.get(subject_id)
        return number if number is not None and number < len(self.names) else None

    def known(self, subject_ids: Sequence[str]) -> set[str]:
        """Return those of some subjects that were ever enrolled, or are staged."""
        return self._numbers.keys() & subject_ids

    def add_rows(self, names: Sequence[str], encoded: Sequence[bytes]) -> Int32:
        """Give the next rows to subjects, one to each; return the subjects' numbers, int32 [n].

        Args:
            names: of the subjects.
            encoded: the same in UTF-8.
        """
        assert not self._staged, "what is staged has the next numbers"
        known, newest, previous = self._numbers, self._newest, self._previous
        if len(set(names)) == len(names) and known.keys().isdisjoint(names):
            return self._add_new(names, encoded)
        new: list[bytes] = []
        numbers: list[int] = []
        for row, name in enumerate(names, len(previous)):
            number = known.get(name)
            if number is None:
                number = known[name] = len(newest)
                new.append(encoded[len(numbers)])
                newest.append(-1)
            previous.append(newest[number])
            newest[number] = row
            numbers.append(number)
        self.names.add(new)
        self._subjects.extend(numbers)
        return np.array(numbers, np.int32)

    def _add_new(self, names: Sequence[str], encoded: Sequence[bytes]) -> Int32:
        """Do as `add_rows` for distinct subjects none of which is here: no loop over them."""
        first, row = len(self._newest), len(self._previous)
        numbers = range(first, first + len(names))
        self._numbers.update(zip(names, numbers, strict=True))
        self._newest.extend(range(row, row + len(names)))
        self._previous.extend(repeat(-1, len(names)))
        self.names.add(encoded)
        self._subjects.extend(numbers)
        return np.arange(first, first + len(names), dtype=np.int32)

    def stage(self, names: Sequence[str]) -> Int32:
        """Return the numbers of subjects, int32 [n]; those that are new get the next ones."""
        numbers = np.empty(len(names), np.int32)
        known, first = self._numbers, len(self.names)
        for place, name in enumerate(names):
            number = known.get(name)
            if number is None:
                number = known[name] = first + len(self._staged)
                self._staged.append(name)
            numbers[place] = number
        return numbers

    def unstage(self) -> None:
        """Forget what was staged."""
        for name in self._staged:
            del self._numbers[name]
        self._staged = []

    def links(self, numbers: Int32) -> "Links":
        """Return how rows of these subjects, int32 [n], hang together when they come next."""
        first = len(self._previous)
        order = np.argsort(numbers, kind="stable")
        ordered = numbers[order]
        begins = np.ones(len(ordered), np.bool_)
        begins[1:] = ordered[1:] != ordered[:-1]
        newest = np.full(len(self.names) + len(self._staged), -1, np.int32)
        newest[: len(self.names)] = np.array(self._newest, np.int32)
        before = np.empty(len(ordered), np.int32)
        before[1:] = order[:-1] + first
        before[begins] = newest[ordered[begins]]
        previous = np.empty(len(ordered), np.int32)
        previous[order] = before
        ends = np.append(begins[1:], True) if len(begins) else begins
        newest[ordered[ends]] = (order[ends] + first).astype(np.int32)
        names = PackedTexts.of([name.encode() for name in self._staged])
        return Links(numbers=numbers, previous=previous, newest=newest, names=names)

    def publish(self, links: "Links") -> None:
        """Add the rows that `links` was told of."""
        self.names.extend(links.names)
        self._newest = array("i", links.newest.tobytes())
        self._previous.frombytes(links.previous.tobytes())
        self._subjects.frombytes(links.numbers.tobytes())
        self._staged = []

    def rows(self, subject_id: str) -> list[int]:
        """Return all rows ever given to a subject, erased ones too, in the order enrolled."""
        number = self.number(subject_id)
        found: list[int] = []
        row = -1 if number is None else self._newest[number]
        while row >= 0:
            found.append(row)
            row = self._previous[row]
        return found[::-1]

    def name_of_row(self, row: int) -> str:
        """Return the subject of a row."""
        return self.names[self._subjects[row]]

    def numbers_of(self, rows: Int64) -> Int32:
        """Return the numbers of the subjects of rows, int32 [n]."""
        if len(rows) == 0:
            return np.empty(0, np.int32)
        first, last = int(rows.min()), int(rows.max()) + 1
        numbers: Int32 = np.frombuffer(self._subjects[first:last], np.int32)[rows - first]
        return numbers

    @property
    def memory_bytes(self) -> int:
        """Bytes held, with an estimate of 160 for each entry of the dictionary."""
        arrays = (self._newest, self._previous, self._subjects)
        packed = sum(column.itemsize * len(column) for column in arrays)
        return self.names.memory_bytes + packed + 160 * len(self._numbers)


@dataclass(frozen=True, slots=True, eq=False)
class Links:
    """Rows about to be added: `numbers` and `previous` are int32 [rows], `newest` is int32
    [subjects] of all subjects as it will be, `names` are those of the new ones.
    """

    numbers: Int32
    previous: Int32
    newest: Int32
    names: PackedTexts


class HashColumn:
    """One hash for each row's template id: finds rows by id with a scan instead of a dictionary.

    A dictionary would cost about 100 bytes a row; erasures by template id are rare, and a scan of
    a million hashes takes under a millisecond.
    """

    def __init__(self) -> None:
        self._hashes = array("q")

    def add(self, texts: Iterable[str]) -> None:
        """Add the next rows' ids."""
        self._hashes.extend(map(hash, texts))

    def extend(self, hashes: Int64) -> None:
        """Add the next rows, by the hash of each id."""
        self._hashes.frombytes(hashes.tobytes())

    def find(self, texts: list[str]) -> Int64:
        """Return the rows whose hash equals that of any of the texts, in rising order."""
        wanted = np.fromiter((hash(text) for text in texts), np.int64, len(texts))
        # A copy, because an array cannot grow while a view of it exists.
        column = np.array(self._hashes, np.int64)
        return np.flatnonzero(np.isin(column, wanted)).astype(np.int64)

    @property
    def memory_bytes(self) -> int:
        """Bytes held."""
        return self._hashes.itemsize * len(self._hashes)
