"""Which cluster a snapshot is made of or restored into, and the options that say so."""

import asyncio
import functools
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

import facegrid
from facegrid.api.admin.v1.admin_service_pb2 import ClusterStatusResponse as Status
from facegrid.api.shard.v1 import shard_service_pb2
from facegrid.api.shard.v1.shard_service_pb2 import ShardStatus
from facegrid.blob.open import S3_SCHEME, open_store
from facegrid.blob.port import BlobStore
from facegrid.blob.reader import BlobReader
from facegrid.blob.s3_address import parse_s3_url
from facegrid.clock import SystemClock
from facegrid.coord import keys
from facegrid.coord.port import Coordinator
from facegrid.errors import ConflictError, NotFoundError, UnavailableError
from facegrid.ids import ShardId
from facegrid.model import Gallery
from fgctl import admin, cluster_file
from fgctl.bulk.publish import LoadCommitter
from fgctl.bulk.segments import StoredSegment
from fgctl.meta.commands import ETCD_VARIABLE, coordinator
from fgctl.offline.target import open_reader
from fgctl.snapshot.repository import Tools
from fgctl.snapshot.restore import Holding
from fgctl.target import ROUTER_VARIABLE

TIMEOUT_S = 120.0
STATUS_S = 10.0
FAILED = shard_service_pb2.SHARD_STATE_FAILED


@dataclass(frozen=True, slots=True)
class ClusterAddress:
    """Where a cluster's parts are. `routers` is empty where nobody asked for any."""

    etcd: str
    etcd_prefix: str
    store: str
    routers: tuple[str, ...] = ()


def tools() -> Tools:
    """Return clock and chance of the real world."""
    return Tools(
        SystemClock(),
        lambda: uuid.uuid4().hex[:8],  # noqa: TID251 - the edge where randomness enters
    )


def repository_url(text: str) -> str:
    """Return the URL of the repository at PATH, dir:PATH or s3://BUCKET/PREFIX."""
    return text if ":" in text else f"dir:{text}"


def repository_reader(text: str) -> BlobReader:
    """Return a reader of the repository at PATH, dir:PATH or s3://BUCKET/PREFIX.

    Raises:
        NotFoundError: there is no such folder (REPOSITORY_UNKNOWN); none is made.
        InvalidError, UnavailableError: as for `open_reader`.
    """
    url = repository_url(text)
    folder = url.removeprefix("dir:")
    if folder and folder != url and not Path(folder).exists():
        raise NotFoundError(
            f"there is no such repository path={folder}", reason="REPOSITORY_UNKNOWN"
        )
    return open_reader(url)


def refuse_store(repo: str, store: str) -> None:
    """Refuse a repository that is a cluster's own store, or lies in it.

    Raises:
        ConflictError: it is so (REPOSITORY_IS_STORE).
    """
    place, outer = _place(repository_url(repo)), _place(repository_url(store))
    if place[: len(outer)] == outer:
        raise ConflictError(
            "the repository lies in the cluster's own store, with which its snapshots would be"
            f" lost: name another place repo={repo}",
            reason="REPOSITORY_IS_STORE",
        )


def _place(url: str) -> tuple[str, ...]:
    """Return where a store is, from the outermost part inwards."""
    if url.startswith(S3_SCHEME):
        address = parse_s3_url(url)
        endpoint = address.endpoint.rstrip("/").lower()
        return (S3_SCHEME, endpoint, address.bucket, *filter(None, address.prefix.split("/")))
    return Path(url.removeprefix("dir:")).resolve().parts


def cluster_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options of commands that need a cluster's etcd and store; they get an address."""

    @click.option(
        "--dir",
        "directory",
        type=click.Path(file_okay=False, path_type=Path),
        help="Folder of a local cluster, instead of the other addresses.",
    )
    @click.option(
        "--etcd",
        default="",
        envvar=ETCD_VARIABLE,
        metavar="HOST:PORT[,...]",
        help=f"The members of the cluster's etcd. Also {ETCD_VARIABLE}.",
    )
    @click.option(
        "--etcd-prefix", default="facegrid/", show_default=True, help="Root of the cluster's keys."
    )
    @click.option(
        "--store", default="", metavar="URL", help="The cluster's object store, as nodes take it."
    )
    @functools.wraps(command)
    def with_cluster(
        directory: Path | None, etcd: str, etcd_prefix: str, store: str, **rest: Any
    ) -> None:
        address = ClusterAddress(etcd, etcd_prefix, store)
        if directory is not None:
            address = local_address(directory)
        if not address.etcd or not address.store:
            raise click.UsageError("say which cluster: --dir DIR, or --etcd and --store")
        command(address, **rest)

    return with_cluster


def router_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add --router to `cluster_options`, which must stand above this."""

    @click.option(
        "--router",
        "routers",
        multiple=True,
        envvar=ROUTER_VARIABLE,
        metavar="HOST:PORT",
        help=f"A router of the cluster; may be given several times. Also {ROUTER_VARIABLE}.",
    )
    @functools.wraps(command)
    def with_routers(address: ClusterAddress, routers: Sequence[str], **rest: Any) -> None:
        named = tuple(one.strip() for text in routers for one in text.split(",") if one.strip())
        # A folder names its own; they are more specific than a variable of the environment.
        address = address if address.routers else _with(address, named)
        if not address.routers:
            raise click.UsageError(f"say which router: --router, --dir, or {ROUTER_VARIABLE}")
        command(address, **rest)

    return with_routers


def _with(address: ClusterAddress, routers: tuple[str, ...]) -> ClusterAddress:
    return ClusterAddress(address.etcd, address.etcd_prefix, address.store, routers)


def local_address(directory: Path) -> ClusterAddress:
    """Return where the parts of a local cluster are.

    Raises:
        NotFoundError: no cluster was started there.
    """
    cluster = cluster_file.load(directory)
    etcd = ",".join(member.address for member in cluster.of_kind("etcd"))
    store = cluster.store_in(directory.resolve())
    return ClusterAddress(etcd, "facegrid/", store, cluster.router_targets)


class RouterCluster:
    """A cluster as `fgctl.snapshot.restore` wants it: through routers, etcd and the store."""

    def __init__(
        self,
        coord: Coordinator,
        store: BlobStore,
        routers: tuple[str, ...],
        *,
        client: facegrid.AsyncClient,
        loads: LoadCommitter,
    ) -> None:
        self.coord = coord
        self.store = store
        self._routers = routers
        self._client = client
        self._loads = loads

    async def create_gallery(self, like: Gallery) -> None:
        """See Cluster.

        Raises:
            UnavailableError: fewer nodes are registered than it wants replicas (TOO_FEW_NODES).
        """
        await check_nodes(self.coord, like)
        await self._client.create_gallery(
            like.name,
            dim=like.dim,
            extractor=like.extractor,
            shards=like.shards_count,
            replicas=like.replicas_count,
            train_at=like.train_at_templates_count,
            profile=like.profile,
            miss_rate_max=like.miss_rate_max,
            component_bits=like.component_bits,
        )

    async def commit(self, gallery: str, load_id: str, segments: Sequence[StoredSegment]) -> None:
        """See Cluster."""
        await self._loads.commit(gallery, load_id, segments)

    async def erase(
        self, gallery: str, subject_ids: Sequence[str], template_ids: Sequence[str]
    ) -> None:
        """See Cluster."""
        await self._client.erase(gallery, subject_ids=subject_ids, template_ids=template_ids)

    async def holdings(self, gallery: str) -> list[Holding]:
        """See Cluster.

        Raises:
            UnavailableError: a shard does not serve, or nobody tells (SHARD_NOT_SERVING).
        """
        answer, reports = await self._reports()
        found: list[Holding] = []
        for shard in answer.shards:
            if shard.gallery != gallery:
                continue
            report = reports.get((shard.node_ids[0], shard.id))
            if report is None or report.state != shard_service_pb2.SHARD_STATE_SERVING:
                problem = "it does not answer" if report is None else report.problem
                raise UnavailableError(
                    f"a shard does not serve: {problem} shard={shard.id}",
                    reason="SHARD_NOT_SERVING",
                    shard=shard.id,
                )
            digest = int.from_bytes(bytes.fromhex(report.digest), "little")
            found.append(
                Holding(ShardId(shard.id), report.codebook, report.templates_count, digest)
            )
        return found

    async def level(self, gallery: str) -> bool:
        """See Cluster."""
        answer, reports = await self._reports()
        return all(
            report is None or report.state == FAILED or report.digest == first.digest
            for shard in answer.shards
            if shard.gallery == gallery
            for first in [reports.get((shard.node_ids[0], shard.id))]
            if first is not None
            for report in (reports.get((node_id, shard.id)) for node_id in shard.node_ids)
        )

    async def _reports(self) -> tuple[Status, dict[tuple[str, str], ShardStatus]]:
        """Ask a router what every node says of every shard."""
        answer = await asyncio.to_thread(
            admin.cluster_status, self._routers[0], timeout_s=STATUS_S
        )
        return answer, {
            (node.id, shard.shard_id): shard for node in answer.nodes for shard in node.shards
        }


async def check_nodes(coord: Coordinator, like: Gallery) -> None:
    """Refuse at once a gallery for which there are too few nodes: a client would go on asking.

    Raises:
        UnavailableError: fewer nodes are registered than it wants replicas (TOO_FEW_NODES).
    """
    items = (await coord.list(keys.NODES)).items
    nodes = {keys.name_of(item.key, keys.NODES).partition("/")[0] for item in items}
    if len(nodes) < like.replicas_count:
        raise UnavailableError(
            "too few live nodes for that many replicas"
            f" nodes={len(nodes)} replicas={like.replicas_count}",
            reason="TOO_FEW_NODES",
            gallery=like.name,
            limit=len(nodes),
        )


@asynccontextmanager
async def connected(address: ClusterAddress) -> AsyncIterator[RouterCluster]:
    """Connect to a cluster."""
    store = open_store(address.store)
    async with AsyncExitStack() as stack:
        coord = await stack.enter_async_context(coordinator(address.etcd, address.etcd_prefix))
        client = await stack.enter_async_context(
            facegrid.AsyncClient(list(address.routers), timeout_s=TIMEOUT_S)
        )
        loads = await stack.enter_async_context(LoadCommitter(address.routers))
        yield RouterCluster(coord, store, address.routers, client=client, loads=loads)
