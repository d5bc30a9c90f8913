"""Devices to test with: one that the processor plays, and the GPU of this machine if any."""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from facegrid.clock import Clock, SystemClock
from facegrid.telemetry.log import get_logger
from facegrid.testing.manual_clock import ManualClock
from indexd.ann.gpu import open as opening
from indexd.ann.gpu import resident
from indexd.ann.gpu.arrays import Arrays, HostArrays
from indexd.ann.gpu.engine import GpuEngine
from indexd.ann.gpu.scanner import HostScanners
from indexd.ann.gpu.torch_arrays import TorchArrays
from indexd.ann.gpu.unit import Unit

LOGGER = get_logger("tests")


@contextmanager
def small_sizes() -> Iterator[None]:
    """Let a few hundred rows be coded, in slices, with a tail beside them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resident, "CODED_ROWS_MIN", 200)
        patch.setattr(resident, "TAIL_ROWS_MAX", 100)
        patch.setattr(resident, "SLICE_ROWS", 300)
        patch.setattr(resident, "LIST_ROWS", 64)
        yield


def played_unit(
    arrays: Arrays | None = None, memory_bytes: int = 1 << 30, clock: Clock | None = None
) -> Unit:
    """Return a device that the processor plays."""
    arrays = arrays or HostArrays()
    return Unit(
        arrays,
        lambda: HostScanners(arrays.get),
        LOGGER,
        clock=clock or ManualClock(),
        memory_bytes=memory_bytes,
    )


def torch_arrays() -> TorchArrays:
    """Return arrays of PyTorch on the processor, or skip the test that asked for them."""
    if importlib.util.find_spec("torch") is None:
        pytest.skip("PyTorch is not installed")
    return TorchArrays(importlib.import_module("torch"), None)


def gpu_unit() -> Unit:
    """Return the first GPU, or skip the test that asked for it."""
    problem = opening.problem()
    if problem is not None:
        pytest.skip(f"no GPU: {problem}")
    return opening.unit(0, LOGGER, SystemClock())


def settle(engine: GpuEngine) -> None:
    """Wait until the devices have nothing to do."""
    for unit in engine.units:
        while unit.at_work:
            unit.do(lambda: None).result()
