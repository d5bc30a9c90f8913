"""How much memory templates take: the arrays and ids that a node keeps of each, by their sizes.

`docs/ARCHITECTURE.md` says what is kept. What the allocator and the interpreter add is measured:
`Calibration.memory_factor` for templates, `node_base_bytes` for the process.
"""

from dataclasses import dataclass
from typing import Final

from facegrid import limits
from fgctl.plan.calibration import Calibration
from fgctl.plan.demand import Demand, Machine

SIDE_BYTES: Final = 4 + 4 + 1 + 1 / 8
"""Of a row: squared norm, number of its subject, whether it is erased, and the same as a bit."""
ROW_NUMBER_BYTES: Final = 8
"""Of a code: which row it is of."""
END_BYTES: Final = 8
"""Of an id: where it ends."""
TEMPLATE_EXTRA_BYTES: Final = 8 + 4 + 4 + 1
"""Of a row: hash of its id, the subject's row before, its subject, whether it is erased."""
SUBJECT_EXTRA_BYTES: Final = 4 + 160
"""Of a subject: its newest row, and its entry in a dictionary."""
SAMPLE_ROWS: Final = 131_072
"""Rows that a codebook is learnt and measured on."""
SAMPLE_BYTES_PER_COMPONENT: Final = 1 + 4 + 4
"""As stored, as float32, and the copy that faiss learns from."""
ENCODED_TIMES: Final = 3
"""A flush holds the rows that it writes three times, where some between them are erased: gathered,
in pieces, and as the bytes of the object."""


@dataclass(frozen=True, slots=True)
class NodeMemory:
    """Memory of one node, in bytes.

    Attributes:
        base: of the process without templates.
        rows: rows, of 8 or 4 bits a component, and what stands beside them.
        codes: codes and their row numbers; on a device where there is one.
        ids: of templates and subjects.
        working: what comes and goes: a shard that is repacked, a flush, or training.
    """

    base: float
    rows: float
    codes: float
    ids: float
    working: float

    @property
    def resident(self) -> float:
        """What is there all the time."""
        return self.base + self.rows + self.codes + self.ids

    @property
    def peak(self) -> float:
        """What must be free for it on the machine."""
        return self.resident + self.working


def row_bytes(demand: Demand) -> float:
    """Return bytes of a stored row and what stands beside it."""
    return demand.dim * demand.component_bits / 8 + SIDE_BYTES


def code_bytes(demand: Demand) -> float:
    """Return bytes of a row's code, 4 bits for 4 components, with its row number."""
    return demand.dim / 8 + ROW_NUMBER_BYTES


def ids_bytes(demand: Demand) -> float:
    """Return bytes of a template's id and of its part of a subject."""
    named = demand.id_bytes + END_BYTES
    subject = named + SUBJECT_EXTRA_BYTES
    return named + TEMPLATE_EXTRA_BYTES + subject / demand.templates_per_subject


def template_bytes(demand: Demand) -> float:
    """Return bytes that are accounted for in all for a template of one copy."""
    return row_bytes(demand) + code_bytes(demand) + ids_bytes(demand)


def node_memory(
    demand: Demand, machine: Machine, calibration: Calibration, *, held: float, shard_rows: float
) -> NodeMemory:
    """Return the memory of a node.

    Args:
        demand: sizes of a template.
        machine: codes lie on its device, if it has one.
        calibration: what is measured beyond sizes.
        held: templates on the node, of all its copies.
        shard_rows: templates of its largest shard.
    """
    factor = calibration.memory_factor
    on_device = machine.device is not None
    kept = template_bytes(demand) - (code_bytes(demand) if on_device else 0)
    flushed = min(shard_rows, limits.FLUSH_ROWS) * demand.dim * ENCODED_TIMES
    learnt = min(demand.templates_count, SAMPLE_ROWS) * demand.dim * SAMPLE_BYTES_PER_COMPONENT
    return NodeMemory(
        base=calibration.node_base_bytes,
        rows=held * row_bytes(demand) * factor,
        codes=0.0 if on_device else held * code_bytes(demand) * factor,
        ids=held * ids_bytes(demand) * factor,
        working=max(shard_rows * kept * factor, flushed, learnt),
    )


def device_memory(demand: Demand, machine: Machine, *, held: float) -> float:
    """Return bytes on the device of a node, scratch included; 0 without a device."""
    device = machine.device
    if device is None:
        return 0.0
    return held * code_bytes(demand) + device.scratch_share * device.memory_bytes
