"""What the comparison with peers expects of a system: the fake and raw faiss held to the same."""

from pathlib import Path

import numpy as np
import pytest

from bench.peers.peer import Gallery, Library, Peer
from bench.peers.systems.faiss_index import FaissFlat, FaissIvfFlat
from facegrid.testing.synthetic import SyntheticGallery
from tests.fakes.peer import FakePeer

SYSTEMS: list[type[Library]] = [FakePeer, FaissFlat, FaissIvfFlat]
ROWS = 400
DIM = 32


@pytest.fixture(params=SYSTEMS, ids=lambda kind: kind.__name__)
def peer(request: pytest.FixtureRequest, tmp_path: Path) -> Peer:
    """Return a system that was built in the first of its ways, searched as hard as it can."""
    made: Peer = request.param(tmp_path, 1)
    first = made.variants(ROWS, DIM)[0]
    made.open(DIM)
    made.build(gallery(), first.build)
    made.use(first.ladders[0][-1])
    return made


def gallery() -> Gallery:
    blocks = SyntheticGallery(DIM, templates_count=ROWS, seed=3).block(0)
    return Gallery(blocks.vectors, np.arange(ROWS, dtype=np.int32))


def test_the_highest_effort_finds_what_is_nearest_in_order(peer: Peer) -> None:
    x = gallery().templates

    found = peer.search(x[:64], 10)

    assert found.dtype == np.int64
    assert found[:, 0].tolist() == list(range(64))
    scores = np.einsum("md,mkd->mk", x[:64], x[found])
    assert np.all(np.diff(scores, axis=1) <= 1e-6)


def test_one_probe_is_answered_as_among_others(peer: Peer) -> None:
    x = gallery().templates

    assert peer.search(x[:1], 5).tolist() == peer.search(x[:64], 5)[:1].tolist()


def test_what_is_saved_lies_in_the_folder(peer: Peer, tmp_path: Path) -> None:
    peer.save()

    assert sum(path.stat().st_size for path in tmp_path.rglob("*")) > ROWS * DIM * 4
    assert peer.processes() == ()
    peer.close()
