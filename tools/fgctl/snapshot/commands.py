"""fgctl snapshot: create, list, verify, restore, delete, forget."""

import asyncio
from collections.abc import Sequence

import click

from facegrid import limits
from facegrid.blob.open import open_store
from facegrid.blob.reader import BlobReader
from facegrid.clock import SystemClock
from facegrid.errors import NotFoundError
from facegrid.ids import check_gallery_name
from fgctl import render
from fgctl.meta.commands import coordinator
from fgctl.offline.target import open_reader
from fgctl.snapshot import check, create, delete, erased, forget, repository, show
from fgctl.snapshot.cut import read_cut
from fgctl.snapshot.repository import Descriptors
from fgctl.snapshot.restore import Restore, Restored, Wanted
from fgctl.snapshot.target import (
    ClusterAddress,
    cluster_options,
    connected,
    refuse_store,
    repository_reader,
    repository_url,
    router_options,
    tools,
)
from fgctl.target import confirm, json_option

EXIT_DAMAGED = 1

others_ended_option = click.option(
    "--others-ended",
    is_flag=True,
    help="No other create or delete runs in REPO: remove the marks that they left.",
)


@click.group()
def snapshot() -> None:
    """Back up galleries, and restore them without what was erased since.

    REPO is where snapshots are kept: PATH, dir:PATH or s3://BUCKET/PREFIX, best elsewhere than the
    cluster's own store.
    """


@snapshot.command("create")
@click.argument("gallery")
@click.argument("repo")
@others_ended_option
@cluster_options
@json_option
def create_command(
    address: ClusterAddress, *, gallery: str, repo: str, others_ended: bool, as_json: bool
) -> None:
    """Make a snapshot of GALLERY in REPO, as everything acknowledged stands now.

    The cluster goes on meanwhile. What an earlier snapshot in REPO has is not copied again.
    """
    check_gallery_name(gallery)
    made = asyncio.run(_create(address, gallery, repo, others_ended=others_ended, quiet=as_json))
    if as_json:
        render.show_json(show.created_json(made))
    else:
        show.created(made)


async def _create(
    address: ClusterAddress, gallery: str, repo: str, *, others_ended: bool, quiet: bool
) -> create.Created:
    refuse_store(repo, address.store)
    async with coordinator(address.etcd, address.etcd_prefix) as coord:
        source = create.Source(coord, open_reader(address.store))
        # Read for its refusal alone: opening a repository makes its folder.
        await read_cut(coord, gallery, unix_ms=SystemClock().unix_ms())
        store = open_store(repository_url(repo))
        with render.waiting(f"copying {gallery}", quiet=quiet):
            return await create.create(
                source, store, gallery, tools=tools(), others_ended=others_ended
            )


@snapshot.command("list")
@click.argument("repo")
@click.option("--gallery", default="", metavar="NAME", help="Only snapshots of this gallery.")
@json_option
def list_command(*, repo: str, gallery: str, as_json: bool) -> None:
    """List the snapshots in REPO, oldest first."""
    found = asyncio.run(_descriptors(repository_reader(repo)))
    if as_json:
        render.show_json(show.list_json(found, gallery))
    else:
        show.listed(found, gallery)
    if found.damaged:
        click.get_current_context().exit(EXIT_DAMAGED)


async def _descriptors(reader: BlobReader) -> Descriptors:
    return await repository.descriptors(reader)


@snapshot.command("verify")
@click.argument("repo")
@click.argument("snapshot_id", metavar="[ID]", required=False, default="")
@json_option
def verify_command(*, repo: str, snapshot_id: str, as_json: bool) -> None:
    """Check every byte of REPO, or of the snapshot ID: hashes, logs, digests of rows, journals.

    Names everything that is damaged, missing or in another's place, and ends with 1 if there is
    such, or no snapshot at all. Nothing is changed.
    """
    report = asyncio.run(_verify(repository_reader(repo), snapshot_id, quiet=as_json))
    if report.whole and not report.snapshots:
        raise NotFoundError(
            f"there is nothing to check: no snapshot was found repo={repo}",
            reason="REPOSITORY_EMPTY",
        )
    if as_json:
        render.show_json(show.report_json(report))
    else:
        show.report(report)
    if not report.whole:
        click.get_current_context().exit(EXIT_DAMAGED)


async def _verify(reader: BlobReader, wanted: str, *, quiet: bool) -> check.RepositoryReport:
    count = len(await reader.list(""))
    with render.metered("objects checked", count, quiet=quiet) as meter:
        return await check.check(reader, wanted=wanted, on_read=lambda: meter.advance(1))


@snapshot.command("delete")
@click.argument("repo")
@click.argument("snapshot_id", metavar="ID")
@click.option("--yes", is_flag=True, help="Do not ask.")
@others_ended_option
@json_option
def delete_command(
    *, repo: str, snapshot_id: str, yes: bool, others_ended: bool, as_json: bool
) -> None:
    """Delete the snapshot ID from REPO, and what no other snapshot needs.

    This cannot be undone. A deletion that was broken off is finished by repeating it.
    """
    url = repository_url(repo)
    planned = asyncio.run(delete.plan(repository_reader(repo), snapshot_id))
    render.show_note(show.doomed_text(snapshot_id, planned))
    confirm("Delete it?", yes=yes)
    done = asyncio.run(_delete(url, snapshot_id, others_ended=others_ended))
    if as_json:
        render.show_json({"deleted": snapshot_id, "objects_count": len(done.objects)})
    else:
        render.show_line(f"deleted {snapshot_id} and {len(done.objects):,} objects")


async def _delete(url: str, snapshot_id: str, *, others_ended: bool) -> delete.Doomed:
    return await delete.delete(
        open_store(url), snapshot_id, tools=tools(), others_ended=others_ended
    )


@snapshot.command("forget")
@click.argument("uid")
@click.option("--yes", is_flag=True, help="Do not ask.")
@cluster_options
@json_option
def forget_command(address: ClusterAddress, *, uid: str, yes: bool, as_json: bool) -> None:
    """Delete the erasure journal of the dropped gallery with this UID.

    Do so only when no snapshot of it is kept: restored later, it would bring back who was erased.
    """
    count = asyncio.run(_forget(address, uid, really=False))
    render.show_note(
        f"what was erased of gallery {uid} will be forgotten: {count:,} objects of its journal;"
        " snapshots of it bring back who was erased since they were made"
    )
    confirm("Forget it?", yes=yes)
    count = asyncio.run(_forget(address, uid, really=True))
    if as_json:
        render.show_json({"forgotten": uid, "objects_count": count})
    else:
        render.show_line(f"deleted {count:,} objects")


async def _forget(address: ClusterAddress, uid: str, *, really: bool) -> int:
    store = open_store(address.store)
    async with coordinator(address.etcd, address.etcd_prefix) as coord:
        if really:
            return await forget.forget(coord, store, uid)
        return len(await forget.plan(coord, store, uid))


@snapshot.command("restore")
@click.argument("repo")
@click.argument("snapshot_id", metavar="ID")
@click.option("--gallery", required=True, metavar="NAME", help="Name of the new gallery.")
@click.option(
    "--shards", type=click.IntRange(1, limits.SHARDS_MAX), help="Default: as in the snapshot."
)
@click.option(
    "--replicas", type=click.IntRange(1, limits.REPLICAS_MAX), help="Default: as in the snapshot."
)
@click.option(
    "--erasures",
    "stores",
    multiple=True,
    metavar="STORE",
    help="The store that the gallery was in, where that is not this cluster's.",
)
@click.option(
    "--accept-lost-erasures",
    is_flag=True,
    help="Restore though nobody knows what was erased after the last snapshot: it comes back.",
)
@click.option("--resume", is_flag=True, help="Go on with a restore that was broken off.")
@cluster_options
@router_options
@json_option
def restore_command(  # noqa: PLR0913 - one for each option
    address: ClusterAddress,
    *,
    repo: str,
    snapshot_id: str,
    gallery: str,
    shards: int | None,
    replicas: int | None,
    stores: Sequence[str],
    accept_lost_erasures: bool,
    resume: bool,
    as_json: bool,
) -> None:
    """Restore the snapshot ID of REPO as a new gallery, into the same or another cluster.

    What was erased after the snapshot is left out. That is read from this cluster, if the gallery
    is or was in it, from the stores given with --erasures, and from later snapshots in REPO; if
    neither cluster nor store knows the gallery, the restore is refused.
    """
    check_gallery_name(gallery)
    wanted = Wanted(gallery, shards, replicas, resume)
    sources = [open_reader(store) for store in stores]
    restored = asyncio.run(
        _restore(
            address,
            (repository_reader(repo), snapshot_id),
            wanted,
            sources=sources,
            accept_lost=accept_lost_erasures,
            quiet=as_json,
        )
    )
    if as_json:
        render.show_json(show.restored_json(restored))
    else:
        show.restored(restored)


async def _restore(
    address: ClusterAddress,
    named: tuple[BlobReader, str],
    wanted: Wanted,
    *,
    sources: Sequence[BlobReader],
    accept_lost: bool,
    quiet: bool,
) -> Restored:
    repo, snapshot_id = named
    held = (await repository.find(repo, snapshot_id)).snapshot
    async with connected(address) as cluster:
        asked: list[erased.ErasureSource] = [
            erased.ClusterSource(cluster.coord, cluster.store),
            *(erased.StoreSource(one) for one in sources),
        ]

        async def gather() -> erased.Erasures:
            return await erased.gather(held, repo, asked, accept_lost=accept_lost)

        restore = Restore(repo, held, cluster, wanted=wanted, gather=gather, clock=SystemClock())
        count = held.templates_count_max
        with render.metered("templates read", count, quiet=quiet) as meter:
            restore.on_rows = meter.advance
            return await restore.run()
