"""What people and programs see of snapshots."""

from datetime import UTC, datetime

from facegrid.format import digest as digests
from facegrid.format.snapshot import Snapshot
from fgctl import render
from fgctl.snapshot.check import RepositoryReport
from fgctl.snapshot.create import Created
from fgctl.snapshot.cut import gallery_in
from fgctl.snapshot.delete import Doomed
from fgctl.snapshot.repository import Descriptors, bytes_of, cut_of
from fgctl.snapshot.restore import Restored

COLUMNS = (
    "snapshot", "gallery", "uid", "created", "shards", "templates at most", "objects", "bytes",
)  # fmt: skip


def snapshot_json(one: Snapshot) -> dict[str, render.Json]:
    """Return a descriptor as JSON, without its objects."""
    gallery, shard_map = gallery_in(cut_of(one))
    return {
        "snapshot": one.snapshot_id,
        "gallery": gallery.name,
        "uid": one.gallery_uid,
        "created_unix_ms": one.created_unix_ms,
        "cut_revision": one.cut_revision,
        "dim": gallery.dim,
        "extractor": gallery.extractor,
        "component_bits": gallery.component_bits,
        "shards_count": len(shard_map.shards),
        "templates_count_max": one.templates_count_max,
        "objects_count": len(one.objects),
        "bytes": bytes_of(one.objects),
    }


def created_json(made: Created) -> render.Json:
    """Return a snapshot just made as JSON."""
    return {
        **snapshot_json(made.snapshot),
        "new_objects_count": made.new_objects_count,
        "new_bytes": made.new_bytes,
    }


def created(made: Created) -> None:
    """Print a snapshot just made."""
    one = made.snapshot
    render.show_line(
        f"snapshot {one.snapshot_id}: {len(one.objects):,} objects,"
        f" {bytes_of(one.objects):,} bytes; of these copied now:"
        f" {made.new_objects_count:,} objects, {made.new_bytes:,} bytes"
    )


def list_json(found: Descriptors, gallery: str) -> render.Json:
    """Return the snapshots of a gallery, or all, as JSON."""
    return {
        "snapshots": [snapshot_json(one) for one in _of_gallery(found, gallery)],
        "damaged": [
            {"name": name, "reason": error.reason, "problem": error.message}
            for name, error in sorted(found.damaged.items())
        ],
    }


def listed(found: Descriptors, gallery: str) -> None:
    """Print the snapshots of a gallery, or all."""
    rows = []
    for one in _of_gallery(found, gallery):
        held, shard_map = gallery_in(cut_of(one))
        made = datetime.fromtimestamp(one.created_unix_ms / 1000, UTC)
        rows.append(
            (
                one.snapshot_id,
                held.name,
                one.gallery_uid,
                f"{made:%Y-%m-%d %H:%M:%S} UTC",
                len(shard_map.shards),
                one.templates_count_max,
                len(one.objects),
                bytes_of(one.objects),
            )
        )
    render.show_table("snapshots", COLUMNS, rows)
    for name, error in sorted(found.damaged.items()):
        render.show_line(f"problem: {name}: {error.message} reason={error.reason}")


def _of_gallery(found: Descriptors, gallery: str) -> list[Snapshot]:
    snapshots = [named.snapshot for named in found.readable]
    return [one for one in snapshots if gallery in ("", gallery_in(cut_of(one))[0].name)]


def report_json(found: RepositoryReport) -> render.Json:
    """Return the findings of a check as JSON."""
    return {
        "ok": found.whole,
        "problems": [
            {"name": one.name, "reason": one.reason, "problem": one.problem}
            for one in found.findings.problems
        ],
        "unneeded": [{"name": one.name, "why": one.why} for one in found.findings.notes],
        "snapshots": [
            {
                "snapshot": one.snapshot.snapshot_id,
                "ok": one.whole,
                "templates_count": one.templates_count if one.whole else None,
            }
            for one in found.snapshots
        ],
    }


def report(found: RepositoryReport) -> None:
    """Print the findings of a check."""
    rows = [(one.snapshot.snapshot_id, one.whole, one.templates_count) for one in found.snapshots]
    render.show_table("snapshots", ("snapshot", "ok", "templates"), rows)
    for note in found.findings.notes:
        render.show_line(f"unneeded: {note.name}: {note.why}")
    for problem in found.findings.problems:
        render.show_line(f"problem: {problem.name}: {problem.problem} reason={problem.reason}")
    count = len(found.findings.problems)
    render.show_line("nothing is wrong" if found.whole else f"problems: {count}")


def doomed_text(snapshot_id: str, doomed: Doomed) -> str:
    """Say what a deletion will do."""
    objects = f"{len(doomed.objects):,} objects that no other snapshot needs will be deleted"
    if doomed.named is None:
        return f"snapshot {snapshot_id} is deleted already; {objects}"
    one = doomed.named.snapshot
    gallery = gallery_in(cut_of(one))[0]
    return (
        f"snapshot {snapshot_id} of gallery {gallery.name} will be lost:"
        f" {one.templates_count_max:,} templates at most; {objects}"
    )


def restored_json(done: Restored) -> render.Json:
    """Return what was restored as JSON."""
    return {
        "gallery": done.gallery.name,
        "uid": done.gallery.uid,
        "templates_count": done.templates_count,
        "erased_count": done.erased_count,
        "digest": digests.to_bytes(done.digest).hex(),
    }


def restored(done: Restored) -> None:
    """Print what was restored."""
    render.show_line(
        f"restored gallery {done.gallery.name}: {done.templates_count:,} templates;"
        f" left out, erased since the snapshot: {done.erased_count:,}"
    )
