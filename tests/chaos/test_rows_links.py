"""Rows of the fault matrix about links that go silent, in one direction or both."""

from collections.abc import Sequence

import grpc
import numpy as np
import pytest

import facegrid
from bench.chaos.healing import HEALED_S_MAX
from bench.chaos.ledger import DIM, vectors_of
from facegrid.api.shard.v1 import shard_service_pb2 as pb
from facegrid.api.shard.v1.shard_service_pb2_grpc import ShardServiceStub
from facegrid.errors import FencedError, UnavailableError
from facegrid.rpc.channel import KEEPALIVE_INTERVAL_MS, KEEPALIVE_TIMEOUT_MS
from facegrid.vectors import quantize
from fgctl import admin
from tests.fakes.rig import Rig, enrol, found_problem, holds, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

PEOPLE = [f"one-{number}" for number in range(60)]
NOTICED_S = (KEEPALIVE_INTERVAL_MS + KEEPALIVE_TIMEOUT_MS) / 1000
"""Until a link that says nothing counts as dead."""
SLACK_S = 5.0
"""For a machine that is busy with other things."""


@pytest.mark.alone
def test_row_08_a_link_that_goes_silent_fails_no_read(rig: Rig) -> None:
    """1 search; 2 the link to one of two copies goes silent, for good; 3 all searches succeed."""
    with rig.client() as client:
        rig.new_gallery(client, "row8", replicas=2)
        token = enrol(client, "row8", PEOPLE)
        primary, _ = rig.copies("row8")
        with rig.reading("row8", PEOPLE, token) as reads:
            rig.hold(primary)
            held_s = rig.clock.now_s()
            wait_for(lambda: "" if len(reads.since(held_s + NOTICED_S)) >= 100 else "too few")
        rig.heal()
        client.drop_gallery("row8")

    assert reads.wrong == []
    assert max(reads.since(held_s)) < NOTICED_S + SLACK_S
    assert float(np.median(reads.since(held_s + NOTICED_S + SLACK_S) or [0.0])) < 1.0


@pytest.mark.parametrize("way", ["there", "back"])
def test_row_09_a_partition_in_one_direction_makes_copies_pause_and_never_differ(
    rig: Rig, way: str
) -> None:
    """1 a follower's link to etcd passes one way only; 2 writes go on; 3 healed, they agree."""
    with rig.client() as client:
        gallery = f"row9{way}"
        rig.new_gallery(client, gallery, replicas=2)
        enrol(client, gallery, PEOPLE[:20])
        _, follower = rig.copies(gallery)
        rig.change(
            rig.etcd_links(follower), lambda link: link.hold("there" if way == "there" else "back")
        )
        token = enrol(client, gallery, PEOPLE[20:])
        erased = client.erase(gallery, subject_ids=[PEOPLE[0]]).token
        after = token | erased
        seen = [found_problem(client, gallery, one, after) for one in PEOPLE[1:]]
        gone = [found_problem(client, gallery, PEOPLE[0]) for _ in range(8)]
        rig.heal()
        rig.wait_equal(gallery, HEALED_S_MAX)
        client.drop_gallery(gallery)

    assert seen == [""] * len(seen)
    assert "" not in gone, "an acknowledged erasure came back"


def test_row_10_a_node_cut_off_from_etcd_refuses_writes_and_serves_reads(rig: Rig) -> None:
    """1 the primary's links to etcd go silent; 2 writes fail; 3 reads go on; 4 all recovers."""
    with rig.client() as client, rig.client(5) as hasty:
        gallery = rig.new_gallery(client, "row10")
        token = enrol(client, "row10", PEOPLE)
        (primary,) = rig.copies("row10")
        with rig.reading("row10", PEOPLE, token) as reads:
            rig.hold(*rig.etcd_links(primary))
            with pytest.raises(UnavailableError):
                enrol(hasty, "row10", ["amid"], request_id="r-10")
            began_s = rig.clock.now_s()
            code = append(rig, primary, f"row10.{gallery.uid}.0000", timeout_s=10)
            refused_after_s = rig.clock.now_s() - began_s
            wait_for(lambda: "" if len(reads.since(began_s)) >= 50 else "too few")
            rig.heal()
            wait_for(lambda: write_problem(hasty, "row10", ["amid"], "r-10"))
        assert client.get_gallery("row10").templates_count == len(PEOPLE) + 1
        client.drop_gallery("row10")

    assert reads.wrong == []
    assert code is grpc.StatusCode.UNAVAILABLE
    assert refused_after_s < 5, "at the end of its deadline, and not at once"


def append(rig: Rig, node: str, shard_id: str, *, timeout_s: float) -> grpc.StatusCode:
    """Enrol somebody through a node itself; return how it answers. Clients would try again."""
    rows = pb.StoredRows(
        template_ids=["t"], subject_ids=["s"], codes=quantize(vectors_of(["s"])).tobytes(), dim=DIM
    )
    request = pb.AppendRequest(shard_id=shard_id, request_id="r", rows=rows)
    with grpc.insecure_channel(rig.cluster.record.named(node).address) as channel:
        try:
            ShardServiceStub(channel).Append(request, timeout=timeout_s)
        except grpc.RpcError as error:
            code = error.code()  # type: ignore[attr-defined]  # a blocking call's error has it
            assert isinstance(code, grpc.StatusCode)
            return code
    return grpc.StatusCode.OK


def write_problem(
    client: facegrid.Client, gallery: str, subject_ids: Sequence[str], request_id: str
) -> str:
    """Try to enrol; say why it does not go."""
    try:
        enrol(client, gallery, subject_ids, request_id=request_id)
    except (UnavailableError, FencedError) as error:
        return error.message
    return ""


def test_row_15_changes_of_the_map_that_etcd_compacted_away_are_listed_again(rig: Rig) -> None:
    """1 the links to etcd of a node and a router are cut; 2 galleries come and go; 3 etcd
    compacts; 4 the links heal; 5 both know what there is.
    """
    with facegrid.Client([rig.targets[1]], timeout_s=60) as client:
        rig.new_gallery(client, "row15-old")
        names = [name for name in ("n1", "n2", "n3") if name not in rig.copies("row15-old")]
        node = names[0]
        for number in range(4):
            client.create_gallery(f"row15-{number}", dim=DIM, extractor="x@1", shards=3)
        missed = [*rig.etcd_links(node), *rig.etcd_links("router1")]
        rig.change(missed, lambda link: link.cut())
        for number in range(4):
            client.drop_gallery(f"row15-{number}")
        client.drop_gallery("row15-old")
        rig.etcd_call("kv/put", key="Zg==", value="Zg==")
        revision = rig.etcd_call("kv/range", key="Zg==")["header"]["revision"]
        rig.etcd_call("kv/compaction", revision=revision, physical=True)
        rig.heal()

        wait_for(holds(lambda: known(rig.targets[0], "row15") == set(), "router is behind"))
        wait_for(holds(lambda: not rig.values("dropped/"), "shards are still to be deleted"))
        wait_for(holds(lambda: shards_held(rig, "row15-") == 0, "nodes are behind"))


def known(target: str, prefix: str) -> set[str]:
    """Return the shards of some galleries that a router knows."""
    shards = admin.cluster_status(target, timeout_s=5).shards
    return {shard.id for shard in shards if shard.id.startswith(prefix)}


def shards_held(rig: Rig, prefix: str) -> int:
    """Return how many shards of these galleries nodes hold."""
    return sum(
        copy.shard_id.startswith(prefix) for node in rig.status().nodes for copy in node.shards
    )


def test_row_14_the_end_of_all_leases_at_once_starts_no_takeover(rig: Rig) -> None:
    """1 nobody works; 2 every lease is revoked, twice; 3 nodes register again; 4 nothing moved."""
    with rig.client() as client:
        rig.new_gallery(client, "row14", shards=6, replicas=2)
        enrol(client, "row14", PEOPLE)
        before = (rig.values("gen/"), rig.values("map/"))
        for _ in range(2):
            revoke_all(rig)
            wait_for(holds(lambda: registered(rig) == {"n1", "n2", "n3"}, "not registered"))
        enrol(client, "row14", ["after"])

        assert (rig.values("gen/"), rig.values("map/")) == before
        client.drop_gallery("row14")


def revoke_all(rig: Rig) -> None:
    """End every lease."""
    for lease in rig.etcd_call("lease/leases").get("leases", []):
        rig.etcd_call("lease/revoke", ID=lease["ID"])


def registered(rig: Rig) -> set[str]:
    """Return the nodes that etcd lists."""
    return {key.split("/")[1] for key in rig.values("nodes/")}
