"""What holds of every plan: more is never asked of fewer, and all parts add up."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgctl.plan.calibration import piecewise
from fgctl.plan.demand import DOUBLED, Demand, Machine
from fgctl.plan.doubling import doubled
from fgctl.plan.queueing import Beside, busy_share, latency
from fgctl.plan.service import Spread, slowest_of
from fgctl.plan.sizing import Plan, planned
from tests.fakes.plans import CALM

DEMANDS = st.builds(
    Demand,
    templates_count=st.floats(1e4, 5e7),
    probes_per_s=st.floats(0.1, 300),
    p99_ms=st.floats(20, 500),
    dim=st.sampled_from([128, 512, 1024]),
    replicas=st.integers(1, 3),
    enrolments_per_s=st.floats(0, 1000),
)
MACHINES = st.builds(Machine, cores=st.sampled_from([1, 4, 16, 64]))
FEW = 40


def nodes_of(demand: Demand, machine: Machine) -> float:
    found = planned(demand, machine, CALM, nodes_max=FEW)
    return found.trial.nodes if isinstance(found, Plan) else float("inf")


@settings(max_examples=6, deadline=None)
@given(DEMANDS, MACHINES, st.sampled_from(["templates_count", "probes_per_s", "enrolments_per_s"]))
def test_more_never_takes_fewer_nodes(demand: Demand, machine: Machine, name: str) -> None:
    more = replace(demand, **{name: getattr(demand, name) * 1.7 + 1})

    assert nodes_of(more, machine) >= nodes_of(demand, machine)


@settings(max_examples=4, deadline=None)
@given(DEMANDS, MACHINES)
def test_patience_and_cores_never_take_more_nodes(demand: Demand, machine: Machine) -> None:
    nodes = nodes_of(demand, machine)

    assert nodes_of(replace(demand, p99_ms=2 * demand.p99_ms), machine) <= nodes
    assert nodes_of(demand, replace(machine, cores=2 * machine.cores)) <= nodes


@settings(max_examples=8, deadline=None)
@given(DEMANDS, MACHINES)
def test_a_plan_keeps_what_it_was_asked(demand: Demand, machine: Machine) -> None:
    found = planned(demand, machine, CALM, nodes_max=FEW)

    if isinstance(found, Plan):
        trial = found.trial
        assert trial.latency.p50_s <= trial.latency.p99_s <= demand.p99_ms / 1000
        assert trial.node_memory.peak <= machine.memory_bytes * machine.memory_share_max
        assert trial.latency.busy_share <= machine.busy_share_max
        assert trial.nodes >= demand.replicas
        held = trial.shape.held(demand) * trial.nodes
        assert held >= demand.templates_count * trial.shape.copies * (1 - 1e-9)
        assert found.load_s >= CALM.start_s


def test_the_table_of_doubled_inputs_is_what_planning_anew_gives() -> None:
    demand, machine = Demand(3e6, 40, 120), Machine()

    table = doubled(demand, machine, CALM, nodes_max=FEW)

    assert [one.name for one in table] == list(DOUBLED)
    for one in table:
        if one.name in ("cores", "memory_bytes", "store_bytes_per_s"):
            kind = type(getattr(machine, one.name))
            again = planned(
                demand, replace(machine, **{one.name: kind(one.value)}), CALM, nodes_max=FEW
            )
        else:
            kind = type(getattr(demand, one.name))
            again = planned(
                replace(demand, **{one.name: kind(one.value)}), machine, CALM, nodes_max=FEW
            )
        assert isinstance(again, Plan)
        assert isinstance(one.outcome, Plan)
        assert one.outcome.trial.nodes == again.trial.nodes
        assert one.outcome.disk == again.disk


def played(
    batches_s: np.ndarray, arrivals: np.ndarray, spread: Spread, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return what probes saw in a queue that is played, one event after the other, and with how
    many they shared their batch.
    """
    seen, sizes = np.empty(len(arrivals)), np.empty(len(arrivals), np.int64)
    durations_s, cells = spread.of(batches_s), drawn(spread, len(arrivals), rng)
    now, first = 0.0, 0
    while first < len(arrivals):
        now = max(now, arrivals[first])
        last = min(int(np.searchsorted(arrivals, now, "right")), first + len(batches_s))
        now += durations_s[last - first - 1, cells[first]]
        seen[first:last], sizes[first:last] = now - arrivals[first:last], last - first
        first = last
    return seen, sizes


def drawn(spread: Spread, count: int, rng: np.random.Generator) -> np.ndarray:
    weights = spread.factors.weights
    return rng.choice(len(weights), count, p=weights / weights.sum())


@pytest.mark.parametrize("busy", [0.01, 0.1, 0.3, 0.5, 0.7])
def test_the_queue_that_is_computed_is_the_queue_that_is_played(busy: float) -> None:
    counts = np.arange(1, 257, dtype=np.float64)
    batches_s = 0.004 + piecewise(CALM.probes, CALM.row_s, counts) * 300_000
    slowest = slowest_of(CALM, 3)
    rate = busy / busy_share(batches_s, 1.0, slowest)

    found = latency(batches_s, rate, slowest)
    rng = np.random.default_rng(1)
    arrivals = np.cumsum(rng.exponential(1 / rate, 60_000))
    seen, _ = played(batches_s, arrivals, slowest, rng)

    assert found.p50_s == pytest.approx(np.quantile(seen, 0.50), rel=0.06)
    assert found.p99_s == pytest.approx(np.quantile(seen, 0.99), rel=0.06)


@pytest.mark.parametrize("busy", [0.05, 0.3, 0.6])
@pytest.mark.parametrize("nodes", [4, 16])
def test_a_cluster_that_is_computed_is_a_cluster_that_is_played(nodes: int, busy: float) -> None:
    """Every node has a queue of its own, all get the same probes, and the slowest one counts."""
    counts = np.arange(1, 257, dtype=np.float64)
    batches_s = 0.004 + piecewise(CALM.probes, CALM.row_s, counts) * 300_000
    outside_s = 0.002 + piecewise(CALM.probes, CALM.call_s, counts) / 2
    one = slowest_of(CALM, 1)
    rate = busy / busy_share(batches_s, 1.0, one)

    found = latency(batches_s, rate, one, Beside(slowest_of(CALM, nodes), outside_s))
    rng = np.random.default_rng(1)
    arrivals = np.cumsum(rng.exponential(1 / rate, 15_000))
    seen, sizes = zip(
        *(played(batches_s, arrivals, one, rng) for _ in range(nodes)),
        strict=True,
    )
    beside_s = one.of(outside_s)[sizes[0] - 1, drawn(one, len(arrivals), rng)]
    whole = np.max(seen, axis=0) + beside_s

    assert found.p99_s == pytest.approx(np.quantile(whole, 0.99), rel=0.12)
    assert found.p50_s == pytest.approx(np.quantile(whole, 0.50), rel=0.25)


def test_fewer_routers_send_more_together_and_ask_less() -> None:
    """One more than are half busy: of calls, and of asking all nodes for each batch."""
    plan = planned(Demand(2e7, 400, 300), Machine(), CALM)

    assert isinstance(plan, Plan)
    trial, cpu_s = plan.trial, CALM.router_call_cpu_s
    needed = plan.routers - 1
    asking_s = (trial.nodes - 1) * 0.25 * cpu_s

    def busy(routers: int) -> float:
        per_s = 400 / routers
        return per_s * (cpu_s + asking_s / max(1.0, per_s * trial.latency.p50_s))

    assert trial.nodes > 2
    assert busy(needed) <= 0.5
    assert needed == 1 or busy(needed - 1) > 0.5
