"""fgctl offline: look into a store, and check it, without a cluster. Nothing is written."""

import asyncio
from pathlib import Path

import click

from facegrid.blob.reader import BlobReader
from facegrid.errors import NotFoundError
from facegrid.format.inventory import ShardNames, gallery_of, take_inventory
from facegrid.ids import ShardId
from fgctl import meta_file, render
from fgctl.offline import logs, manifests, objects
from fgctl.offline.target import ids_option, store_argument
from fgctl.offline.verify import Scope, StoreReport, survey, verify
from fgctl.target import json_option

EXIT_DAMAGED = 1


@click.group()
def offline() -> None:
    """Read a store without a cluster. Nothing in it is changed.

    STORE is PATH, dir:PATH or s3://BUCKET/PREFIX, as nodes take it.
    """


@offline.command("manifest")
@store_argument
@click.option("--gallery", default="", metavar="NAME", help="Only the shards of this gallery.")
@click.option("--shard", default="", metavar="SHARD", help="Only this shard.")
@json_option
def manifest_command(reader: BlobReader, *, gallery: str, shard: str, as_json: bool) -> None:
    """List shards with their newest manifests."""
    shown = asyncio.run(_manifests(reader, gallery, shard))
    if as_json:
        render.show_json(manifests.as_json(shown))
    else:
        manifests.show(shown)


async def _manifests(reader: BlobReader, gallery: str, shard: str) -> list[manifests.ShownShard]:
    inventory = take_inventory(await reader.list(""))
    wanted = [
        (shard_id, names)
        for shard_id, names in sorted(inventory.shards.items())
        if shard in ("", shard_id) and gallery in ("", gallery_of(shard_id)[0])
    ]
    if not wanted and (gallery or shard):
        raise _unknown(shard or gallery)
    return [await manifests.shown(shard_id, reader, names) for shard_id, names in wanted]


@offline.command("log")
@store_argument
@click.option("--shard", required=True, metavar="SHARD", help="Whose log, as manifest lists it.")
@ids_option
@json_option
def log_command(reader: BlobReader, *, shard: str, with_ids: bool, as_json: bool) -> None:
    """List the records of a shard's log, in order; then objects that are not in it."""
    shown = asyncio.run(_log(reader, shard))
    if as_json:
        render.show_json(logs.as_json(shown, with_ids=with_ids))
    else:
        logs.show(shown, with_ids=with_ids)


async def _log(reader: BlobReader, shard: str) -> list[logs.ShownObject]:
    return await logs.walk(reader, shard, await _shard_names(reader, shard))


async def _shard_names(reader: BlobReader, shard: str) -> ShardNames:
    names = take_inventory(await reader.list("")).shards.get(ShardId(shard))
    if names is None:
        raise _unknown(shard)
    return names


@offline.command("segment")
@store_argument
@click.argument("name")
@ids_option
@json_option
def segment_command(reader: BlobReader, *, name: str, with_ids: bool, as_json: bool) -> None:
    """Describe the segment shards/SHARD/segments/SHA256."""
    data = asyncio.run(objects.segment_bytes(reader, name))
    if as_json:
        render.show_json(objects.segment_json(data, with_ids=with_ids))
    else:
        objects.show_segment(data, with_ids=with_ids)


@offline.command("codebook")
@store_argument
@click.argument("name")
@json_option
def codebook_command(reader: BlobReader, *, name: str, as_json: bool) -> None:
    """Describe the codebook codebooks/UID/SHA256."""
    held = asyncio.run(objects.codebook(reader, name))
    if as_json:
        render.show_json(objects.codebook_json(held))
    else:
        objects.show_codebook(held)


@offline.command("verify")
@store_argument
@click.option("--shard", default="", metavar="SHARD", help="Only this shard.")
@click.option(
    "--meta",
    "meta_path",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Records of etcd, from fgctl meta save: finds what is missing at the end of a log too.",
)
@json_option
def verify_command(
    reader: BlobReader, *, shard: str, meta_path: Path | None, as_json: bool
) -> None:
    """Check every byte: names, checksums, logs, manifests, segments, codebooks.

    Names everything that is damaged, missing or in another's place, and ends with 1 if there is
    such, or no gallery at all. The last object of a log, to which nothing in the store refers,
    is missed only if --meta knows of it. Nobody may write or sweep meanwhile: check a copy, or a
    stopped cluster.
    """
    meta = None if meta_path is None else meta_file.load(meta_path)
    scope = Scope(ShardId(shard) if shard else None, meta, records=True)
    report = asyncio.run(_verify(reader, scope, quiet=as_json))
    if as_json:
        render.show_json(report_json(report))
    else:
        _show_report(report)
    if not report.whole:
        click.get_current_context().exit(EXIT_DAMAGED)


async def _verify(reader: BlobReader, scope: Scope, *, quiet: bool) -> StoreReport:
    store = await survey(reader)
    count = store.work(scope)
    with render.metered("objects checked", count, quiet=quiet) as meter:
        report = await verify(store, scope, on_read=lambda: meter.advance(1))
    if report.whole and not count:
        raise NotFoundError(
            "there is nothing to check: no gallery was found in the store", reason="STORE_EMPTY"
        )
    return report


def report_json(report: StoreReport) -> render.Json:
    """Return the findings of a check as JSON."""
    return {
        "ok": report.whole,
        "problems": [
            {"name": one.name, "reason": one.reason, "problem": one.problem}
            for one in report.findings.problems
        ],
        "unneeded": [{"name": one.name, "why": one.why} for one in report.findings.notes],
        "strangers": list(report.strangers),
        "codebooks_count": report.codebooks_count,
        "shards": [
            {
                "shard": one.shard_id,
                "ok": one.whole,
                "manifest": one.manifest,
                "generation": one.generation,
                "position": one.position,
                "templates_count": one.templates_count,
                "digest": one.digest,
                "segments_count": one.segments_count,
                "log_objects_count": one.log_objects_count,
            }
            for one in report.shards
        ],
    }


_SHARD_COLUMNS = (
    "shard", "ok", "gen", "position", "templates", "segments", "log objects", "digest",
)  # fmt: skip


def _show_report(report: StoreReport) -> None:
    shards = [
        (
            one.shard_id,
            one.whole,
            one.generation,
            one.position,
            one.templates_count,
            one.segments_count,
            one.log_objects_count,
            one.digest,
        )
        for one in report.shards
    ]
    render.show_table("shards", _SHARD_COLUMNS, shards)
    for note in report.findings.notes:
        render.show_line(f"unneeded: {note.name}: {note.why}")
    for path in report.strangers:
        render.show_line(f"no object: {path}")
    for problem in report.findings.problems:
        render.show_line(f"problem: {problem.name}: {problem.problem} reason={problem.reason}")
    count = len(report.findings.problems)
    render.show_line("nothing is wrong" if report.whole else f"problems: {count}")


def _unknown(what: str) -> NotFoundError:
    return NotFoundError(f"the store has nothing of {what}", reason="SHARD_UNKNOWN")
