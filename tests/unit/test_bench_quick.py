"""What bench-quick makes of its rounds, and the yardstick it measures against."""

import numpy as np
import pytest

from bench.quick import Rate, Rounds, target
from bench.raw import RawFaiss
from bench.report import Spread
from facegrid import vectors
from facegrid.testing.synthetic import SyntheticGallery
from indexd.ann.train import train


def test_ratios_are_taken_round_by_round() -> None:
    rounds = Rounds(
        served=[Rate(50, 0.002), Rate(30, 0.002), Rate(80, 0.004)],
        served_alone=[],
        raw=[Rate(100, 0.001), Rate(40, 0.001), Rate(100, 0.001)],
        raw_scan=[],
    )

    assert rounds.ratios(rounds.raw) == Spread(median=0.75, low=0.5, high=0.8, count=3)
    assert rounds.cpu_ratio() == Spread(median=0.5, low=0.25, high=0.5, count=3)


@pytest.mark.parametrize(
    ("value", "at_most", "met"),
    [(0.5, False, "yes"), (0.49, False, "no"), (0.5, True, "yes"), (0.51, True, "no")],
)
def test_a_target_says_whether_it_is_met(value: float, at_most: bool, met: str) -> None:  # noqa: FBT001 - a table
    line = target("name", value, 0.5, at_most=at_most)

    assert line == f"target name value={value:g} need=0.5 met={met}"


def test_raw_faiss_finds_the_row_that_a_probe_was_made_of() -> None:
    block = SyntheticGallery(32, templates_count=1300, seed=1).block(0)
    codes = vectors.quantize(block.vectors)
    raw = RawFaiss(train(codes, seed=1, threads=1), codes)

    found = raw.search(block.vectors[:50], 3)

    assert found[:, 0].tolist() == list(range(50))
    assert raw.scan(block.vectors[:50], 3).shape[1] >= 3
    assert np.all(found >= 0)
