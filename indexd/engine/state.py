"""One replica of a shard in memory: ids, rows, index, and the writes it remembers.

Writes come in two steps. `indexd.engine.planning` looks at a request and says what its log record
would be, and changes nothing; `apply` carries out a committed record. Recovery, following and
serving apply the same records in the same order through the same function, and so cannot disagree.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from facegrid import vectors
from facegrid.errors import CorruptError, InvalidError
from facegrid.format import digest as digests
from facegrid.format.log import EnrolRecord, EraseRecord, LoadRecord, LogRecord, LogRef
from facegrid.ids import ShardId, subject_keys
from indexd.ann.index import ShardIndex
from indexd.ann.ivfpq import IvfPq
from indexd.engine.coded import NamedCodebook
from indexd.engine.columns import HashColumn, PackedTexts, SubjectRows, TextColumn
from indexd.engine.erasures import PendingErasures
from indexd.engine.loading import LoadedRows, PreparedSegment, ShardShape, Staged
from indexd.engine.requests import (
    InheritedRequests,
    Outcome,
    Remembered,
    RequestMemory,
    Step,
)

Int64 = npt.NDArray[np.int64]


class ShardState:
    """The rows of one shard replica. Changed on the event loop only; searched from one thread."""

    def __init__(self, shape: ShardShape) -> None:
        self.shape = shape
        self.shard_id = shape.shard_id
        self.range = shape.range
        self.dim = shape.dim
        self.index = ShardIndex(shape.dim, shape.component_bits)
        self.subjects = SubjectRows()
        self.templates = TextColumn()
        self.requests = RequestMemory()
        self.erasures = PendingErasures(shape.shard_id)
        self.inherited = InheritedRequests()
        self.sources: dict[ShardId, int] = {}
        """How far other shards have been brought into this one."""
        self.position = 0
        self.log: LogRef | None = None
        self.digest = 0
        self.templates_count = 0
        self.dropped_count = 0
        """Erased rows that repacking has left out, see indexd.engine.repack."""
        self._template_hashes = HashColumn()
        self._erased = bytearray()
        self.codebook = ""
        self.staged: Staged | None = None
        """Rows of a load that is about to be committed; see indexd.engine.staging."""
        self.loaded: list[LoadedRows] = []
        """Rows that lie in segments of loads, in order, as far as only the log knows of them. A
        primary forgets those that its manifest covers, a follower goes on to know them."""

    @property
    def rows_count(self) -> int:
        """Rows in memory, erased ones too."""
        return len(self.templates)

    @property
    def erased_count(self) -> int:
        """Erased rows in memory."""
        return self.rows_count - self.templates_count

    @property
    def erasures_count(self) -> int:
        """Rows erased since this copy was loaded, or erased when it was."""
        return self.erased_count + self.dropped_count

    @property
    def memory_bytes(self) -> int:
        """Bytes held by rows, index and ids."""
        ids = self.subjects.memory_bytes + self.templates.memory_bytes
        return self.index.memory_bytes + ids + self._template_hashes.memory_bytes

    def is_erased(self, row: int) -> bool:
        """Tell whether a row is erased."""
        return bool(self._erased[row])

    def erased_mask(self, rows: Int64) -> npt.NDArray[np.bool_]:
        """Tell of each row whether it is erased; one that has left the memory, below 0, is."""
        erased = np.frombuffer(bytes(self._erased) + b"\x01", np.bool_)
        return erased[np.maximum(rows, -1)]

    def use_codebook(self, named: NamedCodebook) -> None:
        """Set the codebook of a state that holds nothing yet."""
        assert self.rows_count == 0, "rows that are there are coded in the background"
        self.index.swap(self.index.rebuilt(named.codebook))
        self.codebook = named.sha256

    def adopt(self, coded: IvfPq, sha256: str) -> None:
        """Search through a new index from now on. For the owner thread: whoever asks there for
        codes must hear of index and codebook together.
        """
        self.index.swap(coded)
        self.codebook = sha256

    def follows(self, step: Step) -> bool:
        """Tell whether a source is here exactly as far as a request says that it was before."""
        return self.sources.get(step.source, 0) == step.after

    def keys_of(self, subjects: Sequence[bytes]) -> tuple[npt.NDArray[np.uint64], int | None]:
        """Return the keys of subjects, given in UTF-8, and the place of the first that does not
        belong here.
        """
        keys = subject_keys(subjects)
        outside = (keys < np.uint64(self.range.first)) | (keys > np.uint64(self.range.last))
        return keys, int(outside.argmax()) if outside.any() else None

    # Applying

    def record_problem(self, record: LogRecord) -> str:
        """Say why a record that was read back cannot be carried out here; empty when it can.

        No primary writes such a record. One that is there all the same would else end the process
        that replays it, and the next one after that.
        """
        source = record.source
        if source is not None and source.position <= self.sources.get(source.shard_id, 0):
            return f"its source goes back source={source.shard_id} position={source.position}"
        return self.rows_problem(record)

    def rows_problem(self, record: LogRecord) -> str:
        """Say why rows of a record do not belong here; empty when they do."""
        if not isinstance(record, EnrolRecord):
            # Erasures fit everywhere; segments of loads are checked as they are fetched.
            return ""
        if record.codes.shape[1] != self.dim:
            return f"its rows have another dimension dim={record.codes.shape[1]} here={self.dim}"
        if len(record.codes):
            try:
                vectors.check_codes(record.codes, self.shape.component_bits)
            except InvalidError as error:
                return error.message
        _, elsewhere = self.keys_of([one.encode() for one in record.subject_ids])
        return (
            ""
            if elsewhere is None
            else f"a subject of it belongs to another shard row={elsewhere}"
        )

    def apply(self, record: LogRecord, log: LogRef) -> Outcome:
        """Carry out a committed record; return what it did."""
        assert record.position == self.position + 1, "records are applied in order, each once"
        outcome: Outcome
        if self.staged is not None and self.staged.request_id != record.request_id:
            # The load that was staged came to nothing.
            self.unstage()
        match record:
            case EnrolRecord():
                self.add_rows(record.template_ids, record.subject_ids, record.codes)
                outcome = Outcome(
                    record.position,
                    enrolled_count=len(record.template_ids),
                    unchanged_count=record.unchanged_count,
                )
            case EraseRecord():
                rows = self._reached(record)
                self.erase_rows(rows)
                if record.source is None:
                    # The source's own journal has it, by the source's positions.
                    self.erasures.note(record)
                outcome = Outcome(record.position, erased_count=len(rows))
            case LoadRecord():
                outcome = self._publish(record)
        if record.source is None:
            self.requests.remember(record.request_id, Remembered(record.request_digest, outcome))
        else:
            self.sources[record.source.shard_id] = record.source.position
        self.inherited.note(record.inherited)
        self.position = record.position
        self.log = log
        return outcome

    def _publish(self, record: LoadRecord) -> Outcome:
        """Make the rows of a staged load seen, all at once."""
        staged = self.staged
        assert staged is not None, "a load is staged before it is applied"
        assert staged.request_id == record.request_id, "and no other"
        first = self.rows_count
        self.subjects.publish(staged.links)
        for segment in staged.segments:
            self.templates.extend(segment.templates)
            self._template_hashes.extend(segment.template_hashes)
            self.loaded.append(LoadedRows(segment.sha256, first, first + len(segment)))
            first += len(segment)
        self._erased += staged.erased.tobytes()
        self.digest = digests.add(self.digest, staged.digest)
        self.templates_count += len(staged.erased) - int(np.count_nonzero(staged.erased))
        self.staged = None
        # Last: from here on searches meet them.
        self.index.publish(len(staged.erased))
        self._know_codes(staged.segments, self.rows_count - len(staged.erased))
        unchanged = sum(segment.unchanged_count for segment in record.segments)
        rows = sum(segment.rows_count for segment in record.segments)
        return Outcome(record.position, enrolled_count=rows - unchanged, unchanged_count=unchanged)

    def _know_codes(self, segments: Sequence[PreparedSegment], first: int) -> None:
        """Keep the codes that segments came with, so that their rows are not coded again."""
        for segment in segments:
            if segment.encoded is not None and segment.codebook == self.codebook:
                self.index.know(first, segment.encoded)
            first += len(segment)

    def unstage(self) -> None:
        """Forget rows that were staged and not published."""
        self.subjects.unstage()
        self.index.unstage()
        self.staged = None

    def add_rows(
        self, template_ids: Sequence[str], subject_ids: Sequence[str], codes: vectors.Int8
    ) -> npt.NDArray[np.int32]:
        """Add rows to ids, digest and the exact part of the index; return subject numbers."""
        numbers = self.register(template_ids, subject_ids, codes)
        if len(numbers):
            self.index.append(codes, numbers)
        return numbers

    def register(
        self, template_ids: Sequence[str], subject_ids: Sequence[str], codes: vectors.Int8
    ) -> npt.NDArray[np.int32]:
        """Add rows to ids and digest only; return the subjects' numbers."""
        templates = [one.encode() for one in template_ids]
        subjects = [one.encode() for one in subject_ids]
        added = digests.of_rows(subjects, templates, codes)
        numbers = self.subjects.add_rows(subject_ids, subjects)
        self.templates.add(templates)
        self._template_hashes.add(template_ids)
        self.digest = digests.add(self.digest, added)
        self._erased += bytes(len(numbers))
        self.templates_count += len(numbers)
        return numbers

    def register_many(
        self,
        template_ids: Sequence[str],
        subject_ids: Sequence[str],
        subject_rows: npt.NDArray[np.int32],
        codes: vectors.Int8,
    ) -> npt.NDArray[np.int32]:
        """Do as `register`, several times as fast for very many rows; for few it is slow, since it
        takes time for every subject that is there.

        Args:
            template_ids: of each row.
            subject_ids: distinct.
            subject_rows: int32 [n], each row's place in subject_ids.
            codes: int8 [n, dim].
        """
        assert self.staged is None, "what is staged has the next numbers"
        templates = [one.encode() for one in template_ids]
        subjects = [one.encode() for one in subject_ids]
        hashed = digests.row_digests(
            [subjects[place] for place in subject_rows.tolist()], templates, codes
        )
        numbers = self.subjects.stage(subject_ids)[subject_rows]
        self.subjects.publish(self.subjects.links(numbers))
        self.templates.extend(PackedTexts.of(templates))
        self._template_hashes.extend(np.fromiter(map(hash, template_ids), np.int64, len(numbers)))
        self.digest = digests.add(self.digest, digests.total(hashed))
        self._erased += bytes(len(numbers))
        self.templates_count += len(numbers)
        return numbers

    def erase_rows(self, rows: Int64) -> None:
        """Erase live rows."""
        if len(rows) == 0:
            return
        self.index.erase(rows)
        for row, codes in zip(rows.tolist(), self.index.codes(rows), strict=True):
            assert not self._erased[row], "only live rows are erased"
            self._erased[row] = 1
            subject_id = self.subjects.name_of_row(row)
            one = digests.row_digest(subject_id, self.templates[row], codes.tobytes())
            self.digest = digests.subtract(self.digest, one)
        self.templates_count -= len(rows)

    # Looking up

    def _reached(self, record: EraseRecord) -> Int64:
        """Return the live rows that an erasure is about, rising."""
        rows = self.find(record.template_ids, record.subject_ids)
        if record.within is None:
            return rows
        reached = [row for row in rows.tolist() if record.reaches(self.subjects.name_of_row(row))]
        return np.array(reached, np.int64)

    def live_rows(self, subject_id: str) -> list[int]:
        """Return the rows of a subject that are not erased, in the order enrolled."""
        return [row for row in self.subjects.rows(subject_id) if not self._erased[row]]

    def find(self, template_ids: Sequence[str], subject_ids: Sequence[str]) -> Int64:
        """Return the live rows of these templates and of these subjects, rising, each once."""
        found = {row for subject_id in subject_ids for row in self.live_rows(subject_id)}
        if template_ids:
            wanted = set(template_ids)
            for row in self._template_hashes.find(list(wanted)).tolist():
                # Hashes may collide; the id itself decides.
                if not self._erased[row] and self.templates[row] in wanted:
                    found.add(row)
        return np.array(sorted(found), np.int64)

    def verify_digest(self, expected: bytes) -> None:
        """Raise CorruptError unless the rows are those that the digest was made of."""
        if digests.to_bytes(self.digest) != expected:
            raise CorruptError(
                f"rows do not match the digest of the manifest shard={self.shard_id}"
                f" position={self.position}",
                reason="DIGEST_MISMATCH",
                shard=self.shard_id,
            )
