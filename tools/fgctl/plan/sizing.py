"""The smallest cluster that does what is asked, or what stands against it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import count
from typing import Any, Final

import numpy as np

from facegrid import limits
from fgctl.plan import memory, queueing, service, storage
from fgctl.plan.calibration import Calibration, Float64
from fgctl.plan.demand import Demand, Machine
from fgctl.plan.memory import NodeMemory
from fgctl.plan.queueing import Beside, Latency
from fgctl.plan.service import BATCH_MAX, Load
from fgctl.plan.storage import Disk, Recovery

SHARDS_PER_NODE: Final = 4
"""So that the shards of a node that is lost can be spread over several others."""
COUNTS: Final = np.arange(1, BATCH_MAX + 1, dtype=np.float64)
LOOKED_AT: Final = 8
FULL: Final = 0.95
"""Of a node's memory may be full while another one is lost."""
WRITES_SHARE: Final = 0.5
"""Of what a node takes in at most, so that searches go on beside."""
ROUTER_BUSY: Final = 0.5
"""Share of the time that a router may be busy."""
HALF_ROWS: Final = 16
"""Probes that a router sends before the batch before is back: its setting coalesce_rows_half."""
NODES_MAX: Final = limits.SHARDS_MAX
NODES_EXACT: Final = 32
"""Up to here every number of nodes is tried, beyond that steps of one in sixteen."""


def router_waits(busy_share: float) -> float:
    """Return how many times as long a batch spends in a router where others are ahead: of
    Pollaczek and Khinchine, for batches that all take the same.
    """
    return 1 + busy_share / (2 * (1 - busy_share))


def _numbers() -> tuple[int, ...]:
    numbers = list(range(1, NODES_EXACT + 1))
    while numbers[-1] < NODES_MAX:
        numbers.append(min(numbers[-1] + -(-numbers[-1] // 16), NODES_MAX))
    return tuple(numbers)


NODES_TRIED: Final = _numbers()
"""The same for every demand: so a larger one never comes to fewer nodes by the steps alone."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How a gallery lies on nodes.

    Attributes:
        nodes: that there are.
        shards: of the gallery.
        copies: of each shard: the replicas asked, as far as there are nodes.
    """

    nodes: int
    shards: int
    copies: int

    @classmethod
    def of(cls, demand: Demand, nodes: int) -> "Shape":
        """Return how it lies on so many nodes."""
        wanted = nodes * SHARDS_PER_NODE
        loadable = int(-(-demand.templates_count // limits.LOAD_ROWS_MAX))
        shards = min(max(wanted, loadable), limits.SHARDS_MAX)
        return cls(nodes, shards, min(demand.replicas, nodes))

    def held_shards(self) -> int:
        """Return the shards of the fullest node, of all copies."""
        return -(-self.shards * self.copies // self.nodes)

    def asked_shards(self) -> int:
        """Return the shards that the busiest node is asked for in a batch: copies share them."""
        return -(-self.shards // self.nodes)

    def asked(self, demand: Demand) -> float:
        """Return the templates that the busiest node is asked for in a batch."""
        return demand.templates_count / self.shards * self.asked_shards()

    def held(self, demand: Demand) -> float:
        """Return the templates of the fullest node, of all copies."""
        return demand.templates_count / self.shards * self.held_shards()

    def survivors(self) -> "Shape":
        """Return it without one node, its copies made anew on the others."""
        nodes = max(self.nodes - 1, 1)
        return Shape(nodes, self.shards, min(self.copies, nodes))


@dataclass(frozen=True, slots=True)
class Broken:
    """A limit that cannot be kept.

    Attributes:
        limit: its name.
        value: what it would come to.
        need: what it must not exceed, or reach.
        unit: of both.
        why: in a sentence.
    """

    limit: str
    value: float
    need: float
    unit: str
    why: str

    @property
    def times(self) -> float:
        """By what factor it is missed, above 1."""
        low, high = sorted((self.value, self.need))
        return high / low if low > 0 else float("inf")


@dataclass(frozen=True, eq=False)
class Trial:
    """A demand on so many nodes: what it comes to. Worked out as far as it is looked at."""

    demand: Demand
    machine: Machine
    calibration: Calibration
    nodes: int

    @cached_property
    def shape(self) -> Shape:
        """How the gallery lies on the nodes."""
        return Shape.of(self.demand, self.nodes)

    @cached_property
    def survivors(self) -> Shape:
        """The same after the loss of one; as it is where one node is all there is."""
        return self.shape if self.nodes == 1 else self.shape.survivors()

    @cached_property
    def node_memory(self) -> NodeMemory:
        """Memory of the fullest node."""
        return self._memory(self.shape)

    @cached_property
    def memory_after_loss(self) -> float:
        """The same when another one is lost, and its copies are made anew."""
        return self._memory(self.survivors).peak

    @cached_property
    def device_bytes(self) -> float:
        """On the fullest device, when another one is lost."""
        held = self.survivors.held(self.demand)
        return memory.device_memory(self.demand, self.machine, held=held)

    @cached_property
    def scanned_share(self) -> float:
        """Share of the rows that a search of the profile looks at."""
        allowed = self.demand.profile.miss_rate_max(self.demand.miss_rate_max)
        return self.calibration.scanned_share(allowed)

    @cached_property
    def batches_s(self) -> Float64:
        """Median times of batches of 1 to BATCH_MAX probes in the nodes, while one is lost."""
        shape = self.survivors
        load = Load(
            rows=shape.asked(self.demand),
            shards=shape.asked_shards(),
            scanned_share=self.scanned_share,
        )
        times = service.node_s(self.demand, self.machine, self.calibration, load, COUNTS)
        return np.maximum.accumulate(times)

    @cached_property
    def routed_s(self) -> Float64:
        """Median times of such batches in client and router, without waiting for either."""
        times = service.router_s(self.calibration, self.survivors.nodes, COUNTS)
        return np.maximum.accumulate(times)

    @cached_property
    def slowest(self) -> service.Spread:
        """How the slowest of the nodes spreads around the median."""
        return service.slowest_of(self.calibration, self.survivors.nodes)

    @cached_property
    def single(self) -> service.Spread:
        """How one call spreads around the median."""
        return service.slowest_of(self.calibration, 1)

    @cached_property
    def alone_p99_s(self) -> float:
        """p99 of one probe that finds an idle cluster: it cannot be less."""
        nodes_s = self.slowest.quantile_s(float(self.batches_s[0]), 0.99)
        return nodes_s + self.single.quantile_s(float(self.routed_s[0]), 0.99)

    @cached_property
    def busy_share(self) -> float:
        """Share of the time that searches take in a node. One that is done before the slowest goes
        on with what another router sent.
        """
        return queueing.busy_share(self.batches_s, self.demand.probes_per_s, self.single)

    @cached_property
    def latency(self) -> Latency:
        """What probes see."""
        beside = Beside(self.slowest, router_waits(ROUTER_BUSY) * self.routed_s)
        return queueing.latency(self.batches_s, self.demand.probes_per_s, self.single, beside)

    @cached_property
    def writes_per_s(self) -> float:
        """Templates a second that the nodes can take in."""
        primaries = self.survivors.nodes / self.shape.copies
        return WRITES_SHARE * self.calibration.enrol_per_s * max(primaries, 1.0)

    @cached_property
    def problem(self) -> str:
        """The first limit that is broken, the cheapest looked at first; empty when none is."""
        return next((name for name, broken in self._limits() if broken), "")

    def _limits(self) -> Iterator[tuple[str, bool]]:
        """Yield each limit and whether it is broken; worked out only as far as it is looked at."""
        machine, demand = self.machine, self.demand
        yield "replicas", self.nodes < demand.replicas
        yield "memory", self.node_memory.peak > machine.memory_bytes * machine.memory_share_max
        yield "memory", self.memory_after_loss > machine.memory_bytes * FULL
        if machine.device is not None:
            yield "device memory", self.device_bytes > machine.device.memory_bytes
        yield "enrolments", self.writes_per_s < demand.enrolments_per_s
        yield "p99", self.alone_p99_s * 1000 > demand.p99_ms
        yield "throughput", self.busy_share > machine.busy_share_max
        yield "p99", self.latency.p99_s * 1000 > demand.p99_ms

    def _memory(self, shape: Shape) -> NodeMemory:
        return memory.node_memory(
            self.demand,
            self.machine,
            self.calibration,
            held=shape.held(self.demand),
            shard_rows=self.demand.templates_count / shape.shards,
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """A cluster that does what is asked; numbers as of `Trial`, for the fullest node.

    Attributes:
        trial: what it rests on.
        routers: processes, each on a core of its own.
        disk: what lies in the store.
        load_s: from the start of a node until it serves.
        recovery: what the loss of one node costs.
    """

    trial: Trial
    routers: int
    disk: Disk
    load_s: float
    recovery: Recovery


def planned(
    demand: Demand, machine: Machine, calibration: Calibration, *, nodes_max: int = NODES_MAX
) -> Plan | Broken:
    """Return the smallest cluster that does what is asked, or why there is none.

    Args:
        demand: what is asked.
        machine: of each node.
        calibration: what was measured.
        nodes_max: there shall be no more nodes.
    """
    trials = [
        Trial(demand, machine, calibration, nodes) for nodes in NODES_TRIED if nodes <= nodes_max
    ]
    if nodes_max not in NODES_TRIED:
        trials.append(Trial(demand, machine, calibration, nodes_max))
    for trial in trials:
        if not trial.problem:
            return plan_of(trial)
    return _explained(nearest(trials))


def plan_of(trial: Trial) -> Plan:
    """Return all that is to be known of a cluster."""
    demand, machine, calibration = trial.demand, trial.machine, trial.calibration
    held = trial.shape.held(demand)
    return Plan(
        trial=trial,
        routers=routers_needed(trial),
        disk=storage.disk(demand, calibration, shards=trial.shape.shards),
        load_s=storage.load_s(demand, machine, calibration, held=held),
        recovery=storage.recovery(demand, machine, calibration, nodes=trial.nodes, held=held),
    )


def routers_needed(trial: Trial) -> int:
    """Return how many router processes take the calls: one more than needed, which may be lost.

    The fewer there are, the more probes each sends together while it waits for its nodes, and the
    less it asks them.
    """
    demand, calibration = trial.demand, trial.calibration
    asking_s = service.asking_s(calibration, trial.shape.nodes)
    for routers in count(1):
        per_s = demand.probes_per_s / routers
        together = max(1.0, per_s * trial.latency.p50_s)
        # From so many on a router sends them in two halves.
        together /= 2 if together >= 2 * HALF_ROWS else 1
        busy = per_s * (calibration.router_call_cpu_s + asking_s / together)
        if busy <= ROUTER_BUSY:
            return routers + 1
    raise AssertionError("so many routers are idle")


def nearest(trials: Sequence[Trial]) -> Trial:
    """Return the trial that comes nearest: of those that hold everything the one with the lowest
    p99, where none is fast enough the least busy, where none holds everything the largest.
    """
    fitting = [one for one in trials if one.problem in {"p99", "throughput"}]
    if not fitting:
        return trials[-1]
    settled = [one for one in fitting if one.busy_share <= fitting[0].machine.busy_share_max]
    if not settled:
        return min(fitting, key=lambda one: one.busy_share)
    # In the order of what cannot be less, so that few queues are worked out.
    first = sorted(settled, key=lambda one: one.alone_p99_s)[:LOOKED_AT]
    return min(first, key=lambda one: one.latency.p99_s)


def _explained(trial: Trial) -> Broken:
    demand, machine = trial.demand, trial.machine
    match trial.problem:
        case "replicas":
            return Broken(
                "replicas", demand.replicas, trial.nodes, "nodes", "each copy needs its own node"
            )
        case "memory":
            value = max(
                trial.node_memory.peak / machine.memory_share_max, trial.memory_after_loss / FULL
            )
            why = f"{trial.nodes} nodes must hold all copies, also when one is lost"
            return Broken("memory of a node", value, machine.memory_bytes, "bytes", why)
        case "device memory":
            assert machine.device is not None, "only a device has such a limit"
            why = f"{trial.nodes} devices must hold the codes of all copies and scratch"
            return Broken(
                "device memory", trial.device_bytes, machine.device.memory_bytes, "bytes", why
            )
        case "enrolments":
            why = f"{trial.nodes} nodes take in no more while they search"
            return Broken(
                "enrolments", trial.writes_per_s, demand.enrolments_per_s, "templates/s", why
            )
        case "throughput":
            rate = demand.probes_per_s * machine.busy_share_max / trial.busy_share
            why = f"{trial.nodes} nodes would be busy {trial.busy_share:.0%} of the time"
            return Broken("throughput", rate, demand.probes_per_s, "probes/s", why)
        case _:
            return _explained_p99(trial)


def _explained_p99(trial: Trial) -> Broken:
    alone_ms = trial.alone_p99_s * 1000
    rows = trial.survivors.asked(trial.demand) * trial.scanned_share
    if alone_ms > trial.demand.p99_ms:
        why = (
            f"one probe alone takes that long: a node scans {rows:,.0f} rows on"
            f" {trial.machine.cores} cores, and a router asks {trial.survivors.nodes} nodes"
        )
        return Broken("p99", alone_ms, trial.demand.p99_ms, "ms", why)
    why = f"probes wait for one another: the {trial.nodes} nodes are {trial.busy_share:.0%} busy"
    return Broken("p99", trial.latency.p99_s * 1000, trial.demand.p99_ms, "ms", why)


def with_input(
    demand: Demand, machine: Machine, name: str, value: float
) -> tuple[Demand, Machine]:
    """Return both with one input replaced, by its name in either."""
    whole = {"dim", "replicas", "cores"}
    given: dict[str, Any] = {name: int(value) if name in whole else value}
    if name in Demand.__dataclass_fields__:
        return replace(demand, **given), machine
    return demand, replace(machine, **given)
