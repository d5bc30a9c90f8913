"""The rows of a fake node, and exact search over them."""

from dataclasses import dataclass, field

import numpy as np

from facegrid import vectors
from facegrid.api.shard.v1 import shard_service_pb2 as pb
from facegrid.errors import ConflictError, InvalidError
from facegrid.model import HashRange

Name = tuple[str, str]
"""Subject, template."""


@dataclass(slots=True)
class FakeShard:
    """The rows of one shard by subject and template, and how far its log has come; as primary
    with the generation that the node claimed, else with 0.
    """

    gallery: str
    range: HashRange
    dim: int
    component_bits: int = vectors.BITS_DEFAULT
    generation: int = 0
    rows: dict[Name, vectors.Int8] = field(default_factory=dict)
    position: int = 0
    answers: dict[str, pb.AppendResponse | pb.EraseResponse] = field(default_factory=dict)
    asked: dict[str, pb.StoredRows] = field(default_factory=dict)
    codebook: str = ""


def new_rows(shard: FakeShard, rows: pb.StoredRows) -> dict[Name, vectors.Int8]:
    """Return the rows that are not there yet, or raise for the first that contradicts."""
    if rows.dim != shard.dim:
        raise InvalidError("rows have another dimension", reason="DIM_MISMATCH", field="rows")
    codes = np.frombuffer(rows.codes, np.int8).reshape(-1, rows.dim)
    vectors.check_codes(codes, shard.component_bits)
    new: dict[Name, vectors.Int8] = {}
    for row, name in enumerate(zip(rows.subject_ids, rows.template_ids, strict=True)):
        there = shard.rows.get(name, new.get(name))
        if there is None:
            new[name] = codes[row]
        elif not np.array_equal(there, codes[row]):
            raise ConflictError(
                f"the subject has that template with another vector row={row}",
                reason="TEMPLATE_EXISTS",
                row=row,
                field="template_ids",
            )
    return new


def found_in(
    x: vectors.Float32, shards: list[FakeShard], k: int, threshold: float
) -> list[list[tuple[float, Name]]]:
    """Return for each probe the best template of the best k subjects."""
    names = [name for shard in shards for name in shard.rows]
    if not names:
        return [[] for _ in x]
    codes = np.stack([row for shard in shards for row in shard.rows.values()])
    shape = (len(x), *codes.shape)
    norms = np.broadcast_to(vectors.code_norms(codes), shape[:2])
    probes = vectors.prepare_probes(x)
    table = vectors.scores(probes, np.broadcast_to(codes, shape), norms)
    lists = []
    for scores in table.tolist():
        ordered = sorted(zip(scores, names, strict=True), key=lambda row: (-row[0], row[1]))
        best: dict[str, tuple[float, Name]] = {}
        for score, name in ordered:
            if score >= threshold:
                best.setdefault(name[0], (score, name))
        lists.append(list(best.values())[:k])
    return lists
