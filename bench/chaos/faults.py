"""Faults: which, when and for how long, from a seed; and how each is inflicted and healed."""

import signal
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from typing_extensions import override

from bench.chaos.proxy import Proxies
from facegrid.errors import UnavailableError
from fgctl.local import processes
from fgctl.local.cluster import LocalCluster

Kind = Literal[
    "kill node",
    "kill node twice",
    "kill router",
    "etcd away",
    "pause node",
    "restart node",
    "hold link",
    "cut link",
    "slow link",
]

LASTS_S: dict[Kind, tuple[float, float]] = {
    "kill node": (0.0, 3.0),
    "kill node twice": (0.2, 2.0),
    "kill router": (0.0, 2.0),
    "etcd away": (1.0, 5.0),
    "pause node": (2.0, 8.0),
    "restart node": (0.0, 1.0),
    "hold link": (2.0, 8.0),
    "cut link": (0.5, 3.0),
    "slow link": (1.0, 4.0),
}
"""How long a fault lasts before it is mended; starting a process again comes on top."""
ROUND: tuple[Kind, ...] = (*LASTS_S, "kill node", "kill node")
CUTS: tuple[Kind, ...] = ("hold link", "cut link", "slow link")
STOP_GRACE_S = 30.0
SLOW_S = 0.05


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: what, to whom, for how long."""

    kind: Kind
    target: str
    lasts_s: float

    @override
    def __str__(self) -> str:
        return f"{self.kind} target={self.target} lasts_s={self.lasts_s:.1f}"


def schedule(seed: int, *, nodes: int, routers: int, etcd: int) -> Iterator[Fault]:
    """Yield faults without end: a round of every kind in random order, then one in another.

    The first of them is always the death of a node, so that the shortest run has one.
    """
    rng = np.random.default_rng([seed, 0])
    first = True
    while True:
        kinds: list[Kind] = [ROUND[number] for number in rng.permutation(len(ROUND))]
        if first:
            kinds.remove("kill node")
            kinds.insert(0, "kill node")
        first = False
        for kind in kinds:
            if kind == "kill router":
                target = f"router{rng.integers(routers) + 1}"
            elif kind == "etcd away":
                target = f"etcd{rng.integers(etcd) + 1}"
            else:
                target = f"n{rng.integers(nodes) + 1}"
            yield Fault(kind, target, float(rng.uniform(*LASTS_S[kind])))


class Saboteur:
    """Inflicts faults, one at a time; each is mended before `inflict` returns.

    Args:
        cluster: a running one.
        proxies: with a link for every node, by its id.
        stop: ends a fault early.

    Attributes:
        inflicted: how often each kind.
        kills_count: processes ended with SIGKILL.
    """

    def __init__(self, cluster: LocalCluster, proxies: Proxies, stop: threading.Event) -> None:
        self._cluster = cluster
        self._proxies = proxies
        self._stop = stop
        self.inflicted: Counter[Kind] = Counter()
        self.kills_count = 0

    @property
    def cuts_count(self) -> int:
        """Links held, cut or slowed."""
        return sum(self.inflicted[kind] for kind in CUTS)

    def inflict(self, fault: Fault) -> None:
        """Let a fault happen, last and be mended."""
        self.inflicted[fault.kind] += 1
        match fault.kind:
            case "kill node" | "kill router":
                self._kill(fault)
            case "kill node twice":
                self._kill_twice(fault)
            case "restart node":
                record = self._cluster.record.named(fault.target)
                processes.stop([record], grace_s=STOP_GRACE_S)
                self._stop.wait(fault.lasts_s)
                self._cluster.start_node(fault.target)
            case "pause node":
                self._pause(fault)
            case "etcd away":
                self._etcd_away(fault)
            case "hold link" | "cut link" | "slow link":
                self._hurt_link(fault)

    def _kill(self, fault: Fault) -> None:
        self.kills_count += 1
        self._cluster.kill_node(fault.target)
        self._stop.wait(fault.lasts_s)
        self._cluster.start_node(fault.target)

    def _kill_twice(self, fault: Fault) -> None:
        """Kill a node, and again while it starts or opens its shards."""
        self.kills_count += 1
        self._cluster.kill_node(fault.target)
        try:
            self._cluster.start_node(fault.target, timeout_s=fault.lasts_s)
        except UnavailableError as error:
            if error.reason != "NOT_READY":
                raise
        self._kill(replace(fault, lasts_s=0.0))

    def _pause(self, fault: Fault) -> None:
        record = self._cluster.record.named(fault.target)
        processes.send([record], signal.SIGSTOP)
        try:
            self._stop.wait(fault.lasts_s)
        finally:
            processes.send([record], signal.SIGCONT)

    def _etcd_away(self, fault: Fault) -> None:
        """Stop the only member, or kill one of three."""
        if len(self._cluster.record.of_kind("etcd")) == 1:
            self._cluster.stop_etcd()
            self._stop.wait(fault.lasts_s)
            self._cluster.start_etcd()
            return
        self._kill(fault)

    def _hurt_link(self, fault: Fault) -> None:
        match fault.kind:
            case "hold link":
                self._proxies.change(fault.target, lambda link: link.hold())
            case "cut link":
                self._proxies.change(fault.target, lambda link: link.cut())
            case _:
                self._proxies.change(fault.target, lambda link: link.slow(SLOW_S))
        try:
            self._stop.wait(fault.lasts_s)
        finally:
            self._proxies.change(fault.target, lambda link: link.heal())
