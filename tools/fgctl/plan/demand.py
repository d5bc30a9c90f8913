"""What is asked of a cluster, and of which machines it is to be made."""

import math
from dataclasses import dataclass, field, fields
from typing import Final

from facegrid import limits
from facegrid.errors import InvalidError
from facegrid.ids import ID_BYTES_MAX
from facegrid.tuning import MISS_RATE_MAX_DEFAULT, MISS_RATE_MAX_LIMIT, Profile
from facegrid.vectors import BITS_DEFAULT, COMPONENT_BITS_KNOWN

GIB: Final = 2**30
TEMPLATES_MAX: Final = 1e12
RATE_MAX: Final = 1e7


@dataclass(frozen=True, slots=True)
class Demand:
    """What is asked.

    Attributes:
        templates_count: in the gallery.
        probes_per_s: that are identified, at random moments.
        p99_ms: what 99 of 100 identifications may take, one probe in each call.
        dim: components of a vector.
        component_bits: what the gallery rounds each component to, and a node's memory holds.
        replicas: copies of each shard.
        profile: how hard a search tries.
        miss_rate_max: share of the mates that the index of the gallery may miss.
        templates_per_subject: on average.
        enrolments_per_s: templates that come in, sustained.
        k: candidates wanted.
        id_bytes: of a template's id, and of a subject's.
        snapshots: that are kept, one of each day.
    """

    templates_count: float
    probes_per_s: float
    p99_ms: float
    dim: int = 512
    replicas: int = 2
    profile: Profile = Profile.BALANCED
    miss_rate_max: float = MISS_RATE_MAX_DEFAULT
    templates_per_subject: float = 1.3
    enrolments_per_s: float = 10.0
    k: int = 10
    id_bytes: int = 24
    snapshots: int = 0
    component_bits: int = BITS_DEFAULT

    def __post_init__(self) -> None:
        """Refuse what cannot be asked, with the field and its bounds."""
        _within("templates", self.templates_count, 1, TEMPLATES_MAX)
        _within("probes-per-s", self.probes_per_s, 0, RATE_MAX, beyond_first=True)
        _within("p99-ms", self.p99_ms, 0, 1000 * limits.DEADLINE_S_MAX, beyond_first=True)
        _within("dim", self.dim, limits.DIM_MIN, limits.DIM_MAX)
        if self.dim % limits.DIM_STEP:
            raise _refused("dim", f"must be a multiple of {limits.DIM_STEP}", self.dim)
        if self.component_bits not in COMPONENT_BITS_KNOWN:
            raise _refused("component-bits", "must be 8 or 4", self.component_bits)
        _within("replicas", self.replicas, 1, limits.REPLICAS_MAX)
        _within("miss-rate-max", self.miss_rate_max, 0, MISS_RATE_MAX_LIMIT, beyond_first=True)
        _within("templates-per-subject", self.templates_per_subject, 1, 1000)
        _within("enrolments-per-s", self.enrolments_per_s, 0, RATE_MAX)
        _within("k", self.k, 1, limits.K_MAX)
        _within("id-bytes", self.id_bytes, 1, ID_BYTES_MAX)
        _within("snapshots", self.snapshots, 0, 10_000)


@dataclass(frozen=True, slots=True)
class Device:
    """An accelerator for codes.

    Attributes:
        name: what it is.
        memory_bytes: of one.
        codes_bytes_per_s: of codes that it scans in a second.
        scratch_share: of its memory, that searching needs beside codes.
        fixed_s: of a call, launching and copying.
    """

    name: str
    memory_bytes: float
    codes_bytes_per_s: float
    scratch_share: float
    fixed_s: float


H200: Final = Device(
    name="gpu",
    memory_bytes=139 * GIB,
    codes_bytes_per_s=0.4 * 4.8e12,
    scratch_share=0.15,
    fixed_s=0.5e-3,
)
"""An H200 with 139 GiB usable. That 40 % of its memory's 4.8 TB/s is reached is a target of this
project and was not measured here; scratch and launches are assumptions."""


@dataclass(frozen=True, slots=True)
class Machine:
    """One node's machine.

    Attributes:
        cores: that search.
        memory_bytes: of the machine.
        memory_share_max: of it, that may be full when all nodes are there.
        store_bytes_per_s: between a node and the object store.
        busy_share_max: share of the time that searches may take, so that arrivals find room.
        device: scans codes instead of the cores; None: cores do.
    """

    cores: int = 16
    memory_bytes: float = 64.0 * GIB
    memory_share_max: float = 0.8
    store_bytes_per_s: float = 250e6
    busy_share_max: float = 0.7
    device: Device | None = field(default=None)

    def __post_init__(self) -> None:
        """Refuse machines that cannot be."""
        _within("cores", self.cores, 1, 4096)
        _within("memory-gib", self.memory_bytes / GIB, 0.25, 1 << 20)
        _within("memory-share-max", self.memory_share_max, 0, 1, beyond_first=True)
        _within("store-mb-per-s", self.store_bytes_per_s / 1e6, 0, 1e6, beyond_first=True)
        _within("busy-share-max", self.busy_share_max, 0, 0.95, beyond_first=True)


DOUBLED: Final = (
    "templates_count",
    "dim",
    "probes_per_s",
    "p99_ms",
    "replicas",
    "miss_rate_max",
    "templates_per_subject",
    "enrolments_per_s",
    "cores",
    "memory_bytes",
    "store_bytes_per_s",
)
"""Inputs that the table of doubled inputs goes through."""

assert {*DOUBLED} <= {one.name for kind in (Demand, Machine) for one in fields(kind)}


def _within(
    name: str, value: float, first: float, last: float, *, beyond_first: bool = False
) -> None:
    good = math.isfinite(value) and (first < value if beyond_first else first <= value)
    if not good or value > last:
        low = f"above {first:g}" if beyond_first else f"at least {first:g}"
        raise _refused(name, f"must be {low} and at most {last:g}", value)


def _refused(name: str, problem: str, value: float) -> InvalidError:
    return InvalidError(f"{name} {problem} value={value:g}", reason="OUT_OF_BOUNDS", field=name)
