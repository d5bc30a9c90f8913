"""G5, G7 and G8 of the targets, from the rows of a comparison: the worse gallery counts.

Systems are compared at equal extra FNIR. Where ours does not show it nothing is compared; a system
that shows it with none of its settings is beaten by that, and its speed does not count.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from bench.peers.systems_known import FACEGRID, PACKED
from bench.report import Json

Row = Mapping[str, Json]
GRAPHS = ("hnswlib", "usearch", "scalable-vs", "scann")


@dataclass(frozen=True, slots=True)
class Target:
    """A target and what was measured; None: it could not be. `unreached`: none of the systems that
    it is about comes to the extra FNIR of ours.
    """

    id: str
    value: float | None
    need: float
    at_most: bool = False
    unreached: bool = False

    @property
    def met(self) -> bool:
        """Whether it was measured and is met."""
        if self.value is None:
            return self.unreached
        return self.value <= self.need if self.at_most else self.value >= self.need

    def line(self) -> str:
        """Return it as it is printed."""
        none = "unreached_by_peer" if self.unreached else "unmeasured"
        value = none if self.value is None else f"{self.value:.4g}"
        return (
            f"target {self.id} value={value} need={self.need:g} met={'yes' if self.met else 'no'}"
        )

    def as_json(self) -> Json:
        """Return it as bench.target writes it, with the part behind the hyphen."""
        name, _, part = self.id.partition("-")
        facts = {"part": part} | ({"unreached_by_peer": "yes"} if self.unreached else {})
        return {
            "target": name,
            "value": self.value,
            "need": self.need,
            "met": self.met,
            "facts": facts,
        }


def targets(rows: Sequence[Row]) -> list[Target]:
    """Return all targets that a comparison answers."""
    memory = [
        _target("G7-memory", rows, ("hnswlib",), _memory, 5),
        _target("G7-memory_of_4_bits", rows, ("hnswlib",), _memory, 5, ours_name=PACKED.name),
    ]
    return [
        _target("G5-ivfpq", rows, ("faiss-ivfpq",), _speed, 5),
        _target("G5-ivfflat", rows, ("faiss-ivfflat",), _speed, 20),
        _target("G7-per-gb", rows, GRAPHS, _per_gb, 1),
        _target("G7-build", rows, ("hnswlib",), _build, 5),
        *(
            replace(one, value=_inverse(one.value), need=1 / one.need, at_most=True)
            for one in memory
        ),
        _target("G8-qdrant", rows, ("qdrant-edge",), _speed, 5),
        _target("G8-lancedb", rows, ("lancedb",), _speed, 3),
        _target("G8-milvus", rows, ("milvus-lite",), _speed, 2),
    ]


def _target(
    name: str,
    rows: Sequence[Row],
    systems: Sequence[str],
    value: Callable[[Row, Row], float | None],
    need: float,
    *,
    ours_name: str = FACEGRID.name,
) -> Target:
    """Return a target with the least value over systems and galleries."""
    ours = {row["gallery"]: row for row in rows if row["name"] == ours_name}
    wanted = [row for row in rows if row["name"] in systems]
    compared = {row["name"] for row in wanted} == {*systems}
    if not compared or not all(_reaches(ours.get(row["gallery"], {})) for row in wanted):
        return Target(name, None, need)
    reaching = [row for row in wanted if _reaches(row)]
    if not reaching:
        tried = all(row.get("enough_in_tuning") is False for row in wanted)
        return Target(name, None, need, unreached=tried)
    values = [value(row, ours[row["gallery"]]) for row in reaching]
    known = [one for one in values if one is not None]
    return Target(name, min(known) if len(known) == len(values) else None, need)


def _reaches(row: Row) -> bool:
    """Tell whether a system shows the extra FNIR wanted with the settings chosen for it."""
    return row.get("enough_in_tuning") is True


def _speed(row: Row, ours: Row) -> float | None:
    del ours
    return _number(row, "ours_by_it_64")


def _per_gb(row: Row, ours: Row) -> float | None:
    speed, memory = _number(row, "ours_by_it_64"), _memory(row, ours)
    return None if speed is None or memory is None else speed * memory


def _memory(row: Row, ours: Row) -> float | None:
    return _ratio(row, ours, "memory_bytes_per_template")


def _build(row: Row, ours: Row) -> float | None:
    return _ratio(row, ours, "build_s")


def _ratio(row: Row, ours: Row, name: str) -> float | None:
    theirs, mine = _number(row, name), _number(ours, name)
    return theirs / mine if theirs is not None and mine else None


def _inverse(value: float | None) -> float | None:
    return 1 / value if value else None


def _number(row: Row, name: str) -> float | None:
    value = row.get(name)
    return float(value) if isinstance(value, int | float) else None
