"""Checks what bulk loads have stored of one shard: segments that the log names, and pins."""

from collections.abc import Collection, Sequence

from facegrid.format.chain import Chain
from facegrid.format.inventory import named_sha256
from facegrid.format.load_pin import decode_pin, parse_pin_name
from facegrid.format.log import LoadedSegment, LoadRecord, LogGroup, LogRef
from facegrid.format.replay import Replay
from facegrid.format.segment import decode_segment, segment_name
from facegrid.ids import ShardId
from fgctl.offline.findings import Objects


class LoadCheck:
    """The loads of one shard, as its log tells of them."""

    def __init__(self, shard_id: ShardId, objects: Objects) -> None:
        self._shard_id = shard_id
        self._objects = objects
        self._noted: dict[LogRef, list[str]] = {}
        self._named: set[str] = set()
        self._pinned: set[str] = set()

    def note(self, group: LogGroup, ref: LogRef) -> None:
        """Note which segments a log object names."""
        self._noted[ref] = [
            segment_name(self._shard_id, one.sha256)
            for record in group.records
            if isinstance(record, LoadRecord)
            for one in record.segments
        ]

    async def pins(self, names: Sequence[str], chain: Chain) -> None:
        """Check the pins, now that it is known which log objects were committed."""
        for entry in chain.entries:
            self._named.update(self._noted.get(entry.ref, ()))
        for name in names:
            named = parse_pin_name(name)
            assert named is not None, "the inventory has sorted the names"
            pin = await self._objects.decoded(name, decode_pin)
            if pin is not None and pin != named:
                self._objects.findings.problem(
                    name, "OBJECT_SWAPPED", f"it belongs elsewhere shard={pin.shard_id}"
                )
            segment = segment_name(self._shard_id, named.sha256)
            self._pinned.add(segment)
            state = "committed" if segment in self._named else "not committed"
            self._objects.findings.note(name, f"pin of load {named.load_id}: {state}")

    def names(self, segment: str) -> bool:
        """Tell whether the log or a pin names a segment."""
        return segment in self._named or segment in self._pinned

    async def take(
        self, record: LoadRecord, replay: Replay, *, by: str, unreadable: Collection[str]
    ) -> bool:
        """Take the segments of a committed load; tell whether its rows are known then.

        Raises:
            CorruptError: see `Replay.take_segment`.
        """
        known = True
        for one in record.segments:
            if one.unchanged_count < one.rows_count:
                known &= await self._take(one, replay, by, unreadable)
        return known

    async def _take(
        self, one: LoadedSegment, replay: Replay, by: str, unreadable: Collection[str]
    ) -> bool:
        name = segment_name(self._shard_id, one.sha256)
        findings = self._objects.findings
        if name in unreadable:
            return False
        if name not in self._objects.names:
            findings.problem(name, "OBJECT_MISSING", f"segment is missing; named by {by}")
            return False
        segment = await self._objects.hashed(name, decode_segment)
        if segment is None:
            return False
        rows = len(segment.template_ids)
        if (segment.shard_id, rows) != (self._shard_id, one.rows_count):
            findings.problem(
                name,
                "SEGMENT_MISMATCH",
                f"{by} says otherwise shard={segment.shard_id} rows={rows}"
                f" expected_rows={one.rows_count} sha256={named_sha256(name)}",
            )
            return False
        replay.take_segment(segment, one.erased)
        return True
