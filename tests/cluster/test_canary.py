"""Canaries on real processes: a tuning that misses mates raises an alarm, and is made anew."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

import facegrid
from facegrid.clock import SystemClock
from facegrid.coord import keys
from facegrid.coord.etcd import EtcdCoordinator
from facegrid.coord.port import Guard, Put
from facegrid.format.records import decode_gallery, encode_gallery
from facegrid.testing.synthetic import SyntheticGallery
from facegrid.tuning import Effort, Profile, Tuning
from fgctl import admin
from fgctl.local import processes
from fgctl.local.cluster import LocalCluster
from fgctl.online import overview
from tests.fakes.people import enrol_all

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]

CLOCK = SystemClock()
DIM = 64
NAME = "watched"
PATIENCE_S = 60.0
TEMPLATES = 3000
MISTUNED_UNIX_MS = 1


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """One node that may spend half a core on canaries."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FACEGRID_INDEXD_CANARY_SHARE", "0.5")
        cluster = LocalCluster(tmp_path_factory.mktemp("canary"), nodes=1)
        cluster.up()
        yield cluster
        cluster.down()


def mistune(cluster: LocalCluster) -> None:
    """Claim that one list of all suffices for `fast`."""

    async def run() -> None:
        coord = EtcdCoordinator(
            [member.address for member in cluster.record.of_kind("etcd")], clock=CLOCK
        )
        try:
            item = await coord.get(keys.gallery(NAME))
            assert item is not None
            gallery = decode_gallery(item.value)
            # A gallery this small has few lists, all of which training wants searched.
            effort = Effort(nprobe=4, depth=512, proven=True)
            efforts = dict.fromkeys(Profile, effort) | {Profile.FAST: replace(effort, nprobe=1)}
            made = Tuning(
                gallery.codebook,
                4,
                efforts,
                threshold=0.5,
                templates_count=TEMPLATES,
                tuned_unix_ms=MISTUNED_UNIX_MS,
            )
            value = encode_gallery(replace(gallery, tuning=made))
            result = await coord.txn([Guard(item.key, item.mod_revision)], [Put(item.key, value)])
            assert result.succeeded, "nobody else changes it"
        finally:
            await coord.aclose()

    asyncio.run(run())


def status(cluster: LocalCluster) -> str:
    """Return what `fgctl cluster status` says that one should know."""
    return " ".join(overview.notes(admin.cluster_status(cluster.router_targets[0], timeout_s=10)))


def test_a_tuning_that_misses_mates_raises_an_alarm_and_is_made_anew(
    cluster: LocalCluster,
) -> None:
    """1 enrol, train; 2 a tuning claims too much; 3 live probes; 4 the status says so, and does
    until probes show that something helped; 5 the node tunes by itself.
    """
    people = SyntheticGallery(dim=DIM, templates_count=TEMPLATES, seed=3)
    with facegrid.Client(cluster.router_targets, timeout_s=60) as client:
        client.create_gallery(NAME, dim=DIM, extractor="x@1", shards=2, train_at=0)
        enrol_all(client, NAME, people)
        client.train(NAME)
        mistune(cluster)
        probes = people.probes(2000, seed=9).vectors
        batches = iter(np.array_split(np.tile(probes, (50, 1)), 1000))

        told: set[bool] = set()

        def healed() -> str:
            client.identify(NAME, next(batches), k=1, profile="fast")
            told.add("profile fast miss more" in status(cluster))
            if True not in told:
                return "no alarm"
            tuning = client.get_gallery(NAME).tuning
            anew = tuning is not None and tuning.tuned_unix_ms != MISTUNED_UNIX_MS
            return "" if anew else "the tuning stays"

        last = processes.wait_until(healed, timeout_s=PATIENCE_S, clock=CLOCK)

    assert last == ""
    said = cluster.log("n1").read_text()
    assert "the index misses more than it may" in said
    assert "tuned again" in said
    assert "s-0" not in said.partition("the index misses more")[2].partition("\n")[0]
