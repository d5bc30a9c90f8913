"""How many lists suffice for a score."""

import numpy as np

from facegrid.tuning import Effort, Step
from indexd.ann.steps import Steps

MANY = 1_000_000
EFFORT = Effort(nprobe=32, depth=64, steps=(Step(0.7, 2), Step(0.5, 8), Step(0.4, 14)))


def test_the_step_at_or_below_the_score_counts() -> None:
    steps = Steps(EFFORT, nlist=64, rows_count=MANY)
    scores = np.array([-2, 0.39, 0.4, 0.49, 0.5, 0.69, 0.7, 1], np.float64)

    assert steps.needed(scores).tolist() == [32, 32, 14, 14, 8, 8, 2, 2]
    assert (steps.first, steps.most) == (2, 32)


def test_lists_are_at_most_doubled_before_judging_again() -> None:
    steps = Steps(EFFORT, nlist=64, rows_count=MANY)
    looked, needed = np.array([2, 2, 8, 14, 2]), np.array([32, 8, 32, 32, 2])

    assert steps.next(looked, needed).tolist() == [8, 8, 32, 32, 2]


def test_without_steps_all_lists_of_the_effort_are_needed() -> None:
    steps = Steps(Effort(nprobe=100, depth=1), nlist=16, rows_count=MANY)

    assert (steps.first, steps.most) == (16, 16)
    assert steps.needed(np.array([0.9])).tolist() == [16]


def test_a_lower_score_never_needs_fewer_lists_whatever_the_steps_say() -> None:
    effort = Effort(nprobe=16, depth=1, steps=(Step(0.4, 3), Step(0.6, 7), Step(0.5, 5)))
    scores = np.array([0.3, 0.4, 0.5, 0.6])

    needed = Steps(effort, nlist=64, rows_count=MANY).needed(scores)

    assert needed.tolist() == [16, 7, 7, 7]


def test_steps_that_spare_little_are_left_out() -> None:
    few = Steps(EFFORT, nlist=64, rows_count=60_000)
    half = Steps(Effort(nprobe=8, depth=1, steps=(Step(0.5, 5),)), nlist=8, rows_count=MANY)

    assert (few.first, half.first) == (32, 8)
