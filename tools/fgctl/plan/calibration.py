"""What was measured on a machine, and what follows from it for one node: times of calls, memory,
rates. The stored form is one JSON document.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, get_type_hints

import numpy as np
import numpy.typing as npt

from facegrid.errors import InvalidError, NotFoundError

Float64 = npt.NDArray[np.float64]

FORMAT: Final = 2
BUILT_IN: Final = "calibration.json"


@dataclass(frozen=True, slots=True)
class Curve:
    """One point of what an index misses: looking at this share of the rows misses that share of
    the mates.
    """

    miss_rate: float
    scanned_share: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """What one run measured.

    Attributes:
        time: when, ISO 8601.
        hardware: the machine, described and not named.
        versions: of what ran on it.
        parameters: of the run: sizes and seed.
        dim: components of the vectors that it was measured with.
        probes: of a call, rising: where times were measured.
        call_s: of a call with so many probes, seconds that depend neither on rows nor on shards.
        shard_s: what each shard of a node adds to such a call: tables, rescoring, merging.
        row_s: what each row of a node adds to such a call, on one core.
        cores_share: how much of another core a search gains by having it, 0 to 1.
        spread: quantiles 0, 0.01, ... 1 of the duration of a call over the median of its kind, for
            a kind whose median is `spread_at_s`.
        spread_at_s: see there.
        client_call_cpu_s: processor time of a client for a call with one probe.
        router_call_cpu_s: processor time of the router for a call with one probe.
        router_probe_cpu_s: what each further probe of a call adds to that.
        node_call_cpu_s: processor time of a node for a call, without any rows.
        node_base_bytes: resident memory of a node without templates.
        memory_factor: resident bytes of a template over those that are accounted for.
        router_bytes: resident memory of a router.
        disk_factor: bytes stored for a template, over those of its arrays and ids.
        start_s: seconds until a node with four empty shards serves.
        load_per_s: templates a second that a starting node reads from segments.
        enrol_per_s: templates a second through the public API, one client.
        store_bytes_per_s: that one process reads from the object store.
        curve: share of the rows that a search must look at, by the share of mates that it may
            miss, by falling miss rate; none: nothing is known, all rows are looked at.
    """

    time: str
    hardware: Mapping[str, str | int | float]
    versions: Mapping[str, str]
    parameters: Mapping[str, str | int | float]
    dim: int
    probes: tuple[int, ...]
    call_s: tuple[float, ...]
    shard_s: tuple[float, ...]
    row_s: tuple[float, ...]
    cores_share: float
    spread: tuple[float, ...]
    spread_at_s: float
    client_call_cpu_s: float
    router_call_cpu_s: float
    router_probe_cpu_s: float
    node_call_cpu_s: float
    node_base_bytes: float
    memory_factor: float
    router_bytes: float
    disk_factor: float
    start_s: float
    load_per_s: float
    enrol_per_s: float
    store_bytes_per_s: float
    curve: tuple[Curve, ...] = ()

    @property
    def codes_per_s(self) -> tuple[float, ...]:
        """Rows times probes that one core scans in a second, at each size of a call."""
        return tuple(count / row_s for count, row_s in zip(self.probes, self.row_s, strict=True))

    @property
    def described(self) -> str:
        """The machine, in a few words."""
        return (
            f"{self.hardware['processor']}, {self.hardware['cores']} cores,"
            f" {self.hardware['memory_gib']} GiB"
        )

    def scanned_share(self, miss_rate_max: float) -> float:
        """Return the least share of the rows known to suffice, 0 to 1."""
        enough = [point.scanned_share for point in self.curve if point.miss_rate <= miss_rate_max]
        return min(enough, default=1.0)


def piecewise(at: Sequence[int], values: Sequence[float], counts: Float64) -> Float64:
    """Return values between and beyond measured points: straight lines through them, made rising.

    Beyond the last point the last value per probe holds; a time does not fall with more probes, so
    what noise made fall is lifted.

    Args:
        at: probes of the points, rising.
        values: measured there, not negative.
        counts: where values are wanted, at least 1.
    """
    lifted = np.maximum.accumulate(np.asarray(values, np.float64))
    inside = np.interp(counts, at, lifted)
    return np.where(counts > at[-1], lifted[-1] * counts / at[-1], inside)


def to_document(calibration: Calibration) -> dict[str, Any]:
    """Return a calibration as JSON holds it."""
    return {"facegrid_calibration": FORMAT, **asdict(calibration)}


def from_document(document: object, *, source: str) -> Calibration:
    """Return the calibration of a JSON document.

    Raises:
        InvalidError: it is none, or its numbers cannot be (CALIBRATION_UNUSABLE).
    """
    if not isinstance(document, dict) or document.get("facegrid_calibration") != FORMAT:
        raise _unusable("not written by fgctl plan calibrate of this version", source)
    known = {field.name for field in fields(Calibration)}
    values = {name: value for name, value in document.items() if name in known}
    try:
        values["curve"] = tuple(Curve(**point) for point in values.get("curve", ()))
        calibration = Calibration(**{name: _plain(value) for name, value in values.items()})
    except (TypeError, ValueError) as error:
        raise _unusable(str(error), source) from None
    if problem := problem_of(calibration):
        raise _unusable(problem, source)
    return calibration


def problem_of(calibration: Calibration) -> str:
    """Say what is wrong with a calibration; empty when nothing is."""
    return next(filter(None, _problems(calibration)), "")


def _problems(calibration: Calibration) -> Iterator[str]:
    """Say of everything that can be wrong what is; empty where nothing is."""
    for name, kind in get_type_hints(Calibration).items():
        value = getattr(calibration, name)
        if kind in (float, int) and not _positive(value):
            yield f"{name} is not a positive number"
        if kind == tuple[float, ...] and not all(map(_positive, value)):
            yield f"{name} holds what is not a positive number"
    counts, spread = calibration.probes, calibration.spread
    rising = bool(counts) and counts[0] == 1 and all(a < b for a, b in pairwise(counts))
    yield "" if rising else "probes does not rise from 1"
    for name in ("call_s", "shard_s", "row_s"):
        fits = len(getattr(calibration, name)) == len(counts)
        yield "" if fits else f"{name} has not one value for each number of probes"
    rising = len(spread) > 1 and all(a <= b for a, b in pairwise(spread))
    yield "" if rising else "spread does not rise"
    yield "cores_share is above 1" if calibration.cores_share > 1 else ""
    shares = all(
        0 <= one.miss_rate <= 1 and 0 < one.scanned_share <= 1 for one in calibration.curve
    )
    yield "" if shares else "curve holds a share that is none"
    unsaid = {"processor", "cores", "memory_gib"} - calibration.hardware.keys()
    yield "hardware does not describe the machine" if unsaid else ""


def load(path: Path) -> Calibration:
    """Read a calibration.

    Raises:
        NotFoundError: there is no such file (CALIBRATION_UNKNOWN).
        InvalidError: it is no calibration (CALIBRATION_UNUSABLE).
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NotFoundError(
            f"there is no such calibration path={path}", reason="CALIBRATION_UNKNOWN"
        ) from None
    except UnicodeDecodeError:
        raise _unusable("not a text", str(path)) from None
    return _parsed(text, str(path))


def built_in() -> Calibration:
    """Return the calibration that comes with fgctl."""
    text = resources.files("fgctl.plan").joinpath(BUILT_IN).read_text(encoding="utf-8")
    return _parsed(text, "built in")


def save(calibration: Calibration, path: Path) -> None:
    """Write a calibration; a file that is there is replaced."""
    text = json.dumps(to_document(calibration), indent=2, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def _parsed(text: str, source: str) -> Calibration:
    try:
        document = json.loads(text)
    except ValueError:
        raise _unusable("not JSON", source) from None
    return from_document(document, source=source)


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _positive(value: object) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and value > 0  # type: ignore[arg-type, operator]  # a number, see above


def _unusable(problem: str, source: str) -> InvalidError:
    return InvalidError(
        f"cannot be used as a calibration: {problem} path={source}",
        reason="CALIBRATION_UNUSABLE",
        field="calibration",
    )
