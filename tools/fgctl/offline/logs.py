"""fgctl offline log: the records of a shard as the log objects hold them."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

from facegrid.blob.reader import BlobReader
from facegrid.errors import CorruptError, NotFoundError
from facegrid.format.chain import LogEntry, connect, log_entry
from facegrid.format.inventory import ShardNames
from facegrid.format.log import (
    EnrolRecord,
    EraseRecord,
    LoadRecord,
    LogRecord,
    decode_log,
    log_name,
    log_ref,
    parse_log_name,
)
from fgctl import render
from fgctl.offline import manifests

COLUMNS = (
    "position", "kind", "rows", "unchanged", "templates", "subjects", "written", "object", "state",
)  # fmt: skip
ID_COLUMNS = ("request", "template ids", "subject ids")


@dataclass(frozen=True, slots=True)
class ShownRecord:
    """One record without its vectors. An erasure counts the ids that it names; the ids of a bulk
    load stand in its segments.
    """

    position: int
    kind: str
    request_id: str
    written_unix_ms: int
    rows_count: int = 0
    unchanged_count: int = 0
    template_ids: Sequence[str] = ()
    subject_ids: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class ShownObject:
    """One log object; `state` says "log", or why it does not belong to it."""

    name: str
    state: str
    size_bytes: int
    records: tuple[ShownRecord, ...] = ()


async def walk(reader: BlobReader, shard_id: str, names: ShardNames) -> list[ShownObject]:
    """Return the log objects of a shard: first the log in its order, then all others."""
    shown: dict[str, ShownObject] = {}
    entries: list[LogEntry] = []
    for name in names.logs:
        try:
            data = await reader.get(name)
            group = decode_log(data)
        except (CorruptError, NotFoundError) as error:
            shown[name] = ShownObject(name, f"damaged: {error.message}", 0)
            continue
        parsed = parse_log_name(name)
        assert parsed is not None, "the inventory has sorted the names"
        entries.append(log_entry(group, log_ref(group, parsed[2], data)))
        records = tuple(_shown(record) for record in group.records)
        shown[name] = ShownObject(
            name, "swapped: it is not what its name says", len(data), records
        )
    newest = await manifests.newest(reader, names)
    chain = connect(entries, after=None if newest is None else newest.manifest.log)
    ordered: list[ShownObject] = []
    for part, state in (
        (chain.entries, "log"),
        (chain.superseded, "covered by the manifest"),
        (chain.orphans, "orphan"),
        (chain.forked, "forked"),
        (chain.detached, "detached: its predecessor is not there"),
    ):
        for entry in part:
            one = shown.pop(log_name(shard_id, entry.ref), None)
            if one is not None:
                ordered.append(ShownObject(one.name, state, one.size_bytes, one.records))
    return ordered + list(shown.values())


def _shown(record: LogRecord) -> ShownRecord:
    shown = partial(
        ShownRecord,
        position=record.position,
        request_id=record.request_id,
        written_unix_ms=record.written_unix_ms,
    )
    match record:
        case EnrolRecord():
            return shown(
                kind="enrol",
                rows_count=len(record.template_ids),
                unchanged_count=record.unchanged_count,
                template_ids=record.template_ids,
                subject_ids=record.subject_ids,
            )
        case EraseRecord():
            return shown(
                kind="erase", template_ids=record.template_ids, subject_ids=record.subject_ids
            )
        case LoadRecord():
            rows = sum(segment.rows_count for segment in record.segments)
            unchanged = sum(segment.unchanged_count for segment in record.segments)
            return shown(kind="load", rows_count=rows - unchanged, unchanged_count=unchanged)


def as_json(objects: Sequence[ShownObject], *, with_ids: bool) -> render.Json:
    """Return log objects as JSON."""
    return [
        {
            "name": one.name,
            "state": one.state,
            "size_bytes": one.size_bytes,
            "records": [_record_json(record, with_ids=with_ids) for record in one.records],
        }
        for one in objects
    ]


def show(objects: Sequence[ShownObject], *, with_ids: bool) -> None:
    """Print log objects as a table of records."""
    rows: list[tuple[object, ...]] = []
    for one in objects:
        short = one.name.rsplit("/", 1)[1]
        rows += [_row(record, short, one.state, with_ids=with_ids) for record in one.records]
        if not one.records:
            rows.append(("", "", "", "", "", "", "", short, one.state, *([""] * 3 * with_ids)))
    columns = COLUMNS + (ID_COLUMNS if with_ids else ())
    render.show_table("records", columns, rows)


def _row(record: ShownRecord, name: str, state: str, *, with_ids: bool) -> tuple[object, ...]:
    ids = (record.request_id, ", ".join(record.template_ids), ", ".join(record.subject_ids))
    return (
        record.position,
        record.kind,
        record.rows_count,
        record.unchanged_count,
        len(record.template_ids),
        len(set(record.subject_ids)),
        f"{datetime.fromtimestamp(record.written_unix_ms / 1000, UTC):%Y-%m-%d %H:%M:%S}",
        name,
        state,
        *(ids if with_ids else ()),
    )


def _record_json(record: ShownRecord, *, with_ids: bool) -> render.Json:
    shown: dict[str, render.Json] = {
        "position": record.position,
        "kind": record.kind,
        "rows_count": record.rows_count,
        "unchanged_count": record.unchanged_count,
        "template_ids_count": len(record.template_ids),
        "subjects_count": len(set(record.subject_ids)),
        "written_unix_ms": record.written_unix_ms,
    }
    if with_ids:
        shown["request_id"] = record.request_id
        shown["template_ids"] = list(record.template_ids)
        shown["subject_ids"] = list(record.subject_ids)
    return shown
