"""Rows as columns: ids, codes, and what a codebook makes of them. Pure."""

from dataclasses import dataclass, field

import numpy as np

from facegrid.format import digest as digests
from facegrid.format.bitmap import Bool
from facegrid.format.segment import Int32, UInt8
from facegrid.ids import ShardId
from facegrid.vectors import Int8


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Some rows.

    Attributes:
        template_ids: one per row.
        subject_ids: one per row.
        codes: int8 [rows, dim], see facegrid.vectors.
        codebook: sha256 in hex of what lists and pq_codes belong to; empty: they are None, and
            the nodes code the rows by themselves.
        lists: int32 [rows].
        pq_codes: uint8 [rows, b].
    """

    template_ids: list[str]
    subject_ids: list[str]
    codes: Int8
    codebook: str = ""
    lists: Int32 | None = None
    pq_codes: UInt8 | None = None

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.codes)

    def only(self, kept: Bool) -> "Rows":
        """Return the rows for which bool [n] is true."""
        if kept.all():
            return self
        at = np.flatnonzero(kept).tolist()
        return Rows(
            [self.template_ids[row] for row in at],
            [self.subject_ids[row] for row in at],
            self.codes[kept],
            self.codebook,
            None if self.lists is None else self.lists[kept],
            None if self.pq_codes is None else self.pq_codes[kept],
        )

    def of_shard(self, shard_id: ShardId, first: int, last: int) -> "ShardRows":
        """Return those from one number to before another as rows of a shard."""
        part = slice(first, last)
        return ShardRows(
            self.template_ids[part],
            self.subject_ids[part],
            self.codes[part],
            self.codebook,
            None if self.lists is None else self.lists[part],
            None if self.pq_codes is None else self.pq_codes[part],
            shard_id=shard_id,
        )

    def digest(self) -> int:
        """Return the digest of the rows."""
        if not len(self):
            return 0
        subjects = [one.encode() for one in self.subject_ids]
        templates = [one.encode() for one in self.template_ids]
        return digests.total(digests.row_digests(subjects, templates, self.codes))


@dataclass(frozen=True, slots=True, eq=False)
class ShardRows(Rows):
    """Rows of one shard, sound as enrolment wants them, no template twice."""

    shard_id: ShardId = field(kw_only=True)
