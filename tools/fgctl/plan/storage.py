"""What lies in the object store, and how long nodes take to read it and to recover."""

from dataclasses import dataclass
from typing import Final

from facegrid import limits
from fgctl.plan.calibration import Calibration
from fgctl.plan.demand import Demand, Machine

NUMBERS_BYTES: Final = 4 + 4
"""Of a row in a segment: its subject and its inverted list."""
PREFIX_BYTES: Final = 2
"""Of an id in a message: its tag and its length."""
DAY_S: Final = 86_400
LEASE_S: Final = 10.0
"""A node's default lease_ttl_s: until others see that it has gone."""
TAKEOVER_S: Final = 10.0
"""A node's default takeover_after_s: what others wait then before they take its shards over."""
PQ_ENTRIES: Final = 16
FLOAT32_BYTES: Final = 4
NLIST_TYPICAL: Final = 4
"""Lists of a codebook that is searched through whole."""


@dataclass(frozen=True, slots=True)
class Disk:
    """Bytes in the object store, of all shards once: copies share them.

    Attributes:
        segments: rows with ids and codes.
        log: what came in since the last flush, at most.
        codebook: of the gallery.
        snapshots: the repository of snapshots, wherever it lies.
    """

    segments: float
    log: float
    codebook: float
    snapshots: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.segments + self.log + self.codebook + self.snapshots


@dataclass(frozen=True, slots=True)
class Recovery:
    """What the loss of one node costs.

    Attributes:
        reads_fail: whether searches fail until it is back: there is one copy.
        writes_s: until its shards take writes on another node, or on itself.
        copies_s: until all copies are there again: on the others, or after its return.
        peers: nodes that read copies at one time.
    """

    reads_fail: bool
    writes_s: float
    copies_s: float
    peers: int


def stored_bytes(demand: Demand, calibration: Calibration) -> float:
    """Return bytes of a template in a segment."""
    row = demand.dim + demand.dim / 8 + NUMBERS_BYTES
    named = demand.id_bytes + PREFIX_BYTES
    ids = named + named / demand.templates_per_subject
    return (row + ids) * calibration.disk_factor


def logged_bytes(demand: Demand) -> float:
    """Return bytes of a template in the log: its row and both ids."""
    return demand.dim + 2 * (demand.id_bytes + PREFIX_BYTES)


def disk(demand: Demand, calibration: Calibration, *, shards: int) -> Disk:
    """Return what lies in the store, with each shard's log as long as it gets before a flush."""
    rows = stored_bytes(demand, calibration)
    segments = demand.templates_count * rows
    # Nothing is enrolled: everything was flushed or loaded, and the log is empty.
    waiting = min(demand.templates_count, shards * limits.FLUSH_ROWS)
    log = waiting * logged_bytes(demand) if demand.enrolments_per_s else 0.0
    codebook = FLOAT32_BYTES * demand.dim * (PQ_ENTRIES + NLIST_TYPICAL)
    snapshots = 0.0
    if demand.snapshots:
        daily = min(demand.templates_count, demand.enrolments_per_s * DAY_S) * rows
        snapshots = segments + (demand.snapshots - 1) * daily
    return Disk(segments=segments, log=log, codebook=codebook, snapshots=snapshots)


def load_s(demand: Demand, machine: Machine, calibration: Calibration, *, held: float) -> float:
    """Return how long a node takes from its start until it serves so many templates.

    It reads ahead of what it puts in place, so the slower of both counts.
    """
    reading = held * stored_bytes(demand, calibration)
    per_s = min(machine.store_bytes_per_s, calibration.store_bytes_per_s)
    return calibration.start_s + max(reading / per_s, held / calibration.load_per_s)


def recovery(
    demand: Demand, machine: Machine, calibration: Calibration, *, nodes: int, held: float
) -> Recovery:
    """Return what the loss of one node costs that held so many templates."""
    whole_s = load_s(demand, machine, calibration, held=held)
    if demand.replicas == 1 or nodes == 1:
        return Recovery(reads_fail=True, writes_s=whole_s, copies_s=whole_s, peers=1)
    missed_s = LEASE_S + TAKEOVER_S
    if nodes <= demand.replicas:
        # Nobody else may have another copy: it takes a new node.
        return Recovery(reads_fail=False, writes_s=missed_s, copies_s=missed_s + whole_s, peers=1)
    peers = min(nodes - demand.replicas, limits.OPERATIONS_AT_ONCE_DEFAULT)
    shared_s = load_s(demand, machine, calibration, held=held / peers) - calibration.start_s
    return Recovery(reads_fail=False, writes_s=missed_s, copies_s=missed_s + shared_s, peers=peers)
