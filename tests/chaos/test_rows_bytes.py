"""Rows of the fault matrix about stored bytes that are damaged, hostile, torn or not synced."""

import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from bench.chaos.ledger import DIM, template_of
from facegrid.coord import keys
from facegrid.coord.port import Put
from facegrid.errors import UnavailableError
from facegrid.format.checks import sha256_hex
from facegrid.format.frame import Kind, encode_frame
from facegrid.format.log import (
    EnrolRecord,
    LogGroup,
    LogRef,
    decode_log,
    encode_log,
    log_name,
)
from facegrid.format.records import Tip, decode_tip, encode_tip
from facegrid.ids import ShardId
from facegrid.vectors import quantize
from tests.fakes.rig import Rig, enrol, found_problem, wait_for
from tests.fakes.scenarios import answers

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]

PEOPLE = [f"one-{number}" for number in range(40)]

Damage = Callable[[Sequence[Path]], None]


def flip(objects: Sequence[Path]) -> None:
    data = bytearray(objects[0].read_bytes())
    data[len(data) // 2] ^= 0x10
    objects[0].write_bytes(bytes(data))


def truncate(objects: Sequence[Path]) -> None:
    objects[0].write_bytes(objects[0].read_bytes()[:-9])


def swap(objects: Sequence[Path]) -> None:
    first, second = objects[0].read_bytes(), objects[1].read_bytes()
    objects[0].write_bytes(second)
    objects[1].write_bytes(first)


def put_older(objects: Sequence[Path]) -> None:
    """Put an older object of the shard in the place of its newest."""
    objects[-1].write_bytes(objects[0].read_bytes())


DAMAGES: dict[str, tuple[str, Damage]] = {
    "flipped log": ("/log/", flip),
    "truncated log": ("/log/", truncate),
    "swapped log": ("/log/", swap),
    "older log": ("/log/", put_older),
    "flipped segment": ("/segments/", flip),
    "truncated segment": ("/segments/", truncate),
    "flipped manifest": ("/manifests/", flip),
    "truncated manifest": ("/manifests/", truncate),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_row_22_a_damaged_object_is_named_and_not_served_and_another_copy_answers(
    rig: Rig, tmp_path: Path, case: str
) -> None:
    """1 stop the primary; 2 damage what it will load; 3 start it: it says so and stays up; 4 reads
    come from the follower; 5 the object is put back, the node started again: all is well.
    """
    part, damage = DAMAGES[case]
    name = f"row22-{case.replace(' ', '-')}"
    with rig.client() as client:
        rig.new_gallery(client, name, replicas=2)
        token = enrol(client, name, PEOPLE[:20])
        token |= enrol(client, name, PEOPLE[20:])
        primary, _ = rig.copies(name)
        rig.wait_equal(name)
        before = answers(rig, name)
        if part == "/log/":
            rig.cluster.kill_node(primary)
        else:
            rig.signal(primary, signal.SIGTERM)
            rig.wait_ended(primary)
        objects = [path for path in rig.objects(part) if f"/{name}." in str(path)]
        kept = tmp_path / "kept"
        shutil.copytree(rig.cluster.store, kept)
        damage(objects)
        rig.start(primary)

        (problem,) = problems(rig, name, primary)
        assert any(path.name in problem for path in objects), problem
        assert found_problem(client, name, PEOPLE[0], token) == ""
        assert answers(rig, name) == before
        assert rig.is_alive(primary)
        for path in objects:
            path.write_bytes((kept / path.relative_to(rig.cluster.store)).read_bytes())
        rig.cluster.kill_node(primary)
        rig.start(primary)
        enrol(client, name, ["after"])
        client.drop_gallery(name)


def problems(rig: Rig, gallery: str, node_id: str) -> list[str]:
    """Return what a node says is wrong with its shards of a gallery."""
    return [
        shard.problem
        for node in rig.status().nodes
        for shard in node.shards
        if node.id == node_id and shard.shard_id.startswith(f"{gallery}.") and shard.problem
    ]


def test_row_23_a_torn_log_tail_is_cut_off_and_all_acknowledged_is_there(rig: Rig) -> None:
    """1 the node dies before it commits; 2 the object's end is torn off; 3 all else is there."""
    with rig.client() as client, rig.client(3) as hasty:
        rig.new_gallery(client, "row23")
        enrol(client, "row23", PEOPLE)
        (primary,) = rig.copies("row23")
        known = set(rig.objects("/row23."))
        rig.arm(primary, "store.put.log after crash 1")
        with pytest.raises(UnavailableError):
            enrol(hasty, "row23", ["torn"], request_id="r-23")
        rig.wait_ended(primary)
        (tail,) = set(rig.objects("/row23.")) - known
        tail.write_bytes(tail.read_bytes()[:-20])
        rig.start(primary)

        assert "unsettled log object is damaged" in rig.said(primary)
        assert client.get_gallery("row23").templates_count == len(PEOPLE)
        enrol(client, "row23", ["torn"], request_id="r-23")
        assert client.get_template("row23", template_of("torn"), subject_id="torn")
        client.drop_gallery("row23")


def other_dimension(group: LogGroup) -> EnrolRecord:
    return a_record(group, quantize(np.eye(1, 32, dtype=np.float32)))


def no_vector(group: LogGroup) -> EnrolRecord:
    return a_record(group, np.zeros((1, DIM), np.int8))


def a_record(group: LogGroup, codes: np.ndarray) -> EnrolRecord:
    """Return a record that follows a group and is whole, as far as the format goes."""
    return EnrolRecord(
        position=group.last_position + 1,
        request_id="r-odd",
        request_digest=bytes(16),
        written_unix_ms=0,
        template_ids=["t-odd"],
        subject_ids=["odd"],
        codes=codes,
    )


@pytest.mark.parametrize("record", [other_dimension, no_vector])
def test_row_32_a_record_that_cannot_be_applied_is_told_and_ends_no_process(
    rig: Rig, record: Callable[[LogGroup], EnrolRecord]
) -> None:
    """1 such a record is committed behind the primary's back, which is down; 2 it starts, refuses
    that shard by name, serves its others, and stays up; 3 the follower stays up as well.
    """
    name = f"row32-{record.__name__.replace('_', '-')}"
    with rig.client() as client:
        gallery = rig.new_gallery(client, name, replicas=2)
        enrol(client, name, PEOPLE)
        primary, follower = rig.copies(name)
        rig.cluster.kill_node(primary)
        odd = commit(rig, ShardId(f"{name}.{gallery.uid}.0000"), record)
        rig.start(primary)

        wait_for(lambda: "" if problems(rig, name, follower) else "the follower has not read it")
        for node in (primary, follower):
            (problem,) = problems(rig, name, node)
            assert "cannot be applied" in problem
            assert odd in problem
        pids = [rig.cluster.record.named(node).pid for node in (primary, follower)]
        rig.new_gallery(client, f"{name}-other", shards=3)
        enrol(client, f"{name}-other", PEOPLE)
        assert all(rig.is_alive(node) for node in (primary, follower))
        assert [rig.cluster.record.named(node).pid for node in (primary, follower)] == pids
        client.drop_gallery(f"{name}-other")
        client.drop_gallery(name)


def commit(rig: Rig, shard_id: ShardId, record: Callable[[LogGroup], EnrolRecord]) -> str:
    """Commit a record as the primary does; return the name of its object."""
    tip = decode_tip(rig.values(keys.tip(shard_id))[keys.tip(shard_id)]).log
    last = decode_log((rig.cluster.store / log_name(shard_id, tip)).read_bytes())
    group = LogGroup(shard_id, tip.generation, tip, [record(last)])
    return commit_bytes(rig, shard_id, encode_log(group), after=tip)


def commit_bytes(rig: Rig, shard_id: ShardId, data: bytes, *, after: LogRef) -> str:
    """Commit any bytes as the log object of one record; return its name."""
    position = after.last_position + 1
    ref = LogRef(after.generation, position, position, "0dd", sha256_hex(data))
    name = log_name(shard_id, ref)
    (rig.cluster.store / name).write_bytes(data)
    rig.etcd(lambda coord: coord.txn([], [Put(keys.tip(shard_id), encode_tip(Tip(ref)))]))
    return name


def test_row_34_a_bomb_in_the_store_is_refused_by_name_in_bounded_memory(rig: Rig) -> None:
    """1 a log object is committed whose frame unpacks to more than any may; 2 it is refused."""
    bomb_bytes = 512 * 1024 * 1024
    with rig.client() as client:
        gallery = rig.new_gallery(client, "row34-bomb")
        enrol(client, "row34-bomb", PEOPLE)
        (primary,) = rig.copies("row34-bomb")
        shard_id = ShardId(f"row34-bomb.{gallery.uid}.0000")
        rig.cluster.kill_node(primary)
        tip = decode_tip(rig.values(keys.tip(shard_id))[keys.tip(shard_id)]).log
        bomb = encode_frame(Kind.LOG, bytes(bomb_bytes), compress="lz4")
        name = commit_bytes(rig, shard_id, bomb, after=tip)
        rig.start(primary)

        (problem,) = problems(rig, "row34-bomb", primary)
        assert "payload is too long" in problem
        assert name in problem
        assert rig.memory_bytes_max(primary) < bomb_bytes
        client.drop_gallery("row34-bomb")
