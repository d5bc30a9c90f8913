"""Synthetic galleries: the same from the same seed, in any order, and shaped as they claim."""

import itertools

import numpy as np
import pytest

from facegrid.testing.synthetic import BLOCK_TEMPLATES, SyntheticGallery

DIM = 64


def gallery(*, templates_count: int = 3000, seed: int = 7, alpha: float = 0.5) -> SyntheticGallery:
    return SyntheticGallery(DIM, templates_count=templates_count, seed=seed, alpha=alpha)


def test_a_block_depends_on_seed_and_number_alone() -> None:
    whole = gallery(templates_count=100_000).block(2)

    again = gallery(templates_count=3000).block(2)

    assert again.template_ids == whole.template_ids[: len(again)]
    assert again.subject_ids == whole.subject_ids[: len(again)]
    assert np.array_equal(again.vectors, whole.vectors[: len(again)])
    assert not np.array_equal(gallery(seed=8).block(2).vectors, again.vectors)


@pytest.mark.parametrize("rows", [1, 256, BLOCK_TEMPLATES, 4096])
def test_pieces_of_any_size_are_the_same_gallery(rows: int) -> None:
    made = gallery(templates_count=2700)

    pieces = list(made.blocks(rows))

    assert [len(piece) for piece in pieces[:-1]] == [rows] * (len(pieces) - 1)
    assert np.array_equal(
        np.concatenate([piece.vectors for piece in pieces]),
        np.concatenate([made.block(number).vectors for number in range(made.blocks_count)]),
    )
    ids = list(itertools.chain.from_iterable(piece.template_ids for piece in pieces))
    assert ids == [f"t-{number:07d}" for number in range(1, 2701)]


def test_subjects_have_1_3_templates_in_the_mean_and_are_counted() -> None:
    made = gallery(templates_count=1300)

    block = made.block(0)

    assert len(set(block.subject_ids)) == 1000 == made.subjects_count
    assert block.subject_ids[:3] == ["s-0000001", "s-0000002", "s-0000003"]
    assert block.subject_ids[8:13] == ["s-0000009"] * 2 + ["s-0000010"] * 3


def test_rows_are_unit_float32() -> None:
    vectors = gallery().block(0).vectors

    assert vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_half_the_probes_are_mated_and_resemble_their_mates_only() -> None:
    made = SyntheticGallery(512, templates_count=2600, seed=3)
    block = next(made.blocks(2600))

    probes = made.probes(1001, seed=5)

    scores = probes.vectors @ block.vectors.T
    columns = {subject: column for column, subject in enumerate(block.subject_ids)}
    mated = [(row, mate) for row, mate in enumerate(probes.mate_subject_ids) if mate is not None]
    own = np.array([scores[row, columns[mate]] for row, mate in mated])
    strangers = scores[[row for row, mate in enumerate(probes.mate_subject_ids) if mate is None]]
    assert len(mated) == 500 == len({mate for _, mate in mated})
    assert abs(own.mean() - 0.85 * 0.75) < 0.02
    assert 0.06 < own.std() < 0.12
    assert abs(strangers.mean()) < 0.01
    assert 0.04 < strangers.std() < 0.07
    assert np.array_equal(made.probes(1001, seed=5).vectors, probes.vectors)
    assert not np.array_equal(made.probes(1001, seed=6).vectors, probes.vectors)


@pytest.mark.parametrize(("alpha", "low", "high"), [(0.5, 350, 400), (0.0, 480, 512)])
def test_alpha_sets_the_effective_dimension(alpha: float, low: float, high: float) -> None:
    made = SyntheticGallery(512, templates_count=26_000, seed=1, alpha=alpha)
    vectors = np.concatenate([piece.vectors for piece in made.blocks(4096)])

    variances = np.linalg.eigvalsh(np.cov(vectors.T))

    # 26,000 rows make the estimate a little low.
    assert low < variances.sum() ** 2 / (variances**2).sum() < high


def test_parameters_say_what_it_is_made_from() -> None:
    assert gallery().parameters() == {
        "generator": "facegrid.testing.synthetic",
        "dim": "64",
        "templates": "3000",
        "subjects": "2309",
        "seed": "7",
        "alpha": "0.5",
        "groups": "8 of share 0.01",
        "gallery_spread": "0.85 sd 0.05",
        "probe_spread": "0.75 sd 0.1",
    }
