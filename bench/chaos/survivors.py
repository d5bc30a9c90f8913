"""Whether all processes live that no fault has ended, and what those said that do not."""

from bench.chaos.tally import Tally
from fgctl.cluster_file import ProcessRecord
from fgctl.local import processes
from fgctl.local.cluster import LocalCluster


class Survivors:
    """Looks for processes that ended by themselves, or by somebody else.

    Args:
        cluster: the one that is hurt; of a process that a fault has ended it knows the next one.
        tally: told of every process that is gone, once.
    """

    def __init__(self, cluster: LocalCluster, tally: Tally) -> None:
        self._cluster = cluster
        self._tally = tally
        self._told: set[int] = set()

    def check(self, when: str) -> None:
        """Note who is gone; only while no fault lasts."""
        for record in self._cluster.record.processes:
            if record.pid not in self._told and processes.find(record) is None:
                self._told.add(record.pid)
                self._tally.problem(
                    f"{record.name} ended though nobody ended it, {when}: {self._last(record)}"
                )

    def testimony(self) -> list[str]:
        """Return what each process said last, for whoever looks for the cause of a failure."""
        lines: list[str] = []
        for record in self._cluster.record.processes:
            state = "gone" if processes.find(record) is None else "lives"
            lines.append(f"{record.name} {state}, its log ends:")
            lines.extend(f"  {line}" for line in self._tail(record).splitlines())
        return lines

    def _last(self, record: ProcessRecord) -> str:
        return (self._tail(record).splitlines() or ["it said nothing"])[-1]

    def _tail(self, record: ProcessRecord) -> str:
        return processes.log_tail(self._cluster.log(record.name))
