"""A clock whose waits take no time: for code that retries against something real."""

from typing_extensions import override

from facegrid.clock import SystemClock


class SkippingClock(SystemClock):
    """Real time goes on; a wait ends at once and is counted as if it had been waited."""

    def __init__(self) -> None:
        self.skipped_s = 0.0

    @override
    def now_s(self) -> float:
        """Return the time with all waits."""
        return super().now_s() + self.skipped_s

    @override
    async def sleep(self, duration_s: float) -> None:
        """Skip the wait, and let others run."""
        self.skipped_s += duration_s
        await super().sleep(0)
