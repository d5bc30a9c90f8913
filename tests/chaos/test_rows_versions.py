"""Row 33 of the fault matrix: what a newer version wrote, read by this one."""

from collections.abc import Callable

import pytest

from bench.chaos.ledger import vectors_of
from facegrid.api.storage.v1 import storage_pb2
from facegrid.coord import keys
from facegrid.coord.port import Put
from facegrid.errors import UnavailableError
from facegrid.format.checks import sha256_hex
from facegrid.format.frame import Kind, encode_frame
from facegrid.format.log import LogRef, log_name, ref_to_message
from facegrid.format.records import Tip, decode_tip, encode_tip
from facegrid.ids import GalleryName, ShardId
from tests.fakes.rig import Rig, enrol, found_problem, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

PEOPLE = [f"one-{number}" for number in range(40)]


def needs_a_feature(record: storage_pb2.LogObject) -> None:
    record.required_features.append("encrypted")


def of_another_kind(record: storage_pb2.LogObject) -> None:
    """Let the record be of a kind that came later: an unknown branch of the oneof."""
    record.records[0].ClearField("erase")


@pytest.mark.parametrize("change", [needs_a_feature, of_another_kind])
def test_row_33_a_record_of_a_newer_version_is_refused_by_name_at_the_start(
    rig: Rig, change: Callable[[storage_pb2.LogObject], None]
) -> None:
    """1 a newer primary commits a record and is gone; 2 this version starts, and refuses the shard
    by name; 3 it stays up and serves its other shards; 4 what the newer one wrote is still there.
    """
    name = f"row33-{change.__name__.replace('_', '-')}"
    with rig.client() as client, rig.client(3) as hasty:
        gallery = rig.new_gallery(client, name)
        enrol(client, name, PEOPLE)
        (primary,) = rig.copies(name)
        rig.cluster.kill_node(primary)
        shard_id = ShardId(f"{name}.{gallery.uid}.0000")
        written = commit(rig, shard_id, change)
        data = (rig.cluster.store / written).read_bytes()
        rig.start(primary)

        (problem,) = problems(rig, name, primary)
        assert "features=encrypted" in problem or "is of an unknown kind" in problem
        assert written in problem
        with pytest.raises(UnavailableError):
            hasty.identify(name, vectors_of(PEOPLE[:1]), k=1)
        rig.new_gallery(client, f"{name}-other", shards=3)
        enrol(client, f"{name}-other", PEOPLE)
        assert found_problem(client, f"{name}-other", PEOPLE[0]) == ""
        assert rig.is_alive(primary)
        assert (rig.cluster.store / written).read_bytes() == data
        client.drop_gallery(f"{name}-other")
        client.drop_gallery(name)


def commit(rig: Rig, shard_id: ShardId, change: Callable[[storage_pb2.LogObject], None]) -> str:
    """Commit a record of a newer version; return the name of its object."""
    key = keys.tip(shard_id)
    tip = decode_tip(rig.values(key)[key]).log
    position = tip.last_position + 1
    message = storage_pb2.LogObject(
        shard_id=shard_id,
        generation=tip.generation,
        predecessor=ref_to_message(tip),
        records=[
            storage_pb2.LogRecord(
                position=position,
                request_id="newer",
                request_digest=bytes(16),
                erase=storage_pb2.LogRecord.Erase(subject_ids=[PEOPLE[0]]),
            )
        ],
    )
    change(message)
    data = encode_frame(Kind.LOG, message.SerializeToString(), compress="lz4")
    ref = LogRef(tip.generation, position, position, "0dd", sha256_hex(data))
    name = log_name(shard_id, ref)
    (rig.cluster.store / name).write_bytes(data)
    rig.etcd(lambda coord: coord.txn([], [Put(key, encode_tip(Tip(ref)))]))
    return name


def problems(rig: Rig, gallery: str, node_id: str) -> list[str]:
    """Return what a node says is wrong with its shards of a gallery."""
    return [
        shard.problem
        for node in rig.status().nodes
        for shard in node.shards
        if node.id == node_id and shard.shard_id.startswith(f"{gallery}.") and shard.problem
    ]


def test_row_33_a_map_of_a_newer_version_is_refused_and_other_galleries_are_served(
    rig: Rig,
) -> None:
    """1 a newer version changes a map so that it needs a feature; 2 nodes and routers of this one
    name it, at their start too, and serve the rest; 3 the map can be read again: nothing is lost.
    """
    with rig.client() as client, rig.client(3) as hasty:
        rig.new_gallery(client, "row33-map", replicas=2)
        rig.new_gallery(client, "row33-rest", replicas=2)
        for name in ("row33-map", "row33-rest"):
            enrol(client, name, PEOPLE)
        key = keys.shard_map(GalleryName("row33-map"))
        (before,) = rig.values(key).values()
        message = storage_pb2.ShardMapRecord.FromString(before)
        message.required_features.append("encrypted")
        rig.etcd(lambda coord: coord.txn([], [Put(key, message.SerializeToString())]))
        node, router = (rig.cluster.record.of_kind(kind)[0].name for kind in ("node", "router"))
        for process in (node, router):
            rig.exchange(process)
            wait_for(lambda process=process: named_problem(rig, process, key))

        assert found_problem(client, "row33-rest", PEOPLE[0]) == ""
        enrol(client, "row33-rest", ["later"])
        assert found_problem(hasty, "row33-map", PEOPLE[0]) != ""
        rig.etcd(lambda coord: coord.txn([], [Put(key, before)]))
        rig.cluster.up()
        assert found_problem(client, "row33-map", PEOPLE[0]) == ""
        assert client.get_gallery("row33-map").templates_count == len(PEOPLE)
        client.drop_gallery("row33-map")
        client.drop_gallery("row33-rest")


def named_problem(rig: Rig, process: str, key: str) -> str:
    """Say what is missing where a process does not name a record that it refuses, and why."""
    lines = [line for line in rig.said(process).splitlines() if key in line]
    return "" if any("encrypted" in line for line in lines) else f"{process} does not name {key}"
