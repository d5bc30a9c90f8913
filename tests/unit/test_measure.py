"""Where mates stand among the rows of a shard: against brute force and the scan itself."""

from collections.abc import Callable

import numpy as np
import pytest

from facegrid import vectors
from facegrid.testing.synthetic import SyntheticGallery
from facegrid.vectors import Float32, Probes
from indexd.ann.ivfpq import IvfPq, add_rows
from indexd.ann.measure import Measured, Measurement, StoppedError, Trials, choose_trials
from indexd.ann.rows import Rows
from indexd.ann.train import train

DIM = 32
COUNT = 5200
SEED = 3


class Shard:
    """Rows of a synthetic gallery with a codebook."""

    def __init__(self) -> None:
        (block,) = SyntheticGallery(DIM, templates_count=COUNT).blocks(COUNT)
        codes = vectors.quantize(block.vectors)
        self.subjects = np.unique(block.subject_ids, return_inverse=True)[1].astype(np.int32)
        self.rows = Rows(DIM)
        self.rows.append(codes, self.subjects)
        self.codebook = train(codes, seed=1, threads=1)

    def exact(self, probes: Probes) -> Float32:
        """Return the scores of all probes with all rows."""
        numbers = np.broadcast_to(np.arange(COUNT), (len(probes), COUNT))
        return vectors.scores(probes, self.rows.codes(numbers), self.rows.norms(numbers))

    def measured(
        self, trials: Trials, stopped: Callable[[], bool] = lambda: False
    ) -> tuple[Probes, Measured]:
        measurement = Measurement(self.rows, COUNT, self.codebook)
        probes = measurement.probes(trials, np.random.default_rng(SEED))
        return probes, measurement.run(trials, probes, stopped)


@pytest.fixture(scope="module")
def shard() -> Shard:
    return Shard()


def real_pairs(shard: Shard, count: int = 64) -> Trials:
    trials = choose_trials(shard.rows, COUNT, count, seed=SEED)
    assert trials.pseudo_first == count
    return trials


def test_scores_are_those_of_the_best_other_row_of_the_subject_and_of_anybody_else(
    shard: Shard,
) -> None:
    trials = real_pairs(shard)
    probes, measured = shard.measured(trials)

    scores = shard.exact(probes)
    own = shard.subjects[trials.own][:, None] == shard.subjects[None, :]
    probe_row = np.arange(COUNT)[None, :] == trials.own[:, None]
    mates = np.where(own & ~probe_row, scores, -2).max(axis=1)
    np.testing.assert_array_equal(measured.mate_scores, mates)
    np.testing.assert_allclose(measured.rival_scores, np.where(own, -2, scores).max(axis=1))


def test_erased_rows_are_neither_probes_nor_mates_nor_rivals() -> None:
    shard = Shard()
    shard.rows.erase(np.arange(0, COUNT, 2))

    trials = choose_trials(shard.rows, COUNT, 50, seed=SEED)
    probes, measured = shard.measured(next(iter(trials.parts(50))))

    assert not shard.rows.erased(np.concatenate([trials.mates, trials.own])).any()
    scores = shard.exact(probes)
    strangers = shard.subjects[trials.own][:, None] != shard.subjects[None, :]
    live = strangers & (np.arange(COUNT) % 2 == 1)[None, :]
    np.testing.assert_allclose(measured.rival_scores, np.where(live, scores, -2).max(axis=1))


def test_a_subject_makes_one_pair_and_single_rows_fill_up(shard: Shard) -> None:
    trials = choose_trials(shard.rows, COUNT, 2000, seed=SEED)

    pairs = slice(0, trials.pseudo_first)
    assert 0 < trials.pseudo_first < len(trials.own) == 2000
    subjects = shard.subjects[trials.own[pairs]]
    assert len(np.unique(subjects)) == trials.pseudo_first
    np.testing.assert_array_equal(subjects, shard.subjects[trials.mates[pairs]])
    assert (trials.own[pairs] != trials.mates[pairs]).all()
    assert (trials.own[trials.pseudo_first :] == -1).all()


def test_parts_hold_one_kind_of_probe_each_and_all_of_them(shard: Shard) -> None:
    trials = choose_trials(shard.rows, COUNT, 2000, seed=SEED)

    parts = list(trials.parts(512))

    assert all(len(set((part.own < 0).tolist())) == 1 and len(part.own) <= 512 for part in parts)
    np.testing.assert_array_equal(np.concatenate([part.mates for part in parts]), trials.mates)


def test_a_pseudo_mate_is_the_row_that_it_was_made_of(shard: Shard) -> None:
    trials = choose_trials(shard.rows, COUNT, 2000, seed=SEED)
    part = list(trials.parts(512))[-1]

    probes, measured = shard.measured(part)

    scores = shard.exact(probes)[np.arange(len(part.mates)), part.mates]
    np.testing.assert_array_equal(measured.mate_scores, scores)


def test_mates_stand_no_deeper_in_the_scan_than_was_measured(shard: Shard) -> None:
    """The scan rounds its tables; what is measured allows for that."""
    trials = choose_trials(shard.rows, COUNT, 2000, seed=SEED)
    part = list(trials.parts(512))[-1]  # made from single rows: no row of the subject is left out
    probes, measured = shard.measured(part)
    scanned = IvfPq(shard.codebook)
    add_rows(scanned, shard.rows, COUNT)

    found = scanned.search(probes, COUNT, nprobe=shard.codebook.nlist, live=None)

    places = np.argmax(found == part.mates[:, None], axis=1)
    assert np.mean(places <= measured.code_places) > 0.97


def test_who_asks_no_more_ends_it_between_two_blocks(shard: Shard) -> None:
    with pytest.raises(StoppedError):
        shard.measured(real_pairs(shard), stopped=lambda: True)
