"""Row 25 of the fault matrix: a GPU fails under a node. The processor plays the GPU."""

from pathlib import Path

import pytest

import facegrid
from bench.chaos.ledger import vectors_of
from facegrid.api.shard.v1 import shard_service_pb2
from fgctl.local.plan import Wanted
from tests.fakes.people import settle
from tests.fakes.rig import Rig, enrol, holds, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

PEOPLE = [f"one-{number}" for number in range(1200)]
GALLERY = "row25"


def devices(rig: Rig) -> list[shard_service_pb2.DeviceStatus]:
    return [one for node in rig.status().nodes for one in node.devices]


def answers(client: facegrid.Client) -> list[list[tuple[str, str, float]]]:
    lists = client.identify(GALLERY, vectors_of(PEOPLE[:20]), k=10)
    return [[(c.subject_id, c.template_id, c.score) for c in one.candidates] for one in lists]


@pytest.mark.parametrize("way", ["full", "lost"])
def test_row_25_where_a_gpu_fails_the_processor_answers_the_same(tmp_path: Path, way: str) -> None:
    """1 all shards come to the GPU; 2 it fails amid searches, none of which fails; 3 what was full
    is used again once there is room, what was lost only by the next process.
    """
    rule = tmp_path / "rule"
    wanted = Wanted(nodes=1, replicas=1, etcd=1, routers=1)
    argv = ("tests.fakes.played_gpu", str(rule))
    with Rig(tmp_path / "rig", wanted, node_argv=argv) as rig, rig.client() as client:
        rig.new_gallery(client, GALLERY, shards=2)
        enrol(client, GALLERY, PEOPLE)
        client.train(GALLERY)
        settle(client, GALLERY)

        def coded() -> bool:
            shards = [shard for node in rig.status().nodes for shard in node.shards]
            return all(0 < one.indexed_count == one.templates_count for one in shards)

        # Before, the GPU holds shards that it has to code anew as soon as a node has the codebook.
        wait_for(holds(coded, "rows wait to be coded"))

        def searched_there() -> bool:
            before = devices(rig)[0].searches_count
            answers(client)
            return devices(rig)[0].searches_count > before

        wait_for(holds(searched_there, "the GPU does not search"))
        expected = answers(client)
        rule.write_text(way, encoding="utf-8")

        assert [answers(client) for _ in range(3)] == [expected] * 3
        (failed,) = devices(rig)
        assert (failed.failures_count, failed.shards_left_count >= 2) == (1, True)
        assert failed.lost == (way == "lost")

        rule.unlink()
        if way == "lost":
            assert answers(client) == expected
            assert devices(rig)[0].searches_count == failed.searches_count
            rig.cluster.kill_node("n1")
            rig.start("n1")
        wait_for(holds(searched_there, "the GPU does not search again"))
        assert answers(client) == expected
