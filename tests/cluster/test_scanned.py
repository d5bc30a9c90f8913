"""What an answer says of how much of the gallery was looked at, from the node to the client."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

import facegrid
from facegrid.clock import SystemClock
from facegrid.coord import keys
from facegrid.coord.etcd import EtcdCoordinator
from facegrid.coord.port import Put
from facegrid.format.records import decode_gallery, encode_gallery
from facegrid.ids import GalleryName
from facegrid.testing.synthetic import SyntheticGallery
from facegrid.tuning import Effort, Profile, Tuning
from fgctl.local.cluster import LocalCluster
from tests.fakes.people import enrol_all, probes_of

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

DIM = 64
NAME = GalleryName("staff")
WHOLE = Effort(nprobe=4, depth=64)


async def keep_tuning(address: str) -> None:
    """Write down that one list of four is enough for two of the profiles."""
    coord = EtcdCoordinator([address], clock=SystemClock())
    item = await coord.get(keys.gallery(NAME))
    assert item is not None
    gallery = decode_gallery(item.value)
    pruned = replace(WHOLE, nprobe=1)
    efforts = {Profile.EXHAUSTIVE: WHOLE, Profile.BALANCED: pruned, Profile.FAST: pruned}
    # Of the gallery's size, so that no node thinks it outgrown and tunes it anew.
    tuning = Tuning(gallery.codebook, 4, efforts, templates_count=6000)
    await coord.txn([], [Put(keys.gallery(NAME), encode_gallery(replace(gallery, tuning=tuning)))])
    await coord.aclose()


def test_an_answer_tells_the_share_of_the_rows_looked_at(tmp_path: Path) -> None:
    """1 untrained: all; 2 trained and not tuned: all lists of so few rows; 3 tuned to one list of
    four: less, unless exhaustive search is asked for.
    """
    cluster = LocalCluster(tmp_path, nodes=2)
    cluster.up()
    people = SyntheticGallery(dim=DIM, templates_count=6000, seed=3)
    probes = probes_of(people)
    with facegrid.Client(cluster.router_targets, timeout_s=60) as client:

        def share(profile: str | None = None) -> float:
            answer = client.identify(NAME, probes, k=1, profile=profile)
            found = answer[0].coverage.scanned_share
            assert found is not None
            return found

        client.create_gallery(NAME, dim=DIM, extractor="x@1", shards=4, train_at=0)
        enrol_all(client, NAME, people)
        untrained = share()
        client.train(NAME)
        trained = share("exhaustive")
        (etcd,) = cluster.record.of_kind("etcd")
        asyncio.run(keep_tuning(etcd.address))
        # Nodes hear of it by their watch, soon.
        pruned = next(found for _ in range(2000) if (found := share()) < 1)
        exhaustive = share("exhaustive")
    cluster.down()

    assert (untrained, trained, exhaustive) == (1.0, 1.0, 1.0)
    assert 0.05 < pruned < 0.6
