"""A node with a GPU that its processor plays, and that fails while a file is there.

    python -m tests.fakes.played_gpu FILE SETTINGS...

It is started in the place of indexd. The first word of the file says how the GPU fails: `full`, or
`lost`. Few rows are enough for it to have codes of its own.
"""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from typing_extensions import override

from facegrid.clock import Clock
from facegrid.telemetry.log import Logger
from indexd import server
from indexd.ann.gpu.arrays import DeviceFullError, DeviceLostError, HostArrays
from indexd.ann.gpu.engine import GpuEngine
from indexd.ann.gpu.self_test import self_test
from indexd.ann.gpu.unit import Unit
from tests.fakes.device_units import HostScanners, small_sizes

ERRORS = {"full": DeviceFullError, "lost": DeviceLostError}


class PlayedGpu(HostArrays):
    """Fails as a file says."""

    def __init__(self, rule: Path) -> None:
        self._rule = rule

    @property
    @override
    def name(self) -> str:
        return "gpu:0"

    @override
    @contextmanager
    def guarded(self) -> Iterator[None]:
        yield
        if self._rule.exists():
            word = self._rule.read_text(encoding="utf-8")
            raise ERRORS[word](f"the played GPU is {word}")


def main() -> None:
    """Run a node."""
    rule = Path(sys.argv.pop(1))

    def opened(_wanted: str, logger: Logger, clock: Clock) -> GpuEngine:
        arrays = PlayedGpu(rule)
        unit = Unit(arrays, lambda: HostScanners(arrays.get), logger, clock=clock)
        self_test(unit)
        return GpuEngine([unit], logger)

    there: Any = server
    assert there.open_devices is not None
    there.open_devices = opened
    with small_sizes():
        sys.exit(importlib.import_module("indexd.__main__").main())


if __name__ == "__main__":
    main()
