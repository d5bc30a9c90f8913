"""Arrays in the memory of a device, and the little that is done with them there.

What NumPy and PyTorch write alike (slices, products, sums, comparisons) is used as it is; the rest
stands here. `HostArrays` computes with NumPy in ordinary memory: all that is built on this runs on
every machine, and both kinds answer to one suite (tests/conformance/test_device_arrays.py).
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import psutil

Dtype = Literal["bool", "int8", "int32", "int64", "float32", "float64"]


class DeviceError(Exception):
    """A device failed. What was asked of it is asked of the processor instead."""


class DeviceFullError(DeviceError):
    """Its memory is full."""


class DeviceLostError(DeviceError):
    """It does not work any more."""


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """What a device has, in bytes."""

    free_bytes: int
    total_bytes: int


class Arrays(Protocol):
    """Makes and reads arrays of one device. One thread at a time uses it."""

    @property
    def name(self) -> str:
        """Which device: `gpu:0`, or `cpu`."""

    @property
    def title(self) -> str:
        """What its maker calls it."""

    def use(self) -> None:
        """Let the current thread work with this device."""

    def memory(self) -> DeviceMemory:
        """Return what is free."""

    def guarded(self) -> AbstractContextManager[None]:
        """Turn whatever a device fails with inside into a DeviceError."""

    def zeros(self, shape: tuple[int, ...], dtype: Dtype) -> Any:
        """Return a new array."""

    def normal(self, shape: tuple[int, ...], seed: int) -> Any:
        """Return float32 numbers drawn from a normal distribution."""

    def put(self, array: npt.NDArray[Any]) -> Any:
        """Return a copy on the device."""

    def get(self, array: Any) -> npt.NDArray[Any]:
        """Return an array of the device as one of NumPy."""

    def widen(self, array: Any, dtype: Dtype) -> Any:
        """Return an array with every value as another type."""

    def take(self, array: Any, rows: Any) -> Any:
        """Return some rows, numbered by an array of the device, int64 [n]."""

    def root(self, array: Any) -> Any:
        """Return the square roots."""

    def top(self, values: Any, count: int) -> tuple[Any, Any]:
        """Return the `count` largest of each row and their places, in no order that matters."""

    def pick(self, array: Any, places: Any) -> Any:
        """Return array[i, places[i, j]] for all i and j."""

    def joined(self, arrays: list[Any]) -> Any:
        """Return matrices side by side."""


class HostArrays:
    """NumPy's, in ordinary memory. See `Arrays`."""

    @property
    def name(self) -> str:
        """See `Arrays`."""
        return "cpu"

    @property
    def title(self) -> str:
        """See `Arrays`."""
        return "processor"

    def use(self) -> None:
        """See `Arrays`."""

    def memory(self) -> DeviceMemory:
        """See `Arrays`."""
        memory = psutil.virtual_memory()
        return DeviceMemory(memory.available, memory.total)

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """See `Arrays`."""
        try:
            yield
        except MemoryError as error:
            raise DeviceFullError(str(error)) from error

    def zeros(self, shape: tuple[int, ...], dtype: Dtype) -> Any:
        """See `Arrays`."""
        return np.zeros(shape, dtype)

    def normal(self, shape: tuple[int, ...], seed: int) -> Any:
        """See `Arrays`."""
        return np.random.default_rng(seed).standard_normal(shape, np.float32)

    def put(self, array: npt.NDArray[Any]) -> Any:
        """See `Arrays`."""
        return array.copy()

    def get(self, array: Any) -> npt.NDArray[Any]:
        """See `Arrays`."""
        return np.asarray(array)

    def widen(self, array: Any, dtype: Dtype) -> Any:
        """See `Arrays`."""
        return array.astype(dtype)

    def take(self, array: Any, rows: Any) -> Any:
        """See `Arrays`."""
        return array.take(rows, axis=0)

    def root(self, array: Any) -> Any:
        """See `Arrays`."""
        return np.sqrt(array)

    def top(self, values: Any, count: int) -> tuple[Any, Any]:
        """See `Arrays`."""
        width = values.shape[1]
        if count >= width:
            return values, np.broadcast_to(np.arange(width), values.shape)
        places = np.argpartition(values, width - count, axis=1)[:, width - count :]
        return np.take_along_axis(values, places, axis=1), places

    def pick(self, array: Any, places: Any) -> Any:
        """See `Arrays`."""
        return np.take_along_axis(array, places, axis=1)

    def joined(self, arrays: list[Any]) -> Any:
        """See `Arrays`."""
        return np.concatenate(arrays, axis=1)
