"""A real cluster tunes a gallery by itself, and operators see what it may miss."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import facegrid
from facegrid.testing.synthetic import SyntheticGallery
from facegrid.tuning import Profile, Tuning
from fgctl.local.cluster import LocalCluster
from tests.fakes.people import enrol_all
from tests.fakes.rig import wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

DIM = 32
TEMPLATES = 5200
COMMAND_S = 100.0


def fgctl(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "fgctl", *arguments, "--dir", str(folder)],
        capture_output=True,
        text=True,
        timeout=COMMAND_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def tuned(client: facegrid.Client, miss_rate_max: float) -> Tuning:
    """Wait until the gallery has been tuned for a rate, with the codebook that it has."""

    def problem() -> str:
        gallery = client.get_gallery("staff")
        tuning = gallery.tuning
        good = (
            tuning is not None
            and tuning.codebook == gallery.codebook
            and tuning.miss_rate_max == miss_rate_max
        )
        return "" if good else "not tuned yet"

    wait_for(problem, COMMAND_S)
    tuning = client.get_gallery("staff").tuning
    assert tuning is not None
    return tuning


def test_a_gallery_is_tuned_after_it_trained_by_itself_and_for_another_rate_when_told(
    tmp_path: Path,
) -> None:
    """1 grown to its size, the gallery trains and is tuned; 2 another rate is set, and it is tuned
    for that; 3 fgctl tunes once more and shows the curve, in the terminal and as a file.
    """
    cluster = LocalCluster(tmp_path, nodes=2)
    cluster.up()
    try:
        with facegrid.Client(cluster.router_targets, timeout_s=60) as client:
            client.create_gallery(
                "staff", dim=DIM, extractor="x@1", shards=2, train_at=5000, miss_rate_max=0.01
            )
            enrol_all(client, "staff", SyntheticGallery(dim=DIM, templates_count=TEMPLATES))

            first = tuned(client, 0.01)
            assert first.templates_count <= TEMPLATES
            assert first.mates_count >= 30
            assert set(first.efforts) == set(Profile)

            fgctl(tmp_path, "gallery", "set", "staff", "--miss-rate-max", "0.1")
            assert tuned(client, 0.1).mates_count >= 30

        shown = fgctl(tmp_path, "gallery", "tune", "staff", "--svg", str(tmp_path / "curve.svg"))
        document = json.loads(fgctl(tmp_path, "gallery", "show", "staff", "--json"))
        settings = fgctl(tmp_path, "gallery", "show", "staff")
    finally:
        cluster.down()
    assert "share of rows scanned" in shown
    assert all(str(profile) in shown for profile in Profile)
    assert (tmp_path / "curve.svg").read_text().startswith("<svg")
    assert document["tuning"]["miss_rate_max"] == document["miss_rate_max"] == 0.1
    assert "misses at most" in settings
