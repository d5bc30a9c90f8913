"""Arrays of a device, whoever makes them, compute what NumPy does."""

from typing import Any

import numpy as np
import pytest

from indexd.ann.gpu.arrays import (
    Arrays,
    DeviceFullError,
    DeviceLostError,
    HostArrays,
)
from tests.fakes.device_units import gpu_unit, torch_arrays

RNG = np.random.default_rng(1)
WHOLE = RNG.integers(-127, 128, (50, 16)).astype(np.int8)
VALUES = RNG.standard_normal((4, 30)).astype(np.float32)


@pytest.fixture(params=["host", "torch", pytest.param("gpu", marks=pytest.mark.gpu)])
def arrays(request: pytest.FixtureRequest) -> Arrays:
    if request.param == "host":
        return HostArrays()
    if request.param == "gpu":
        return gpu_unit().arrays
    return torch_arrays()


def test_what_is_put_comes_back(arrays: Arrays) -> None:
    original: list[np.ndarray[Any, Any]] = [
        WHOLE,
        VALUES,
        WHOLE[3:9],
        np.broadcast_to(np.arange(4), (3, 4)),
        np.array([True, False]),
        np.empty((0, 5), np.float64),
    ]
    for one in original:
        back = arrays.get(arrays.put(one))
        assert back.dtype == one.dtype
        np.testing.assert_array_equal(back, one)


def test_a_copy_is_its_own(arrays: Arrays) -> None:
    original = WHOLE.copy()
    copied = arrays.put(original)
    original[:] = 0

    np.testing.assert_array_equal(arrays.get(copied), WHOLE)


def test_rows_are_written_and_taken_by_number(arrays: Arrays) -> None:
    space = arrays.zeros((80, 16), "int8")
    space[5:55] = arrays.put(WHOLE)
    numbers = np.array([54, 5, 0, 17, 17])

    taken = arrays.get(arrays.take(space, arrays.put(numbers)))

    expected = np.vstack([np.zeros((5, 16), np.int8), WHOLE, np.zeros((25, 16), np.int8)])
    np.testing.assert_array_equal(taken, expected[numbers])
    space[arrays.put(np.array([1, 3]))] = arrays.put(WHOLE[:2])
    np.testing.assert_array_equal(arrays.get(space)[[1, 3]], WHOLE[:2])


def test_products_of_whole_numbers_are_exact(arrays: Arrays) -> None:
    wide = arrays.widen(arrays.put(WHOLE), "float32")

    product = arrays.get(wide @ wide.T)

    expected = WHOLE.astype(np.int64) @ WHOLE.T.astype(np.int64)
    np.testing.assert_array_equal(product, expected)


def test_batches_of_products_in_float64_are_exact(arrays: Arrays) -> None:
    rows = RNG.integers(-127, 128, (6, 9, 512)).astype(np.int8)
    probes = RNG.integers(-16000, 16000, (6, 512)).astype(np.float64)

    dots = arrays.get(arrays.widen(arrays.put(rows), "float64") @ arrays.put(probes)[:, :, None])

    expected = np.einsum("ijk,ik->ij", rows.astype(np.int64), probes.astype(np.int64))
    np.testing.assert_array_equal(dots[..., 0], expected)


def test_roots(arrays: Arrays) -> None:
    squares = RNG.integers(1, 1 << 23, 4000).astype(np.int32)

    roots = arrays.get(arrays.root(arrays.widen(arrays.put(squares), "float32")))

    np.testing.assert_allclose(roots, np.sqrt(squares.astype(np.float64)), rtol=3e-7)


@pytest.mark.parametrize("count", [1, 7, 30, 99])
def test_the_largest_of_each_row(arrays: Arrays, count: int) -> None:
    values, places = arrays.top(arrays.put(VALUES), count)

    expected = -np.sort(-VALUES, axis=1)[:, :count]
    np.testing.assert_array_equal(-np.sort(-arrays.get(values), axis=1), expected)
    np.testing.assert_array_equal(
        np.take_along_axis(VALUES, arrays.get(places), axis=1), arrays.get(values)
    )
    picked = arrays.pick(arrays.put(VALUES), places)
    np.testing.assert_array_equal(arrays.get(picked), arrays.get(values))


def test_matrices_side_by_side(arrays: Arrays) -> None:
    joined = arrays.joined([arrays.put(VALUES), arrays.put(VALUES[:, :3])])

    np.testing.assert_array_equal(arrays.get(joined), np.hstack([VALUES, VALUES[:, :3]]))


def test_failures_say_whether_memory_is_short(arrays: Arrays) -> None:
    with pytest.raises(DeviceFullError), arrays.guarded():
        raise MemoryError
    assert 0 < arrays.memory().free_bytes <= arrays.memory().total_bytes


def test_what_fails_in_a_library_is_told_apart(arrays: Arrays) -> None:
    if isinstance(arrays, HostArrays):
        pytest.skip("NumPy has one way to fail")
    for message in ("CUDA out of memory. Tried to allocate", "Error: cudaMalloc error"):
        with pytest.raises(DeviceFullError), arrays.guarded():
            raise RuntimeError(message)
    with pytest.raises(DeviceLostError), arrays.guarded():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
