"""Vectors: what is refused, how rows are rounded, and that a score has one value."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from facegrid import limits, vectors
from facegrid.errors import InvalidError
from facegrid.vectors import Float32, Int8


def random_rows(count: int, dim: int, seed: int) -> Float32:
    x = np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def exact_cosines(probes: vectors.Probes, codes: Int8) -> Float32:
    """In Python integers, where nothing is ever rounded."""
    whole = (probes.high * vectors.PROBE_STEP + probes.low).astype(int).tolist()
    rows = []
    for i, probe in enumerate(whole):
        values = []
        for code in codes[i].tolist():
            dot = sum(a * b for a, b in zip(probe, code, strict=True))
            norm = np.sqrt(np.float64(sum(a * a for a in probe)))
            norms = norm * np.sqrt(np.float64(sum(b * b for b in code)))
            values.append(np.float32(np.clip(np.float64(dot) / norms, -1, 1)))
        rows.append(values)
    return np.array(rows, np.float32).reshape(codes.shape[:2])


def components(dim: int) -> st.SearchStrategy[Float32]:
    """Vectors with something in them, of any direction."""
    finite = st.floats(-1, 1, width=32, allow_subnormal=False)
    return hnp.arrays(np.float32, (3, dim), elements=finite).filter(
        lambda x: bool((np.abs(x).max(axis=1) > 0.01).all())
    )


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_bytes_become_rows(dtype: vectors.Dtype) -> None:
    x = random_rows(3, 8, 1).astype(dtype)

    decoded = vectors.decode(x.tobytes(), dim=8, dtype=dtype)

    assert decoded.dtype == np.float32
    np.testing.assert_array_equal(decoded, x.astype(np.float32))


def test_no_bytes_are_no_rows() -> None:
    assert vectors.decode(b"", dim=8, dtype="float32").shape == (0, 8)


@pytest.mark.parametrize("data_bytes", [1, 31, 33])
def test_part_of_a_row_is_refused(data_bytes: int) -> None:
    with pytest.raises(InvalidError) as caught:
        vectors.decode(bytes(data_bytes), dim=8, dtype="float32")
    assert caught.value.reason == "VECTOR_LENGTH"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (np.nan, "VECTOR_NOT_FINITE"),
        (np.inf, "VECTOR_NOT_FINITE"),
        (-np.inf, "VECTOR_NOT_FINITE"),
        (3e38, "VECTOR_NORM"),
        (2.0, "VECTOR_NORM"),
    ],
)
def test_the_row_that_is_no_vector_is_named(value: float, reason: str) -> None:
    x = random_rows(5, 16, 2)
    x[3, 4] = value

    with pytest.raises(InvalidError) as caught:
        vectors.check_rows(x)

    assert (caught.value.reason, caught.value.row) == (reason, 3)


def test_zero_and_short_vectors_are_refused() -> None:
    for factor in (0.0, 0.499):
        with pytest.raises(InvalidError, match="norm"):
            vectors.check_rows(random_rows(1, 16, 3) * np.float32(factor))


def test_norms_up_to_the_bounds_are_accepted() -> None:
    x = np.zeros((2, 8), np.float32)
    x[0, 0], x[1, 7] = limits.NORM_MIN, -limits.NORM_MAX

    vectors.check_rows(x)


@pytest.mark.parametrize("bits", vectors.COMPONENT_BITS_KNOWN)
@given(x=components(12))
def test_stored_rows_are_what_check_codes_accepts_and_round_once(x: Float32, bits: int) -> None:
    codes = vectors.quantize(x, bits)

    vectors.check_codes(codes, bits)
    vectors.check_codes(codes)
    assert np.abs(codes.astype(int)).max(axis=1).tolist() == [vectors.CODE_MAX] * 3
    np.testing.assert_array_equal(vectors.quantize(vectors.dequantize(codes), bits), codes)


def test_rows_of_four_bits_have_fifteen_values_evenly_spread() -> None:
    codes = vectors.quantize(random_rows(200, 64, 5), 4)

    found = np.unique(codes).astype(int)

    assert found.tolist() == vectors.CODE_OF_LEVEL.tolist()
    assert found.tolist() == [round(level * 127 / 7) for level in range(-7, 8)]


def test_a_row_that_was_rounded_to_eight_bits_is_none_of_four() -> None:
    codes = vectors.quantize(random_rows(3, 8, 6), 4)
    codes[2] = vectors.quantize(random_rows(1, 8, 6))[0]

    with pytest.raises(InvalidError) as caught:
        vectors.check_codes(codes, 4)

    assert (caught.value.reason, caught.value.row) == ("CODES_MALFORMED", 2)


@pytest.mark.parametrize(
    ("bits", "cosine", "shift", "spread"),
    [
        (8, 0.0, 0.0, 0.0003),
        (4, 0.0, 0.0, 0.0058),
        (8, 0.6, 0.0, 0.0003),
        (4, 0.6, -0.0055, 0.005),
    ],
)
def test_rounding_costs_what_is_stated(
    bits: int, cosine: float, shift: float, spread: float
) -> None:
    """Pairs of one cosine, 512 components: how much lower scores come out, and how they spread."""
    x, other = random_rows(4000, 512, 7), random_rows(4000, 512, 8)
    other -= np.einsum("ij,ij->i", other, x)[:, None] * x
    other /= np.linalg.norm(other, axis=1, keepdims=True)
    mates = np.float32(cosine) * x + np.float32(np.sqrt(1 - cosine**2)) * other
    codes = vectors.quantize(x, bits)

    off = np.einsum("ij,ij->i", vectors.dequantize(codes), mates) - cosine

    assert off.mean() == pytest.approx(shift, abs=0.0005)
    assert off.std() == pytest.approx(spread, rel=0.2)


@given(components(12), st.floats(0.125, 8, width=32))
def test_stored_rows_hardly_depend_on_the_norm(x: Float32, factor: float) -> None:
    first, second = vectors.quantize(x), vectors.quantize(x * np.float32(factor))

    assert np.abs(first.astype(int) - second.astype(int)).max() <= 1


@pytest.mark.parametrize(("column", "value"), [(0, -128), (0, 126)])
def test_codes_that_no_vector_rounds_to_are_refused(column: int, value: int) -> None:
    codes = vectors.quantize(random_rows(3, 8, 4))
    codes[1] = 0
    codes[1, column] = value

    with pytest.raises(InvalidError) as caught:
        vectors.check_codes(codes)
    assert (caught.value.reason, caught.value.row) == ("CODES_MALFORMED", 1)


@given(components(12))
def test_a_probe_is_split_without_loss(x: Float32) -> None:
    probes = vectors.prepare_probes(x)
    whole = probes.high * vectors.PROBE_STEP + probes.low

    assert np.abs(whole).max(axis=1).tolist() == [vectors.PROBE_MAX] * 3
    assert (np.abs(probes.high) <= 127).all()
    assert (np.abs(probes.low) <= 64).all()
    np.testing.assert_allclose(np.linalg.norm(probes.unit, axis=1), 1, rtol=1e-6)


@settings(max_examples=30)
@given(components(12), st.integers(0, 2**32 - 1))
def test_a_score_is_the_cosine_of_the_integers(x: Float32, seed: int) -> None:
    codes = vectors.quantize(random_rows(12, 12, seed)).reshape(3, 4, 12)
    norms = vectors.code_norms(codes.reshape(-1, 12)).reshape(3, 4)
    probes = vectors.prepare_probes(x)

    found = vectors.scores(probes, codes, norms)

    np.testing.assert_array_equal(found, exact_cosines(probes, codes))


def test_a_score_is_exact_at_the_widest_and_largest() -> None:
    """All components at their largest: the sums that come closest to 2**24."""
    codes = np.full((1, 3, limits.DIM_MAX), 127, np.int8)
    codes[0, 1, ::2] = -127
    codes[0, 2, 1:] = 126
    probes = vectors.prepare_probes(np.full((1, limits.DIM_MAX), 1 / 32, np.float32))

    found = vectors.scores(probes, codes, vectors.code_norms(codes[0])[None])

    np.testing.assert_array_equal(found, exact_cosines(probes, codes))
    assert found[0, :2].tolist() == [1.0, 0.0]


@pytest.mark.parametrize("dim", [8, 100, 512])
def test_a_score_has_the_same_bits_in_any_company(dim: int) -> None:
    probes = vectors.prepare_probes(random_rows(16, dim, 5))
    codes = vectors.quantize(random_rows(16 * 33, dim, 6)).reshape(16, 33, dim)
    norms = vectors.code_norms(codes.reshape(-1, dim)).reshape(16, 33)

    together = vectors.scores(probes, codes, norms)

    for i in range(16):
        one = slice(i, i + 1)
        for width in (1, 2, 7, 33):
            alone = vectors.scores(probes.part(one), codes[one, :width], norms[one, :width])
            np.testing.assert_array_equal(alone, together[one, :width])


def test_a_score_is_near_the_cosine_of_the_vectors() -> None:
    x, y = random_rows(64, 512, 7), random_rows(64, 512, 8)
    y = 0.6 * x + 0.8 * y
    codes = vectors.quantize(y)[:, None]
    truth = np.einsum("ij,ij->i", x, y) / np.linalg.norm(y, axis=1)

    found = vectors.scores(
        vectors.prepare_probes(x), codes, vectors.code_norms(codes[:, 0])[:, None]
    )

    assert np.abs(found[:, 0] - truth).max() < 2e-3
    assert np.abs(found[:, 0] - truth).mean() < 5e-4


def test_a_row_scores_one_with_itself() -> None:
    codes = vectors.quantize(random_rows(20, 512, 9))
    probes = vectors.prepare_probes(vectors.dequantize(codes))

    found = vectors.scores(probes, codes[:, None], vectors.code_norms(codes)[:, None])

    np.testing.assert_allclose(found, 1, atol=1e-6)
    assert (found <= 1).all()


def test_no_probes_and_no_rows_give_no_scores() -> None:
    none = vectors.prepare_probes(random_rows(1, 8, 1)).part(slice(0, 0))
    one = vectors.prepare_probes(random_rows(1, 8, 1))

    assert len(none) == 0
    assert vectors.scores(none, np.empty((0, 4, 8), np.int8), np.empty((0, 4))).shape == (0, 4)
    assert vectors.scores(one, np.empty((1, 0, 8), np.int8), np.empty((1, 0))).shape == (1, 0)
