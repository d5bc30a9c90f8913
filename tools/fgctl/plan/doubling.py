"""What changes when one input doubles: planned anew, one input at a time."""

from dataclasses import dataclass

from facegrid.errors import InvalidError
from fgctl.plan.calibration import Calibration
from fgctl.plan.demand import DOUBLED, Demand, Machine
from fgctl.plan.sizing import Broken, Plan, planned, with_input


@dataclass(frozen=True, slots=True)
class Doubled:
    """A plan with one input doubled.

    Attributes:
        name: of the input.
        value: what it was doubled to.
        outcome: the plan, the limit that breaks, or why the input cannot be that much.
    """

    name: str
    value: float
    outcome: Plan | Broken | str


def doubled(
    demand: Demand, machine: Machine, calibration: Calibration, *, nodes_max: int
) -> list[Doubled]:
    """Return what each input does by itself when it is twice as much."""
    return [_one(demand, machine, calibration, name, nodes_max=nodes_max) for name in DOUBLED]


def _one(
    demand: Demand, machine: Machine, calibration: Calibration, name: str, *, nodes_max: int
) -> Doubled:
    value = 2 * float(getattr(demand if hasattr(demand, name) else machine, name))
    try:
        wanted, on = with_input(demand, machine, name, value)
    except InvalidError as error:
        return Doubled(name, value, error.message)
    return Doubled(name, value, planned(wanted, on, calibration, nodes_max=nodes_max))
