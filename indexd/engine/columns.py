"""Ids and the rows of each subject, packed: millions of ids without millions of objects."""

from array import array

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]


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

    def append(self, text: str) -> None:
        """Add an entry at the end."""
        self._data += text.encode()
        self._ends.append(len(self._data))

    @property
    def memory_bytes(self) -> int:
        """Bytes held."""
        return len(self._data) + self._ends.itemsize * len(self._ends)


class SubjectRows:
    """Subjects by number, and the rows of each: a chain from a subject's newest row backwards."""

    def __init__(self) -> None:
        self.names = TextColumn()
        self._numbers: dict[str, int] = {}
        self._newest = array("i")
        self._previous = array("i")
        self._subjects = array("i")

    def __len__(self) -> int:
        """Return the number of subjects ever seen."""
        return len(self.names)

    def number(self, subject_id: str) -> int | None:
        """Return a subject's number, or None when it was never enrolled."""
        return self._numbers.get(subject_id)

    def add_row(self, subject_id: str) -> int:
        """Give the next row to a subject; return the subject's number."""
        number = self._numbers.get(subject_id)
        if number is None:
            number = len(self.names)
            self._numbers[subject_id] = number
            self.names.append(subject_id)
            self._newest.append(-1)
        row = len(self._previous)
        self._previous.append(self._newest[number])
        self._newest[number] = row
        self._subjects.append(number)
        return number

    def rows(self, subject_id: str) -> list[int]:
        """Return all rows ever given to a subject, erased ones too, in the order enrolled."""
        number = self._numbers.get(subject_id)
        found: list[int] = []
        row = -1 if number is None else self._newest[number]
        while row >= 0:
            found.append(row)
            row = self._previous[row]
        return found[::-1]

    def name_of_row(self, row: int) -> str:
        """Return the subject of a row."""
        return self.names[self._subjects[row]]

    @property
    def memory_bytes(self) -> int:
        """Bytes held, with an estimate of 160 for each entry of the dictionary."""
        arrays = (self._newest, self._previous, self._subjects)
        packed = sum(column.itemsize * len(column) for column in arrays)
        return self.names.memory_bytes + packed + 160 * len(self._numbers)


class HashColumn:
    """One hash for each row's template id: finds rows by id with a scan instead of a dictionary.

    A dictionary would cost about 100 bytes a row; erasures by template id are rare, and a scan of
    a million hashes takes under a millisecond.
    """

    def __init__(self) -> None:
        self._hashes = array("q")

    def append(self, text: str) -> None:
        """Add the next row's id."""
        self._hashes.append(hash(text))

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
