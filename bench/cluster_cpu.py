"""Processor time by who used it: this process, the routers, the nodes."""

from dataclasses import dataclass

import psutil

from fgctl.cluster_file import Kind
from fgctl.local.cluster import LocalCluster
from fgctl.local.processes import find


@dataclass(frozen=True, slots=True)
class Used:
    """Processor time in s, with that of child processes."""

    client: float
    routers: float
    nodes: float

    @property
    def total(self) -> float:
        """All together."""
        return self.client + self.routers + self.nodes

    def since(self, before: "Used") -> "Used":
        """Return what was used since."""
        return Used(
            self.client - before.client,
            self.routers - before.routers,
            self.nodes - before.nodes,
        )

    def per(self, count: int) -> "Used":
        """Return the share of one of so many."""
        return Used(self.client / count, self.routers / count, self.nodes / count)


def used(cluster: LocalCluster) -> Used:
    """Return what was used so far by this process and by a cluster."""
    return Used(_cpu_s(psutil.Process()), _of(cluster, "router"), _of(cluster, "node"))


def _of(cluster: LocalCluster, kind: Kind) -> float:
    found = [find(process) for process in cluster.record.of_kind(kind)]
    return sum(
        _cpu_s(one)
        for process in found
        if process is not None
        for one in (process, *process.children())
    )


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
