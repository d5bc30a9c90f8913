"""fgctl meta: save what etcd holds, and recover it after etcd was lost or set back."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import click

from facegrid.blob.reader import BlobReader
from facegrid.clock import SystemClock
from facegrid.coord.etcd import EtcdCoordinator
from fgctl import meta_file, render
from fgctl.meta import recovery
from fgctl.offline.target import store_argument
from fgctl.offline.verify import survey
from fgctl.target import confirm, json_option

ETCD_VARIABLE = "FACEGRID_ETCD"
EXIT_INCOMPLETE = 1
LEASES_S = 30.0
"""How long to wait for nodes to be no longer registered: three times the usual lease."""
POLL_S = 0.5


@click.group()
def meta() -> None:
    """Save what etcd holds, or write it anew from the store."""


def etcd_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add --etcd and --etcd-prefix."""
    command = click.option(
        "--etcd-prefix",
        default="facegrid/",
        show_default=True,
        help="Root of the cluster's keys.",
    )(command)
    return click.option(
        "--etcd",
        required=True,
        envvar=ETCD_VARIABLE,
        metavar="HOST:PORT[,...]",
        help=f"The members of etcd. Also {ETCD_VARIABLE}.",
    )(command)


@asynccontextmanager
async def coordinator(etcd: str, prefix: str) -> AsyncIterator[EtcdCoordinator]:
    """Connect to etcd; UnavailableError where nobody answers."""
    endpoints = [one.strip() for one in etcd.split(",") if one.strip()]
    coord = EtcdCoordinator(endpoints, root=prefix, clock=SystemClock())
    try:
        await coord.check()
        yield coord
    finally:
        await coord.aclose()


@meta.command("save")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@etcd_options
@json_option
def save_command(*, file: Path, etcd: str, etcd_prefix: str, as_json: bool) -> None:
    """Write what etcd holds into FILE: galleries, maps, generations, tips, manifest pointers.

    Save regularly, and after every change of galleries. The file helps `fgctl offline verify` to
    see what is missing, and `fgctl meta recover` to know galleries that etcd has forgotten.
    """
    saved = asyncio.run(_save(etcd, etcd_prefix))
    meta_file.save(file, saved)
    if as_json:
        render.show_json(
            {
                "revision": saved.revision,
                "keys_count": len(saved.values),
                "galleries": sorted(saved.galleries),
            }
        )
    else:
        render.show_line(f"saved {len(saved.values):,} keys as of revision {saved.revision:,}")


async def _save(etcd: str, prefix: str) -> meta_file.Meta:
    async with coordinator(etcd, prefix) as coord:
        return (await recovery.read_current(coord, unix_ms=SystemClock().unix_ms())).meta


@meta.command("recover")
@store_argument
@etcd_options
@click.option(
    "--meta",
    "meta_path",
    type=click.Path(dir_okay=False, path_type=Path),
    help="What fgctl meta save wrote: tells what the store must have at least.",
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def recover_command(
    reader: BlobReader,
    *,
    etcd: str,
    etcd_prefix: str,
    meta_path: Path | None,
    yes: bool,
    as_json: bool,
) -> None:
    """Write etcd's records anew from STORE, after etcd was wiped or restored from a backup.

    Stop all nodes first. The store is read and checked as a whole; a gallery with a damaged or
    missing object is named and left alone. Ends with 1 if anything could not be recovered.
    """
    saved = None if meta_path is None else meta_file.load(meta_path)
    planned = asyncio.run(_plan(reader, saved, etcd, etcd_prefix, quiet=as_json))
    if not as_json:
        show_plan(planned)
    if any(one.changes and not one.problems for one in planned.galleries):
        confirm("Write these records into etcd?", yes=yes)
        asyncio.run(_apply(planned, etcd, etcd_prefix))
    if as_json:
        render.show_json(plan_json(planned))
    if not planned.complete:
        click.get_current_context().exit(EXIT_INCOMPLETE)


async def _plan(
    reader: BlobReader, saved: meta_file.Meta | None, etcd: str, prefix: str, *, quiet: bool
) -> recovery.Plan:
    async with coordinator(etcd, prefix) as coord:
        with render.waiting("waiting until no node is registered", quiet=quiet):
            current = await _without_nodes(coord)
    count = len((await survey(reader)).names)
    boot_id = uuid.uuid4().hex  # noqa: TID251 - the edge where randomness enters the command
    with render.metered("objects checked", count, quiet=quiet) as meter:
        return await recovery.plan(
            current, reader, saved, boot_id=boot_id, on_read=lambda: meter.advance(1)
        )


async def _without_nodes(coord: EtcdCoordinator) -> recovery.Current:
    """Return what etcd holds once the leases of stopped nodes have ended, or after LEASES_S."""
    clock = SystemClock()
    end_s = clock.now_s() + LEASES_S
    while True:
        current = await recovery.read_current(coord, unix_ms=clock.unix_ms())
        if not current.nodes or clock.now_s() > end_s:
            return current
        await clock.sleep(POLL_S)


async def _apply(planned: recovery.Plan, etcd: str, prefix: str) -> None:
    async with coordinator(etcd, prefix) as coord:
        await recovery.apply(coord, planned)


_COLUMNS = ("shard", "what", "gen", "log up to", "manifest at")


def show_plan(planned: recovery.Plan) -> None:
    """Print what will be written, and what cannot be."""
    rows = []
    for one in planned.galleries:
        for shard in one.shards:
            what = "left alone" if one.problems else "write" if shard.puts else "is right"
            position = 0 if shard.tip is None else shard.tip.last_position
            covered = 0 if shard.pointer is None else shard.pointer.position
            rows.append((shard.shard_id, what, shard.claim.generation, position, covered))
    render.show_table("records", _COLUMNS, rows)
    for one in planned.galleries:
        for problem in one.problems:
            render.show_line(f"problem: {problem.name}: {problem.problem} reason={problem.reason}")
        for shard in one.leftovers if not one.problems else ():
            render.show_line(f"left by a change of shape, will be deleted: {shard.shard_id}")
        for operation in one.given_up if not one.problems else ():
            render.show_line(f"operation is given up, begin it anew: {operation.operation_id}")
        if one.puts and not one.problems:
            render.show_line(f"gallery and map are written anew: {one.gallery.name}")
    for shard_id in planned.homeless:
        render.show_line(f"cannot be recovered, no map names it (try --meta): {shard_id}")


def plan_json(planned: recovery.Plan) -> render.Json:
    """Return a plan as JSON."""
    return {
        "complete": planned.complete,
        "homeless": list(planned.homeless),
        "galleries": [
            {
                "gallery": one.gallery.name,
                "recovered": not one.problems,
                "record_written": bool(one.puts) and not one.problems,
                "problems": [
                    {"name": bad.name, "reason": bad.reason, "problem": bad.problem}
                    for bad in one.problems
                ],
                "shards": [
                    {
                        "shard": shard.shard_id,
                        "written": bool(shard.puts) and not one.problems,
                        "generation": shard.claim.generation,
                        "position": 0 if shard.tip is None else shard.tip.last_position,
                        "manifest": "" if shard.pointer is None else shard.pointer.sha256,
                    }
                    for shard in one.shards
                ],
                "leftovers": [shard.shard_id for shard in one.leftovers],
                "operations_given_up": [gone.operation_id for gone in one.given_up],
            }
            for one in planned.galleries
        ],
    }
