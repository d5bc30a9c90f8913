"""Faults: which, when and for how long, from a seed; and how each is inflicted and healed."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from typing_extensions import override

from bench.chaos.links import link
from bench.chaos.proxy import Link, Proxies
from facegrid.errors import UnavailableError
from fgctl.local import processes
from fgctl.local.cluster import LocalCluster

Kind = Literal[
    "kill node",
    "kill node twice",
    "kill router",
    "etcd away",
    "no majority",
    "pause node",
    "restart node",
    "hold link",
    "cut link",
    "slow link",
    "one-way link",
    "no etcd",
    "no store",
    "lose node",
]

LASTS_S: dict[Kind, tuple[float, float]] = {
    "kill node": (0.0, 3.0),
    "kill node twice": (0.2, 2.0),
    "kill router": (0.0, 2.0),
    "etcd away": (1.0, 5.0),
    "no majority": (1.0, 5.0),
    "pause node": (2.0, 8.0),
    "restart node": (0.0, 1.0),
    "hold link": (2.0, 8.0),
    "cut link": (0.5, 3.0),
    "slow link": (1.0, 4.0),
    "one-way link": (2.0, 8.0),
    "no etcd": (2.0, 8.0),
    "no store": (1.0, 5.0),
    "lose node": (8.0, 12.0),
}
"""How long a fault lasts before it is mended; starting a process again comes on top."""
ROUND: tuple[Kind, ...] = (*LASTS_S, "kill node", "kill node")
CUTS: tuple[Kind, ...] = ("hold link", "cut link", "slow link", "one-way link", "no etcd")
STOP_GRACE_S = 30.0
SLOW_S = 0.05
HURTS: dict[str, Callable[[Link], None]] = {
    "hold link": lambda one: one.hold(),
    "cut link": lambda one: one.cut(),
    "slow link": lambda one: one.slow(SLOW_S),
    "one-way link": lambda one: one.hold("back"),
}
"""What is done to the link to a node."""


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
            elif kind in {"etcd away", "no majority"}:
                target = f"etcd{rng.integers(etcd) + 1}"
            else:
                target = f"n{rng.integers(nodes) + 1}"
            yield Fault(kind, target, float(rng.uniform(*LASTS_S[kind])))


class Saboteur:
    """Inflicts faults, one at a time; each is mended before `inflict` returns.

    Args:
        cluster: a running one.
        proxies: with a link for every node, by its id, and those of bench.chaos.links.
        rules: the folder of the nodes' failpoints.
        stop: ends a fault early.

    Attributes:
        inflicted: how often each kind.
        kills_count: processes ended with SIGKILL.
    """

    def __init__(
        self, cluster: LocalCluster, proxies: Proxies, rules: Path, stop: threading.Event
    ) -> None:
        self._cluster = cluster
        self._rules = rules
        self._proxies = proxies
        self._stop = stop
        self.inflicted: Counter[Kind] = Counter()
        self.kills_count = 0

    @property
    def cuts_count(self) -> int:
        """Links held, in both directions or one, cut or slowed."""
        return sum(self.inflicted[kind] for kind in CUTS)

    def inflict(self, fault: Fault) -> None:
        """Let a fault happen, last and be mended."""
        self.inflicted[fault.kind] += 1
        match fault.kind:
            case "kill node" | "kill router" | "lose node":
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
            case "no majority":
                self._no_majority(fault)
            case "no etcd":
                names = [
                    link(fault.target, one.name) for one in self._cluster.record.of_kind("etcd")
                ]
                self._hurt_links(names, lambda one: one.hold(), fault)
            case "no store":
                self._cut_off_from_store(fault)
            case "hold link" | "cut link" | "slow link" | "one-way link":
                self._hurt_links([fault.target], HURTS[fault.kind], fault)

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
        processes.pause([record])
        try:
            self._stop.wait(fault.lasts_s)
        finally:
            processes.resume([record])

    def _etcd_away(self, fault: Fault) -> None:
        """Stop the only member, or kill one of three."""
        if len(self._cluster.record.of_kind("etcd")) == 1:
            self._cluster.stop_etcd()
            self._stop.wait(fault.lasts_s)
            self._cluster.start_etcd()
            return
        self._kill(fault)

    def _no_majority(self, fault: Fault) -> None:
        """Kill all members but one; the only one where there is one."""
        members = [one.name for one in self._cluster.record.of_kind("etcd")]
        doomed = [name for name in members if name != fault.target] or members
        self.kills_count += len(doomed)
        for name in doomed:
            self._cluster.kill_node(name)
        self._stop.wait(fault.lasts_s)
        self._cluster.start_etcd()

    def _hurt_links(
        self, names: Sequence[str], hurt: Callable[[Link], None], fault: Fault
    ) -> None:
        for name in names:
            self._proxies.change(name, hurt)
        try:
            self._stop.wait(fault.lasts_s)
        finally:
            for name in names:
                self._proxies.change(name, lambda one: one.heal())

    def _cut_off_from_store(self, fault: Fault) -> None:
        """Let a node's every request to the store fail, by its failpoints."""
        rules = self._rules / fault.target
        rules.write_text("store.* before error *\n")
        try:
            self._stop.wait(fault.lasts_s)
        finally:
            rules.unlink()
