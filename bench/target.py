"""A target of TARGETS.md beside what was measured: `target G3 value=0.74 need=0.70 met=yes`.

The line is the interface: whatever measures prints lines, and what reads them (results as JSON,
the page docs/BENCHMARKS.md) takes them apart again. Facts that belong to a value follow `met`, as
name=value: `part` tells apart several values of one target.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from bench.report import Json

Sense = Literal["at least", "at most"]

_LINE = re.compile(r"^target (\S+) value=(\S+) need=(\S+) met=(yes|no)((?: \S+=\S+)*)$")


@dataclass(frozen=True, slots=True)
class Target:
    """One value against what is needed.

    Attributes:
        name: as TARGETS.md calls it, such as G3.
        value, need: in the same unit.
        met: whether the value suffices.
        facts: what else belongs to the value, words without blanks; `part` names which of several.
    """

    name: str
    value: float
    need: float
    met: bool
    facts: Mapping[str, str] = field(default_factory=dict)

    @property
    def part(self) -> str:
        """Which of several values of one target this is."""
        return self.facts.get("part", "")

    @property
    def line(self) -> str:
        """Return what to print."""
        facts = "".join(f" {name}={value}" for name, value in self.facts.items())
        met = "yes" if self.met else "no"
        values = f"value={shown(self.value)} need={shown(self.need)}"
        return f"target {self.name} {values} met={met}{facts}"

    def as_json(self) -> dict[str, Json]:
        """Return it as a JSON object."""
        return {
            "target": self.name,
            "value": self.value,
            "need": self.need,
            "met": self.met,
            "facts": dict(self.facts),
        }


def against(name: str, value: float, sense: Sense, need: float, **facts: object) -> Target:
    """Return a value with the verdict on it. A value that is not a number meets nothing."""
    met = value >= need if sense == "at least" else value <= need
    words = {key: str(fact).replace(" ", "_") for key, fact in facts.items()}
    return Target(name, value, need, met, words)


def shown(value: float) -> str:
    """Return a value in few digits; shares below one with two decimals at least."""
    text = f"{value:.4g}"
    whole, point, decimals = text.partition(".")
    return f"{text}0" if point and len(decimals) == 1 and whole == "0" else text


def read(lines: Iterable[str]) -> list[Target]:
    """Return the targets among lines."""
    found = (_LINE.match(line) for line in lines)
    return [_target(*match.groups()) for match in found if match is not None]


def line(name: str, value: float, need: float, *, at_most: bool = False) -> str:
    """Return the line of a target; G3_single is the part `single` of G3."""
    target, _, part = name.partition("_")
    sense: Sense = "at most" if at_most else "at least"
    return against(target, value, sense, need, **({"part": part} if part else {})).line


def lines_of(targets: Sequence[Target]) -> list[str]:
    """Return what to print of several."""
    return [one.line for one in targets]


def _target(name: str, value: str, need: str, met: str, facts: str) -> Target:
    pairs = (fact.partition("=") for fact in facts.split())
    return Target(
        name, float(value), float(need), met == "yes", {key: word for key, _, word in pairs}
    )


def as_json(lines: Iterable[str]) -> list[Json]:
    """Return the targets among lines, as results keep them."""
    return [one.as_json() for one in read(lines)]
