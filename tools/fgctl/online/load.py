"""fgctl load: templates from files into a gallery, around its log."""

import asyncio
import uuid
from pathlib import Path

import click

from facegrid.api.admin.v1.admin_service_pb2 import ClusterStatusResponse as Status
from facegrid.blob.open import open_store
from facegrid.blob.port import BlobStore
from facegrid.clock import SystemClock
from facegrid.errors import ConflictError, NotFoundError
from facegrid.format.stored_gallery import stored_gallery_prefix
from facegrid.ids import ShardId, check_gallery_name
from facegrid.vectors import BITS_DEFAULT
from fgctl import render
from fgctl.bulk.cut import ChunkSource, chunk_rows
from fgctl.bulk.journal import Input, Journal, Parameters, Shard
from fgctl.bulk.load import Load, LoadPorts, Report, give_up, settle
from fgctl.bulk.publish import COMMIT_TIMEOUT_S, LoadCommitter
from fgctl.online.cluster import first_answer
from fgctl.online.input_files import InputFiles, input_options
from fgctl.online.load_sources import NpyChunks, ParquetChunks, fingerprint
from fgctl.online.sources import check_dim
from fgctl.target import Target, confirm, online

STORE_VARIABLE = "FACEGRID_STORE"


def work_folder(files: InputFiles, gallery: str) -> Path:
    """Return where the journal of such a load lies unless it is said: beside the input."""
    main = files.parquet or files.vectors
    assert main is not None, "one of them was given"
    return main.with_name(f"{main.name}.load-{gallery}")


def open_files(files: InputFiles) -> ChunkSource:
    """Open checked files; InvalidError where they cannot be read or do not fit together."""
    if files.parquet is not None:
        return ParquetChunks(files.parquet)
    vectors, subjects = files.rows_and_ids()
    return NpyChunks(vectors, subjects=subjects, templates=files.templates)


def fingerprints(files: InputFiles) -> tuple[Input, ...]:
    """Return what files are known by."""
    given = (files.vectors, files.subjects, files.templates, files.parquet)
    return tuple(fingerprint(path) for path in given if path is not None)


@click.command()
@click.option("--gallery", required=True)
@input_options
@click.option(
    "--store",
    "store_url",
    envvar=STORE_VARIABLE,
    metavar="URL",
    help=f"The object store of the nodes, as they take it; --dir knows it. Also {STORE_VARIABLE}.",
)
@click.option(
    "--work",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the journal. Default: beside the input.",
)
@click.option("--abort", is_flag=True, help="Give up the load that the work folder holds.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@online
def load(  # noqa: PLR0913 - one for each option
    target: Target,
    *,
    gallery: str,
    given: InputFiles,
    store_url: str | None,
    work: Path | None,
    abort: bool,
    yes: bool,
) -> None:
    """Load templates from files around the log, several times as fast as enrolment.

    Needs access to the object store. All rows of a shard appear at once. Killed or broken off at
    any point, the same command goes on, and loads nothing twice.
    """
    check_gallery_name(gallery)
    url = store_url or target.store
    if not url:
        raise click.UsageError(f"say where the objects are: --store URL, or set {STORE_VARIABLE}")
    files = None
    if not (abort and work is not None):
        files = given.checked("load")
    folder = work or (work_folder(files, gallery) if files else Path())
    if abort:
        confirm(
            "Give the load up? What is committed of it stays; a commit that was sent and not"
            " answered is sent again first, and may take effect.",
            yes=yes,
        )
        _abort(folder, open_store(url), target)
        return
    assert files is not None, "only giving up needs none"
    clock = SystemClock()
    started_s = clock.now_s()
    source = open_files(files)
    parameters = parameters_of(first_answer(target), gallery, source, fingerprints(files))
    with Journal(folder) as journal:
        report = asyncio.run(_load(target, open_store(url), source, parameters, journal=journal))
    _show(report, target, gallery, duration_s=clock.now_s() - started_s)


def parameters_of(
    status: Status, gallery: str, source: ChunkSource, inputs: tuple[Input, ...]
) -> Parameters:
    """Return what the load is, as a router sees the gallery now."""
    found = [one for one in status.galleries if one.name == gallery]
    shards = tuple(
        Shard(ShardId(one.id), one.first, one.last)
        for one in status.shards
        if one.gallery == gallery
    )
    if not found or not shards:
        raise NotFoundError(
            f"there is no such gallery gallery={gallery}", reason="GALLERY_UNKNOWN"
        )
    check_dim(found[0].dim, source.dim)
    return Parameters(
        gallery=gallery,
        gallery_uid=found[0].uid,
        dim=source.dim,
        rows_count=source.rows_count,
        chunk_rows=chunk_rows(source.dim, len(shards)),
        shards=shards,
        inputs=inputs,
        # A router that does not know the field says nothing.
        component_bits=found[0].component_bits or BITS_DEFAULT,
    )


async def _load(
    target: Target,
    store: BlobStore,
    source: ChunkSource,
    parameters: Parameters,
    *,
    journal: Journal,
) -> Report:
    if not await store.list(stored_gallery_prefix(parameters.gallery_uid)):
        raise ConflictError(
            "the store does not hold the gallery: it is not the one that the nodes use"
            f" gallery={parameters.gallery}",
            reason="STORE_ELSEWHERE",
            field="store",
        )
    timeout_s = target.timeout_or(COMMIT_TIMEOUT_S)
    with render.metered("storing", source.rows_count, quiet=target.as_json) as meter:
        async with LoadCommitter(target.routers, timeout_s=timeout_s) as committer:
            ports = LoadPorts(store, committer.commit, _new_load_id, meter.advance)
            return await Load(ports, journal, source).run(parameters)


def _abort(folder: Path, store: BlobStore, target: Target) -> None:
    if not folder.is_dir():
        raise NotFoundError(f"there is no work folder path={folder}", reason="WORK_UNKNOWN")
    with Journal(folder) as journal:
        if journal.progress.done:
            raise NotFoundError(
                "the load in the work folder is finished, so there is nothing to give up; remove"
                f" the folder to load other data from there path={folder}",
                reason="WORK_UNKNOWN",
            )
        if not journal.progress.load_id:
            raise NotFoundError(
                f"the work folder holds no load under way path={folder}", reason="WORK_UNKNOWN"
            )
        progress = journal.progress
        load_id = progress.load_id
        pins_count = asyncio.run(_settle_and_give_up(journal, store, target))
        rows = {
            shard_id: sum(one.rows_count for one in segments)
            for shard_id, segments in progress.segments().items()
        }
        committed = sorted(progress.committed)
        others = sorted(rows.keys() - progress.committed.keys())
    if target.as_json:
        render.show_json(
            {
                "load": load_id,
                "pins_deleted_count": pins_count,
                "shards_committed_count": len(committed),
                "committed": {shard_id: rows[shard_id] for shard_id in committed},
                "not_committed": {shard_id: rows[shard_id] for shard_id in others},
            }
        )
    else:
        render.show_line(
            f"given up: load {load_id}, {pins_count:,} segments left to be swept,"
            f" {len(committed):,} shards were committed and stay"
        )
        for what, shards in (("committed", committed), ("not committed", others)):
            for shard_id in shards:
                render.show_line(f"{what}: shard={shard_id} rows={rows[shard_id]}")


async def _settle_and_give_up(journal: Journal, store: BlobStore, target: Target) -> int:
    if journal.progress.committing:
        timeout_s = target.timeout_or(COMMIT_TIMEOUT_S)
        async with LoadCommitter(target.routers, timeout_s=timeout_s) as committer:
            await settle(journal, committer.commit)
    return await give_up(journal, store)


def _new_load_id() -> str:
    return uuid.uuid4().hex  # noqa: TID251 - the edge: ids of loads are made here


def _show(report: Report, target: Target, gallery: str, *, duration_s: float) -> None:
    per_s = report.rows_count / duration_s if duration_s > 0 else 0.0
    if target.as_json:
        render.show_json(
            {
                "gallery": gallery,
                "load": report.load_id,
                "rows_count": report.rows_count,
                "loaded_count": report.loaded_count,
                "unchanged_count": report.unchanged_count,
                "already_count": report.already_count,
                "duration_s": round(duration_s, 3),
            }
        )
    else:
        render.show_line(
            f"loaded={report.loaded_count} unchanged={report.unchanged_count}"
            f" already={report.already_count} rows={report.rows_count}"
            f" ({duration_s:.1f} s, {per_s:,.0f} rows per second)"
        )
