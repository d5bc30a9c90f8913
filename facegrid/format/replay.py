"""What the rows of a shard are at a position, as a number and a digest, without holding them.

For checking a stored shard in little memory. Two passes over the log: the first (`watch`) notes
which ids it speaks of; then the segments are taken one by one (`take_segment`), and only their
live rows with those ids are kept, as digests; the second pass (`apply`) carries the records out on
them. What is kept grows with the log behind the manifest, not with the shard. Segments of a bulk
load are taken likewise, when the second pass comes to their record.
"""

from collections.abc import Iterator

from facegrid.errors import CorruptError
from facegrid.format import digest as digests
from facegrid.format.bitmap import Bool
from facegrid.format.log import EnrolRecord, EraseRecord, LoadRecord, LogRecord
from facegrid.format.manifest import Manifest
from facegrid.format.segment import Segment

Pair = tuple[str, str]
"""Subject id and template id."""


class Replay:
    """One shard being checked.

    Attributes:
        position: number of the last record applied.
        digest: of the live rows.
        templates_count: live rows.
        has_own: there was a record that no other shard brought.
    """

    def __init__(self, dim: int = 0) -> None:
        self.dim = dim
        self.position = 0
        self.digest = 0
        self.templates_count = 0
        self.has_own = False
        self._watched_pairs: set[Pair] = set()
        self._watched_templates: set[str] = set()
        self._watched_subjects: set[str] = set()
        self._rows: dict[Pair, int] = {}
        self._of_template: dict[str, set[Pair]] = {}
        self._of_subject: dict[str, set[Pair]] = {}

    def watch(self, record: LogRecord) -> None:
        """Note the ids that a record speaks of."""
        match record:
            case EnrolRecord():
                self._watched_pairs.update(_pairs(record))
            case EraseRecord():
                self._watched_templates.update(record.template_ids)
                self._watched_subjects.update(record.subject_ids)
            case LoadRecord():
                # Its rows are looked at when its segments are taken.
                pass

    def take_segment(self, segment: Segment, erased: Bool) -> None:
        """Count the live rows of a segment: of one that the manifest names, or, when
        its record is about to be applied, of one that was loaded.

        Raises:
            CorruptError: a template lives twice (TEMPLATE_TWICE), or its rows are of another
                dimension (DIM_MISMATCH).
        """
        self.dim = self.dim or segment.dim
        if segment.dim != self.dim:
            raise CorruptError(
                f"rows have another dimension dim={segment.dim} expected={self.dim}",
                reason="DIM_MISMATCH",
            )
        for row, template_id in enumerate(segment.template_ids):
            if erased[row]:
                continue
            subject_id = segment.subject_ids[segment.subject_rows[row]]
            one = digests.row_digest(subject_id, template_id, segment.codes[row].tobytes())
            self.digest = digests.add(self.digest, one)
            self.templates_count += 1
            if self._is_watched(subject_id, template_id):
                self._hold((subject_id, template_id), one)

    def apply(self, record: LogRecord) -> None:
        """Carry a record out.

        Raises:
            CorruptError: the record cannot follow what was there: its position (LOG_BROKEN), its
                dimension (DIM_MISMATCH), or a template that lives already (TEMPLATE_TWICE).
        """
        if record.position != self.position + 1:
            raise CorruptError(
                f"a record is missing expected={self.position + 1} found={record.position}",
                reason="LOG_BROKEN",
            )
        match record:
            case EnrolRecord():
                self._enrol(record)
            case EraseRecord():
                self._erase(record)
            case LoadRecord():
                # Whoever applies it has taken its segments before.
                pass
        self.position = record.position
        self.has_own |= record.source is None

    def begin(self, manifest: Manifest) -> None:
        """Go on from a manifest, whose segments were taken."""
        self.position = manifest.position
        # Only requests to the shard itself are remembered.
        self.has_own = bool(manifest.requests) or not manifest.sources

    def _enrol(self, record: EnrolRecord) -> None:
        rows, dim = record.codes.shape
        self.dim = self.dim or dim
        if rows and dim != self.dim:
            raise CorruptError(
                f"rows have another dimension position={record.position} dim={dim}"
                f" expected={self.dim}",
                reason="DIM_MISMATCH",
            )
        for pair, codes in zip(_pairs(record), record.codes, strict=True):
            one = digests.row_digest(*pair, codes.tobytes())
            self._hold(pair, one)
            self.digest = digests.add(self.digest, one)
        self.templates_count += rows

    def _erase(self, record: EraseRecord) -> None:
        doomed: set[Pair] = set()
        for template_id in record.template_ids:
            doomed |= self._of_template.get(template_id, set())
        for subject_id in record.subject_ids:
            doomed |= self._of_subject.get(subject_id, set())
        for pair in (pair for pair in doomed if record.reaches(pair[0])):
            self.digest = digests.subtract(self.digest, self._rows.pop(pair))
            self._of_subject[pair[0]].discard(pair)
            self._of_template[pair[1]].discard(pair)
            self.templates_count -= 1

    def _hold(self, pair: Pair, digest: int) -> None:
        if pair in self._rows:
            raise CorruptError("a template of a subject lives twice", reason="TEMPLATE_TWICE")
        self._rows[pair] = digest
        self._of_subject.setdefault(pair[0], set()).add(pair)
        self._of_template.setdefault(pair[1], set()).add(pair)

    def _is_watched(self, subject_id: str, template_id: str) -> bool:
        return (
            subject_id in self._watched_subjects
            or template_id in self._watched_templates
            or (subject_id, template_id) in self._watched_pairs
        )


def _pairs(record: EnrolRecord) -> Iterator[Pair]:
    return zip(record.subject_ids, record.template_ids, strict=True)
