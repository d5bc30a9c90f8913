"""What bench-quick makes of its rounds, and the yardstick it measures against."""

import numpy as np

from bench import inprocess
from bench.quick import Rate, Rounds
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


def test_a_call_takes_longer_by_the_difference_of_both_times() -> None:
    rounds = Rounds([], [], [], [], [], [Rate(100, 0.0)], [Rate(200, 0.0)])

    assert rounds.slower_ms() == Spread(median=5.0, low=5.0, high=5.0, count=1)


def test_raw_faiss_finds_the_row_that_a_probe_was_made_of() -> None:
    block = SyntheticGallery(32, templates_count=1300, seed=1).block(0)
    codes = vectors.quantize(block.vectors)
    raw = RawFaiss(train(codes, seed=1, threads=1), codes)

    found = raw.search(block.vectors[:50], 3)

    assert found[:, 0].tolist() == list(range(50))
    assert raw.scan(block.vectors[:50], 3).shape[1] >= 3
    assert np.all(found >= 0)


def test_the_engine_s_index_finds_what_raw_faiss_does() -> None:
    block = SyntheticGallery(32, templates_count=1300, seed=1).block(0)
    codes = vectors.quantize(block.vectors)
    codebook = train(codes, seed=1, threads=1)

    hits = inprocess.filled(codebook, codes).search(
        vectors.prepare_probes(block.vectors[:50]), 1, inprocess.LOWEST
    )

    assert (
        hits.rows.tolist()
        == RawFaiss(codebook, codes).search(block.vectors[:50], 1)[:, 0].tolist()
    )
