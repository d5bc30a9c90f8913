"""What holds of every plan: more is never asked of fewer, and all parts add up."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fgctl.plan.calibration import piecewise
from fgctl.plan.demand import DOUBLED, Demand, Machine
from fgctl.plan.doubling import doubled
from fgctl.plan.queueing import busy_share, latency
from fgctl.plan.service import Weighted, slowest_of
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


def played(batches_s: np.ndarray, rate: float, slowest: Weighted, seed: int) -> np.ndarray:
    """Return what probes saw in a queue that is played, one event after the other."""
    rng = np.random.default_rng(seed)
    arrivals = np.cumsum(rng.exponential(1 / rate, 60_000))
    share = slowest.weights / slowest.weights.sum()
    factors = rng.choice(slowest.values, len(arrivals), p=share)
    seen, now, first = np.empty(len(arrivals)), 0.0, 0
    while first < len(arrivals):
        now = max(now, arrivals[first])
        last = min(int(np.searchsorted(arrivals, now, "right")), first + len(batches_s))
        now += batches_s[last - first - 1] * factors[first]
        seen[first:last] = now - arrivals[first:last]
        first = last
    return seen


@pytest.mark.parametrize("busy", [0.01, 0.1, 0.3, 0.5, 0.7])
def test_the_queue_that_is_computed_is_the_queue_that_is_played(busy: float) -> None:
    counts = np.arange(1, 257, dtype=np.float64)
    batches_s = 0.004 + piecewise(CALM.probes, CALM.row_s, counts) * 300_000
    slowest = slowest_of(CALM, 3)
    rate = busy / busy_share(batches_s, 1.0)

    found = latency(batches_s, rate, slowest)
    seen = played(batches_s, rate, slowest, 1)

    assert found.p50_s == pytest.approx(np.quantile(seen, 0.50), rel=0.06)
    assert found.p99_s == pytest.approx(np.quantile(seen, 0.99), rel=0.06)
