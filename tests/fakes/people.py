"""Synthetic people in a real gallery: enrolled as a whole, and asked for again."""

import numpy as np

import facegrid
from facegrid.testing.synthetic import SyntheticGallery

BATCH_ROWS = 1000

Answers = list[list[tuple[str, str, float]]]


def enrol_all(client: facegrid.Client, gallery: str, people: SyntheticGallery) -> facegrid.Token:
    """Enrol everybody in one stream."""
    batches = (
        facegrid.EnrolBatch(block.template_ids, block.subject_ids, block.vectors)
        for block in people.blocks(BATCH_ROWS)
    )
    return client.enrol_stream(gallery, batches)


def settle(client: facegrid.Client, gallery: str) -> None:
    """Return when every copy that may answer has all that was acknowledged before.

    A copy that follows may be behind for as long as limits.STALENESS_S. An erasure is acknowledged
    when all have applied it, whomever it names; among so many names some fall into every shard.
    """
    client.erase(gallery, subject_ids=[f"nobody-{number}" for number in range(64)])


def answers(
    client: facegrid.Client, gallery: str, probes: np.ndarray, **options: object
) -> Answers:
    """Candidate lists as plain values, scores to the last bit."""
    lists = client.identify(gallery, probes, k=5, **options)  # type: ignore[arg-type]  # few kinds
    return [[(c.subject_id, c.template_id, c.score) for c in one.candidates] for one in lists]


def probes_of(people: SyntheticGallery, count: int = 64) -> np.ndarray:
    """Return probes of people who are enrolled, and of some who are not."""
    return people.probes(count, seed=9).vectors
