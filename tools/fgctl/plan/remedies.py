"""What would meet a demand that cannot be met: other inputs, each tried by planning with it."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from facegrid.tuning import Profile
from facegrid.vectors import BITS_PACKED
from fgctl.plan.calibration import Calibration
from fgctl.plan.demand import GIB, Demand, Machine
from fgctl.plan.sizing import NODES_MAX, Broken, Plan, planned

FACTORS: Final = (2, 4, 8, 16)
"""By which cores and memory are tried."""
RELAXED: Final = (1.01, 1.05, 1.1, 1.25, 1.5, 2.0, 3.0)
"""By which a limit on time is relaxed, from what could be reached."""


@dataclass(frozen=True, slots=True)
class Remedy:
    """One change that meets the demand: an option with its value, and the nodes that it takes."""

    option: str
    value: str
    nodes: int


def remedies(
    broken: Broken, demand: Demand, machine: Machine, calibration: Calibration, nodes_max: int
) -> list[Remedy]:
    """Return changes of one input each that meet the demand; none where none was found."""
    found = []
    tried: set[str] = set()
    for option, value, wanted, on, most in _changes(broken, demand, machine, nodes_max):
        if option in tried:
            continue
        plan = planned(wanted, on, calibration, nodes_max=most)
        if isinstance(plan, Plan):
            tried.add(option)
            found.append(Remedy(option, value, plan.trial.nodes))
    return found


Change = tuple[str, str, Demand, Machine, int]


def _changes(broken: Broken, demand: Demand, machine: Machine, nodes_max: int) -> Iterator[Change]:
    """Yield changes to try, each option with rising values."""
    if nodes_max < NODES_MAX:
        yield "--nodes-max", "", demand, machine, NODES_MAX
    for factor in FACTORS:
        cores = machine.cores * factor
        if broken.limit in {"p99", "throughput"} and cores <= 1024:
            yield "--cores", f"{cores}", demand, replace(machine, cores=cores), nodes_max
    if "memory" in broken.limit:
        yield from _roomier(demand, machine, nodes_max, node="device" not in broken.limit)
    if broken.limit == "p99":
        for relaxed in RELAXED:
            asked = _rounded(broken.value * relaxed)
            yield "--p99-ms", f"{asked:g}", replace(demand, p99_ms=asked), machine, nodes_max
    if demand.profile is not Profile.FAST:
        fast = replace(demand, profile=Profile.FAST)
        yield "--profile", "fast", fast, machine, nodes_max
    if broken.limit in {"throughput", "enrolments", "memory of a node"}:
        yield from _less(demand, machine, nodes_max)


def _roomier(demand: Demand, machine: Machine, nodes_max: int, *, node: bool) -> Iterator[Change]:
    """Yield more memory, and, where it is the `node` that lacks it, rows that need less."""
    for factor in FACTORS:
        size = machine.memory_bytes * factor
        larger = replace(machine, memory_bytes=size)
        yield "--memory-gib", f"{size / GIB:g}", demand, larger, nodes_max
    if node and demand.component_bits != BITS_PACKED:
        packed = replace(demand, component_bits=BITS_PACKED)
        yield "--component-bits", f"{BITS_PACKED}", packed, machine, nodes_max


def _less(demand: Demand, machine: Machine, nodes_max: int) -> Iterator[Change]:
    """Yield smaller demands."""
    for share in (0.9, 0.75, 0.5, 0.25, 0.1):
        fewer = replace(demand, probes_per_s=demand.probes_per_s * share)
        yield "--probes-per-s", f"{fewer.probes_per_s:g}", fewer, machine, nodes_max
        slower = replace(demand, enrolments_per_s=demand.enrolments_per_s * share)
        yield "--enrolments-per-s", f"{slower.enrolments_per_s:g}", slower, machine, nodes_max
        smaller = replace(demand, templates_count=demand.templates_count * share)
        yield "--templates", f"{smaller.templates_count:g}", smaller, machine, nodes_max


def _rounded(value: float) -> float:
    """Return a number of milliseconds with three digits, not below what it was."""
    step = 10 ** (len(str(int(value))) - 3)
    return float(-(-value // step) * step)
