"""Rows of the fault matrix about disks that fail or fill, an etcd without space, one set back."""

import base64
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from facegrid.errors import FacegridError, UnavailableError
from fgctl.__main__ import run
from fgctl.local.plan import Wanted
from tests.fakes.rig import Rig, enrol, enrol_noted, erase_noted, found_problem, wait_for
from tests.fakes.scenarios import a_power_cut_loses_nothing_acknowledged

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]

PEOPLE = [f"one-{number}" for number in range(40)]
MIB = 1024 * 1024
ONE = Wanted(nodes=1, replicas=1, etcd=1, routers=1)


def test_row_23_a_power_cut_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    journal = tmp_path / "disk"
    with Rig(
        tmp_path / "rig",
        ONE,
        environment={"FACEGRID_INDEXD_ERASED_REWRITE_S": "1"},
        node_argv=("tests.fakes.other_node", f"--disk={journal}"),
    ) as rig:
        a_power_cut_loses_nothing_acknowledged(rig, journal)


def test_row_24_a_node_whose_fsync_fails_acknowledges_nothing_ends_and_recovers(
    tmp_path: Path,
) -> None:
    """1 every fsync fails with EIO; 2 a write is not acknowledged; 3 the node ends by itself; 4
    the disk is mended and the node started: everything acknowledged is there.
    """
    journal = tmp_path / "disk"
    with (
        Rig(
            tmp_path / "rig", ONE, node_argv=("tests.fakes.other_node", f"--disk={journal}")
        ) as rig,
        rig.client() as client,
        rig.client(4) as hasty,
    ):
        rig.new_gallery(client, "eio")
        enrol(client, "eio", PEOPLE)
        failing = journal.with_name("disk.eio")
        failing.touch()
        with pytest.raises(UnavailableError):
            enrol(hasty, "eio", ["amid"], request_id="r-24")
        rig.wait_ended("n1")
        failing.unlink()
        said = rig.said("n1")
        rig.start("n1")
        enrol(client, "eio", ["amid"], request_id="r-24")

        assert "store could not be synced" in said
        assert client.get_gallery("eio").templates_count == len(PEOPLE) + 1


@contextmanager
def small_disk(folder: Path, size_bytes: int) -> Iterator[Path]:
    """Mount a small file system; skip where that is not permitted."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes},mode=0700", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"needs to mount a tmpfs: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_row_24_a_disk_that_fills_up_is_told_early_and_reads_go_on(tmp_path: Path) -> None:
    """1 the disk fills up to the reserve; 2 writes are refused, reads go on; 3 a node that stops
    can still flush into the reserve; 4 there is room again: writes go on.
    """
    with (
        small_disk(tmp_path / "disk", 32 * MIB) as disk,
        Rig(tmp_path / "rig", Wanted(1, 1, 1, 1, store=f"dir:{disk}/store")) as rig,
        rig.client() as client,
        rig.client(4) as hasty,
    ):
        rig.new_gallery(client, "full")
        token = enrol(client, "full", PEOPLE)
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(shutil.disk_usage(disk).free - MIB))
        with pytest.raises(UnavailableError) as refused:
            enrol(hasty, "full", ["amid"], request_id="r-24")
        seen = [found_problem(client, "full", one, token) for one in PEOPLE]
        rig.signal("n1", signal.SIGTERM)
        rig.wait_ended("n1")
        flushed = '"flushed"' in rig.said("n1")
        rig.start("n1")
        seen += [found_problem(client, "full", one, token) for one in PEOPLE]
        ballast.unlink()
        enrol(client, "full", ["amid"], request_id="r-24")

        assert "store is almost full" in refused.value.message
        assert (seen, flushed) == ([""] * 2 * len(PEOPLE), True)
        assert client.get_gallery("full").templates_count == len(PEOPLE) + 1


def test_row_24_a_disk_that_is_full_to_the_last_byte_acknowledges_nothing(tmp_path: Path) -> None:
    """1 others fill the disk; 2 writes are refused, reads go on; 3 there is room: all is well."""
    with (
        small_disk(tmp_path / "disk", 32 * MIB) as disk,
        Rig(tmp_path / "rig", Wanted(1, 1, 1, 1, store=f"dir:{disk}/store")) as rig,
        rig.client() as client,
        rig.client(4) as hasty,
    ):
        rig.new_gallery(client, "full")
        token = enrol(client, "full", PEOPLE)
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(shutil.disk_usage(disk).free))
        with pytest.raises(UnavailableError):
            enrol(hasty, "full", ["amid"], request_id="r-24")
        assert [found_problem(client, "full", one, token) for one in PEOPLE[:9]] == [""] * 9
        rig.cluster.kill_node("n1")
        ballast.unlink()
        rig.start("n1")
        enrol(client, "full", ["amid"], request_id="r-24")
        assert client.get_gallery("full").templates_count == len(PEOPLE) + 1


def test_row_17_an_etcd_without_space_is_named_and_reads_go_on(tmp_path: Path) -> None:
    """1 etcd fills up to its quota; 2 writes fail and say why; 3 reads go on; 4 etcd gets room
    again: writes go on by themselves.
    """
    with (
        Rig(tmp_path / "rig", ONE, environment={"ETCD_QUOTA_BACKEND_BYTES": str(16 * MIB)}) as rig,
        rig.client() as client,
        rig.client(6) as hasty,
    ):
        rig.new_gallery(client, "quota")
        token = enrol(client, "quota", PEOPLE)
        fill(rig)
        with pytest.raises(UnavailableError) as refused:
            enrol(hasty, "quota", ["amid"], request_id="r-17")
        seen = [found_problem(client, "quota", one, token) for one in PEOPLE]
        empty(rig)
        wait_for(lambda: write_problem(rig))

        assert seen == [""] * len(PEOPLE)
        assert client.get_gallery("quota").templates_count == len(PEOPLE) + 1
        assert "database space exceeded" in refused.value.message


def write_problem(rig: Rig) -> str:
    """Try the write again; say why it does not go."""
    with rig.client(6) as client:
        try:
            enrol(client, "quota", ["amid"], request_id="r-17")
        except FacegridError as error:
            return error.message
    return ""


def fill(rig: Rig) -> None:
    """Put into etcd what it takes until its quota is spent."""
    value = "A" * (MIB // 2)
    for number in range(200):
        try:
            key = base64.b64encode(f"fill{number}".encode()).decode()
            rig.etcd_call("kv/put", key=key, value=value)
        except OSError:
            return
    pytest.fail("etcd took everything")


def empty(rig: Rig) -> None:
    """Make room in etcd, as an operator does: compact, defragment, take the alarm back."""
    first, last = (base64.b64encode(key).decode() for key in (b"fill", b"film"))
    rig.etcd_call("kv/deleterange", key=first, range_end=last)
    revision = rig.etcd_call("kv/range", key=first)["header"]["revision"]
    rig.etcd_call("kv/compaction", revision=revision, physical=True)
    rig.etcd_call("maintenance/defragment")
    for alarm in rig.etcd_call("maintenance/alarm", action="GET").get("alarms", []):
        member, kind = alarm["memberID"], alarm["alarm"]
        rig.etcd_call("maintenance/alarm", action="DEACTIVATE", memberID=member, alarm=kind)


@pytest.mark.parametrize("lost", ["set back", "wiped"])
def test_row_18_an_etcd_that_lost_its_data_is_refused_until_recovered_and_nothing_is_lost(
    tmp_path: Path, lost: str
) -> None:
    """1 enrol; 2 back etcd up; 3 enrol and erase; 4 etcd is restored, or wiped; 5 shards refuse;
    6 fgctl meta recover; 7 all that was acknowledged is there, and nothing erased.
    """
    with Rig(tmp_path / "rig", ONE) as rig:
        data = rig.cluster.directory / "etcd" / "etcd1"
        with rig.client() as client:
            rig.new_gallery(client, "lost")
            trial = rig.opened("lost")
            enrol_noted(client, "lost", trial, PEOPLE[:10])
            stop(rig)
            shutil.copytree(data, tmp_path / "backup")
            rig.cluster.up()
            for first in range(10, 40, 5):
                enrol_noted(client, "lost", trial, PEOPLE[first : first + 5])
            erase_noted(client, "lost", trial, PEOPLE[0])
            stop(rig)
            shutil.rmtree(data)
            if lost == "set back":
                shutil.copytree(tmp_path / "backup", data)
            rig.cluster.up()
            with rig.client(4) as hasty, pytest.raises(FacegridError):
                enrol(hasty, "lost", ["amid"])
            stop(rig)
            rig.cluster.start_etcd()
            (etcd,) = rig.cluster.record.of_kind("etcd")
            code = run(
                ["meta", "recover", str(rig.cluster.store), "--etcd", etcd.address, "--yes"]
            )
            assert code == 0
            rig.cluster.up()
            rig.audit(client, trial, "lost")


def stop(rig: Rig) -> None:
    """End the node with SIGKILL and all else in order; data stay."""
    rig.cluster.kill_node("n1")
    rig.cluster.down()
