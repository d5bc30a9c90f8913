"""Galleries that stream by with their truth, loads that come when they come."""

import numpy as np
import pytest

from bench import arrivals, grown, nist, updates
from bench.accuracy import measure
from bench.arrivals import Answered
from bench.grown import Asked, Grown, Miss, Point
from bench.streamed import Best, Maker, Piece, pieces
from bench.truth import ExactSearch, Ranking
from bench.updates import Erasures, Window
from facegrid import Candidate, CandidateList, Coverage, vectors
from facegrid.clock import SystemClock
from facegrid.testing.manual_clock import ManualClock
from facegrid.testing.synthetic import SyntheticGallery
from facegrid.tuning import Effort

GALLERY = SyntheticGallery(32, templates_count=12_000, seed=3)
PROBES = GALLERY.probes(600, seed=3)


def streamed() -> list[Piece]:
    maker = Maker(GALLERY, PROBES.vectors)
    return [maker.piece(number) for number in range(maker.pieces_count)]


def test_a_streamed_gallery_is_the_gallery_and_its_best_are_those_of_exact_search() -> None:
    made = streamed()
    best = Best.none(len(PROBES))
    exact = ExactSearch(PROBES.vectors, k=1)
    for piece in made:
        best = best.or_better(piece.best)
    for block in GALLERY.blocks(4096):
        exact.add(block.vectors, block.subject_ids)

    whole = next(GALLERY.blocks(12_000))
    owners = np.concatenate([piece.subjects for piece in made])
    codes = np.concatenate([piece.codes for piece in made])
    assert np.array_equal(codes, vectors.quantize(whole.vectors))
    assert [f"s-{owner + 1:07d}" for owner in owners] == whole.subject_ids
    found = [f"s-{owners[row] + 1:07d}" for row in best.rows]
    assert found == [ranking.best for ranking in exact.rankings()]


def test_other_processes_make_the_same_in_the_same_order() -> None:
    made = list(pieces(Maker(GALLERY, PROBES.vectors[:5]), processes=2))

    assert [len(piece) for piece in made] == [len(piece) for piece in streamed()]
    for mine, theirs in zip(streamed(), made, strict=True):
        assert np.array_equal(mine.codes, theirs.codes)


def test_misses_are_those_of_the_accuracy_measure() -> None:
    """Exact search accepts 4 mates of 6; the index finds 2 of these."""
    mates = np.array([0, 1, 2, 3, 4, 5, -1, -1, -1])
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.2, 0.9, 0.3, 0.1, 0.2], np.float32)
    owner = np.array([0, 1, 2, 3, 4, 9, 8, 8, 8])
    found = np.array([0, 9, 2, -1, -1, 5, 8, 8, 8])

    miss = grown.misses(
        Asked(np.empty((9, 0), np.float32), mates), Best(scores, owner), owner, found
    )

    rankings = [
        [Ranking((str(one),), (float(score),)) for one, score in zip(side, scores, strict=True)]
        for side in (owner, found)
    ]
    names = [None if mate < 0 else str(mate) for mate in mates]
    reference = measure(names, exact=rankings[0], found=rankings[1])
    assert (miss.mates_count, miss.misses_count) == (6, 2)
    assert miss.extra_fnir == reference.extra_fnir


def test_an_index_that_looks_everywhere_misses_nobody_and_one_list_misses_some() -> None:
    asked = Asked.of(GALLERY, 600, seed=3)
    one = Grown(32, asked, threads=1, clock=SystemClock())
    for piece in streamed():
        one.take(piece)
    one.train(seed=1)
    with grown.cores(1):
        full = one.point("", Effort(nprobe=one.codebook.nlist, depth=512), k=5, single_count=2)
        part = one.point("", Effort(nprobe=1, depth=512), k=5, single_count=2)

    assert (full.miss.mates_count, full.miss.misses_count) == (300, 0)
    assert part.miss.misses_count > 0
    assert (full.templates, len(full.single_ms)) == (12_000, 2)


def test_the_exponent_is_the_slope_between_logarithms() -> None:
    assert grown.exponent([1e5, 1e6, 1e7], [2.0, 20.0, 200.0]) == pytest.approx(1.0)
    assert grown.exponent([1, 4], [3, 6]) == pytest.approx(0.5)


def point(profile: str, ms: float, *, misses: int = 0, templates: int = nist.TEMPLATES) -> Point:
    return Point(profile, templates, 1, 4, 64, [ms], 1.0, 1.0, Miss(10_000, misses, 0.3))


def test_pruned_is_the_fastest_that_fast_allows_else_the_most_thorough() -> None:
    profiles = [point("exhaustive", 140.0)]
    some = nist.Results({}, profiles, [point("", 10.0, misses=900), point("", 30.0, misses=50)])
    none = nist.Results({}, profiles, [point("", 10.0, misses=900), point("", 50.0, misses=500)])

    assert [one.met for one in some.targets()] == [True, True]
    assert some.targets()[1].value == 30.0
    assert [one.met for one in none.targets()] == [True, False]
    assert none.targets()[1].facts["extra_fnir"] == "0.05"


def test_a_gallery_too_small_for_the_target_gets_no_verdict() -> None:
    small = nist.Results({}, [point("exhaustive", 1.0, templates=1000)], [])

    assert small.targets() == []


async def test_a_call_counts_from_when_it_was_due() -> None:
    """Both are due at once and the first takes 3 s of the only worker, so the second took 5."""
    clock = ManualClock()
    took_s = [3.0, 2.0]

    async def search(number: int) -> None:
        await clock.advance(took_s[number])

    done = await arrivals.play(search, [0.0, 0.0], per_s=1.0, clock=clock)

    assert sorted(done.took_s) == [3.0, 5.0]


def test_moments_come_at_the_wanted_rate_and_the_same_for_a_seed() -> None:
    due_s = arrivals.moments(50.0, 5000, seed=1)

    assert due_s == arrivals.moments(50.0, 5000, seed=1)
    assert due_s == sorted(due_s)
    assert due_s[-1] == pytest.approx(100, rel=0.05)


def window(p99_s: float, enrolled_per_s: float = 0.0) -> Window:
    return Window(Answered(1.0, [p99_s], 1.0), enrolled_per_s)


def test_enrolment_is_compared_with_the_rest_around_it() -> None:
    windows = [window(0.1), window(0.3, 10_000), window(0.2), window(0.2, 9000), window(0.2)]
    found = updates.Results({}, windows, Erasures())

    assert found.ratios() == pytest.approx([2.0, 1.0])
    assert [one.met for one in found.targets()] == [False, True, True]


def test_only_who_was_erased_before_the_question_is_wrong() -> None:
    covered = Coverage(1.0, 1, 1)
    named = (Candidate("s-1", "t-1", 0.9, 1), Candidate("s-2", "t-2", 0.8, 2))
    answer = CandidateList(named, covered)
    erasures = Erasures({"s-1": 5.0, "s-3": 1.0})

    erasures.check([answer], asked_s=4.0)
    before = erasures.wrong
    erasures.check([answer, answer], asked_s=6.0)

    assert (before, erasures.wrong, erasures.answers) == (0, 2, 3)
