"""Finds the GPUs of a machine, and says why there are none."""

import importlib
from importlib import metadata
from typing import Any, Final

import faiss

from facegrid.clock import Clock
from facegrid.errors import FacegridError, InvalidError, UnavailableError
from facegrid.telemetry.log import Logger
from indexd.ann.gpu.engine import GpuEngine
from indexd.ann.gpu.scanner import GpuScanners
from indexd.ann.gpu.self_test import self_test
from indexd.ann.gpu.torch_arrays import TorchArrays
from indexd.ann.gpu.unit import Unit

AUTO: Final = "auto"
PROCESSOR: Final = "cpu"
GPU: Final = "gpu:"
PACKAGES: Final = ("faiss-cpu", "faiss-gpu", "faiss-gpu-cuvs")
"""Each brings the module `faiss`; whichever was installed last has overwritten the others."""


def check_packages() -> None:
    """Raise InvalidError where several packages bring faiss (FAISS_TWICE)."""
    there = [name for name in PACKAGES if _installed(name)]
    if len(there) > 1:
        raise InvalidError(
            f"packages that overwrite one another are installed: {', '.join(there)};"
            " uninstall all of them, then install one of facegrid[cpu], facegrid[gpu] and"
            " facegrid[gpu-cuda12]",
            reason="FAISS_TWICE",
            packages=",".join(there),
        )


def problem() -> str | None:
    """Return why no GPU can be used; None: one can."""
    if not hasattr(faiss, "StandardGpuResources"):
        return "this faiss is for processors only (facegrid[gpu] brings the other)"
    try:
        torch: Any = importlib.import_module("torch")
    except ImportError:
        return "PyTorch is not installed (facegrid[gpu] brings it)"
    if not faiss.get_num_gpus():
        return "faiss sees no GPU"
    if not torch.cuda.is_available():
        return "PyTorch sees no GPU"
    return None


def unit(number: int, logger: Logger, clock: Clock) -> Unit:
    """Return a GPU, tried out.

    Raises:
        FacegridError: it does not do what it should; see `indexd.ann.gpu.self_test`.
    """
    arrays = TorchArrays(importlib.import_module("torch"), number)
    opened = Unit(arrays, lambda: GpuScanners(number, arrays.put, arrays.get), logger, clock=clock)
    try:
        self_test(opened)
    except FacegridError:
        opened.close()
        raise
    return opened


def open_devices(wanted: str, logger: Logger, clock: Clock) -> GpuEngine | None:
    """Return what searches on the devices wanted; None: the processor alone does.

    Args:
        wanted: `auto` for all GPUs there are, `cpu` for none, or some as `gpu:0,gpu:1`.
        logger: told what is used, once.
        clock: for pauses after a device was full.

    Raises:
        InvalidError: several packages bring faiss (FAISS_TWICE).
        UnavailableError: a GPU that is asked for by name is not there (NO_DEVICE).
    """
    check_packages()
    if wanted == PROCESSOR:
        return None
    reason = problem()
    if wanted == AUTO and reason is not None:
        logger.info("searching on the processor", why=reason)
        return None
    count = 0 if reason is not None else faiss.get_num_gpus()
    names = [f"{GPU}{number}" for number in range(count)] if wanted == AUTO else wanted.split(",")
    numbers = [int(name.removeprefix(GPU)) for name in names]
    absent = [number for number in numbers if number >= count]
    if absent:
        raise UnavailableError(
            f"there is no device {GPU}{absent[0]}: {reason or f'there are {count}'}",
            reason="NO_DEVICE",
            device=f"{GPU}{absent[0]}",
        )
    engine = GpuEngine([unit(number, logger, clock) for number in dict.fromkeys(numbers)], logger)
    logger.info("searching on devices", devices=[one.name for one in engine.units])
    return engine


def _installed(name: str) -> bool:
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return False
    return True
