"""The erasures that the journal in the store does not have yet."""

from facegrid.format.erasures import Erasure, erasure_of
from facegrid.format.inventory import gallery_of
from facegrid.format.log import EraseRecord


class PendingErasures:
    """What the log behind the manifest erased, as hashes.

    Noted wherever a record is applied, so recovery finds again what a crash forgot. A flush writes
    all of it before its manifest is committed, and only a committed manifest lets it be forgotten.
    A follower never flushes: it forgets now and then what the primary's manifests lead to, and has
    what it needs should it become the primary.
    """

    def __init__(self, shard_id: str) -> None:
        self._gallery_uid = gallery_of(shard_id)[1]
        self._erasures: list[Erasure] = []

    def __len__(self) -> int:
        """Return how many records are noted."""
        return len(self._erasures)

    def note(self, record: EraseRecord) -> None:
        """Note what a record erases, whether or not there was such a row."""
        erasure = erasure_of(self._gallery_uid, record)
        if erasure.ids_count:
            self._erasures.append(erasure)

    def up_to(self, position: int) -> tuple[Erasure, ...]:
        """Return what was noted up to a position, in order."""
        return tuple(one for one in self._erasures if one.position <= position)

    def forget(self, position: int) -> None:
        """Forget what was noted up to a position: a committed manifest leads to it."""
        self._erasures = [one for one in self._erasures if one.position > position]
