"""fgctl refuses at once, with a reason, what cannot be done, and leaves no folder behind."""

import asyncio
import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import grpc.aio
import pytest

import facegrid
from facegrid.api.admin.v1 import admin_service_pb2, admin_service_pb2_grpc
from facegrid.blob.directory import DirectoryStore
from facegrid.clock import SystemClock
from facegrid.coord import keys
from facegrid.coord.port import Put
from facegrid.errors import ConflictError, UnavailableError
from facegrid.format.records import encode_node
from facegrid.ids import GalleryName, NodeId
from facegrid.model import NodeInfo
from facegrid.testing.fake_router import FakeRouter
from facegrid.testing.memory_blob import MemoryBlobStore
from facegrid.testing.memory_coord import MemoryCoordinator
from fgctl.__main__ import run
from fgctl.bulk.publish import LoadCommitter
from fgctl.snapshot.target import RouterCluster, refuse_store
from fgctl.target import Declined, confirm
from tests.conftest import EtcdRoot
from tests.fakes.small_store import small_store

Status = admin_service_pb2.ClusterStatusResponse


async def test_a_restore_with_more_replicas_than_nodes_is_refused_before_any_router_is_asked() -> (
    None
):
    """A node that was started twice is one node."""
    coord = MemoryCoordinator(SystemClock())
    node_id = NodeId("n1")
    for boot in ("b1", "b2"):
        value = encode_node(NodeInfo(node_id, boot, "127.0.0.1:1"))
        await coord.txn([], [Put(keys.node(node_id, boot), value)])
    like = replace(small_store().meta.galleries[GalleryName("g")], codebook="", replicas_count=2)
    async with (
        FakeRouter() as router,
        facegrid.AsyncClient([router.address]) as client,
        LoadCommitter((router.address,)) as loads,
    ):
        cluster = RouterCluster(
            coord, MemoryBlobStore(), (router.address,), client=client, loads=loads
        )
        with pytest.raises(UnavailableError) as told:
            await cluster.create_gallery(like)
        assert (told.value.reason, told.value.facts["limit"]) == ("TOO_FEW_NODES", "1")
        assert await client.list_galleries() == []
        await cluster.create_gallery(replace(like, replicas_count=1))
        assert [one.name for one in await client.list_galleries()] == ["g"]


@pytest.mark.parametrize("command", ["list", "verify", "delete", "restore"])
def test_a_repository_that_is_not_there_is_named_and_not_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    repo = tmp_path / "x" / "norepo"
    more = {
        "delete": ["20261125T150312Z-00000000", "--yes"],
        "restore": [
            "20261125T150312Z-00000000", "--gallery", "new", "--etcd", "127.0.0.1:1",
            "--store", str(tmp_path), "--router", "127.0.0.1:1",
        ],
    }  # fmt: skip
    for place in (str(repo), f"dir:{repo}"):
        assert run(["snapshot", command, place, *more.get(command, [])]) == 1
        assert "reason=REPOSITORY_UNKNOWN" in capsys.readouterr().err
    assert not repo.parent.exists()


def test_a_deletion_that_is_refused_leaves_an_empty_folder_empty(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["snapshot", "delete", str(tmp_path), "20261125T150312Z-00000000", "--yes"]) == 1
    assert "reason=SNAPSHOT_UNKNOWN" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


async def test_a_create_that_is_refused_makes_no_folder(
    etcd: EtcdRoot, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, repo = tmp_path / "store", tmp_path / "repo"
    DirectoryStore(store)
    where = ["--etcd", etcd.endpoint, "--etcd-prefix", etcd.root, "--store", f"dir:{store}"]

    for place, reason in ((repo, "GALLERY_UNKNOWN"), (store, "REPOSITORY_IS_STORE")):
        code = await asyncio.to_thread(run, ["snapshot", "create", "nope", str(place), *where])
        assert code == 1
        assert f"reason={reason}" in capsys.readouterr().err
    assert not repo.exists()


@pytest.mark.parametrize(
    ("repo", "store", "refused"),
    [
        ("/a/store", "dir:/a/store", True),
        ("dir:/a/b/../store/", "/a/store", True),
        ("/a/store/backup", "dir:/a/store", True),
        ("/a/store2", "dir:/a/store", False),
        ("/a", "dir:/a/store", False),
        ("s3://live/x", "s3://live/x/?region=eu-1", True),
        ("s3://live/x/backup", "s3://live/x", True),
        ("s3://live/xy", "s3://live/x", False),
        ("s3://live/x?endpoint=https://one:1", "s3://live/x?endpoint=https://two:1", False),
        ("s3://live/x", "dir:/live/x", False),
    ],
)
def test_a_repository_is_never_the_store_itself(repo: str, store: str, *, refused: bool) -> None:
    if not refused:
        refuse_store(repo, store)
        return
    with pytest.raises(ConflictError) as told:
        refuse_store(repo, store)
    assert told.value.reason == "REPOSITORY_IS_STORE"


def test_a_link_to_the_store_is_the_store(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "store")
    with pytest.raises(ConflictError):
        refuse_store(str(tmp_path / "link"), f"dir:{tmp_path / 'store'}")


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_a_check_that_finds_nothing_to_check_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], form: tuple[str, ...]
) -> None:
    """1 an empty folder; 2 one of somebody else."""
    for content in (None, b"letter"):
        if content is not None:
            (tmp_path / "dear.txt").write_bytes(content)
        for command, reason in (("snapshot", "REPOSITORY_EMPTY"), ("offline", "STORE_EMPTY")):
            assert run([command, "verify", str(tmp_path), *form]) == 1
            shown = capsys.readouterr()
            assert "nothing is wrong" not in shown.out
            assert "there is nothing to check" in shown.err
            assert f"reason={reason}" in shown.err


class Admin(admin_service_pb2_grpc.AdminServiceServicer):
    """Knows n1, the primary of a shard; n2, its follower; n3, which is only registered."""

    async def ClusterStatus(self, *_: object) -> Status:
        """Answer always the same."""
        shard = Status.Shard(id="g.0", gallery="g", last=2**64 - 1, node_ids=["n1", "n2"])
        nodes = [Status.Node(id=f"n{number}", registered=True) for number in (2, 3)]
        return Status(nodes=nodes, shards=[shard], etcd_reachable=True)


@asynccontextmanager
async def admin_service() -> AsyncIterator[str]:
    server = grpc.aio.server()
    admin_service_pb2_grpc.add_AdminServiceServicer_to_server(Admin(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(None)


async def test_a_takeover_is_offered_only_of_what_a_node_is_the_primary_of(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with admin_service() as address:

        async def fgctl(*arguments: str) -> tuple[int, str, str]:
            more = ["--router", address]
            code = await asyncio.to_thread(run, ["cluster", "takeover", *arguments, *more])
            shown = capsys.readouterr()
            return code, shown.out, shown.err

        code, out, err = await fgctl("nope")
        assert (code, out) == (1, "")
        assert "reason=NODE_UNKNOWN" in err
        for node in ("n2", "n3"):
            code, out, _ = await fgctl(node)
            assert code == 0
            assert out == f"{node} is the primary of no shard: there is nothing to take over\n"
            assert json.loads((await fgctl(node, "--json"))[1]) == {"node": node, "shards": []}
        code, out, _ = await fgctl("n1")
        assert code == 0
        assert "g.0" in out
        assert "say --yes" in out


@pytest.mark.parametrize(("answer", "declined"), [("n\n", True), ("\n", True), ("y\n", False)])
def test_who_says_no_is_told_that_nothing_was_changed(
    monkeypatch: pytest.MonkeyPatch, *, answer: str, declined: bool
) -> None:
    """It used to say "interrupted", as after Ctrl-C in the middle of something."""
    terminal = io.StringIO(answer)
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr("sys.stdin", terminal)
    with pytest.raises(Declined, match="nothing was changed") if declined else nullcontext():
        confirm("Do it?", yes=False)
