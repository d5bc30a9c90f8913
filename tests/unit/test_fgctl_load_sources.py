"""Inputs of a bulk load are read as `fgctl enrol` reads them, and rounded as a router rounds."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from facegrid import limits, vectors
from facegrid.api.admin.v1.admin_service_pb2 import ClusterStatusResponse
from facegrid.api.v1 import types_pb2
from facegrid.errors import InvalidError
from facegrid.format.segment import decode_segment
from facegrid.ids import KEY_LAST, ShardId, subject_key
from fgctl.bulk.cut import ChunkSource, cut
from fgctl.bulk.journal import Parameters, Shard
from fgctl.online.load import parameters_of
from fgctl.online.load_sources import NpyChunks, ParquetChunks, fingerprint
from fgctl.online.parquet import ParquetSource
from fgctl.online.sources import NpySource, Source, open_npy

DIM = 8
ROWS = 1300
SHARDS = [
    Shard(ShardId("g.1f00aa23.0000"), 0, KEY_LAST // 3),
    Shard(ShardId("g.1f00aa23.0001"), KEY_LAST // 3 + 1, KEY_LAST // 2),
    Shard(ShardId("g.1f00aa23.0002"), KEY_LAST // 2 + 1, KEY_LAST),
]
PARAMETERS = Parameters("g", "1f00aa23", DIM, 0, 0, tuple(SHARDS), ())

Row = tuple[str, str, bytes]


def faces(dtype: str = "float32") -> np.ndarray:
    x = np.random.default_rng(5).normal(size=(ROWS, DIM))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(dtype)


def by_enrolment(source: Source) -> list[Row]:
    """What enrolment of a source would store, in the order of the input."""
    found: list[Row] = []
    for rows in source.batches(ROWS):
        codes = [one.tobytes() for one in vectors.quantize(rows.vectors)]
        found += zip(rows.subject_ids, rows.template_ids, codes, strict=True)
    return found


def by_load(source: ChunkSource, rows: int) -> list[list[Row]]:
    """What a load stores in each shard, in its order."""
    found: dict[str, list[Row]] = {shard.shard_id: [] for shard in SHARDS}
    for chunk in source.chunks(rows):
        for built in cut(chunk, PARAMETERS, "a" * 32).segments:
            segment = decode_segment(built.data)
            found[segment.shard_id] += [
                (segment.subject_ids[subject], template_id, codes.tobytes())
                for subject, template_id, codes in zip(
                    segment.subject_rows, segment.template_ids, segment.codes, strict=True
                )
            ]
    return list(found.values())


def split(rows: list[Row]) -> list[list[Row]]:
    """Rows by the shard that their subject falls into."""
    return [
        [row for row in rows if shard.first <= subject_key(row[0]) <= shard.last]
        for shard in SHARDS
    ]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("with_templates", [True, False])
def test_a_matrix_is_cut_into_what_enrolment_would_store(
    tmp_path: Path, dtype: str, *, with_templates: bool
) -> None:
    np.save(tmp_path / "x.npy", faces(dtype))
    # Ends of lines of both kinds, and none at the end.
    lines = [f"s-ä{row // 3}".encode() + (b"\r\n" if row % 2 else b"\n") for row in range(ROWS)]
    (tmp_path / "s.txt").write_bytes(b"".join(lines)[:-1])
    (tmp_path / "t.txt").write_text("".join(f"t-{row}\n" for row in range(ROWS)))
    templates = tmp_path / "t.txt" if with_templates else None
    subjects = tmp_path / "s.txt"
    source = NpySource(open_npy(tmp_path / "x.npy"), subjects=subjects, templates=templates)
    chunks = NpyChunks(tmp_path / "x.npy", subjects=subjects, templates=templates)

    assert (chunks.rows_count, chunks.dim) == (ROWS, DIM)
    assert by_load(chunks, 600) == split(by_enrolment(source))


def test_a_parquet_file_is_cut_into_what_enrolment_would_store(tmp_path: Path) -> None:
    table = pa.table(
        {
            "subject_id": [f"s-{row // 3}" for row in range(ROWS)],
            "template_id": [f"t-{row}" for row in range(ROWS)],
            "vector": list(faces()),
        }
    )
    path = tmp_path / "x.parquet"
    pq.write_table(table, path, row_group_size=500)

    assert by_load(ParquetChunks(path), 600) == split(by_enrolment(ParquetSource(path)))


@pytest.mark.parametrize("norm", [limits.NORM_MIN, limits.NORM_MAX])
def test_norms_at_their_bounds_are_taken_and_beyond_them_refused(
    tmp_path: Path, norm: float
) -> None:
    (tmp_path / "s.txt").write_text("".join(f"s-{row}\n" for row in range(ROWS)))
    x = np.zeros((ROWS, DIM), np.float32)
    x[:, 2] = norm
    np.save(tmp_path / "x.npy", x)
    whole = NpyChunks(tmp_path / "x.npy", subjects=tmp_path / "s.txt", templates=None)
    assert sum(map(len, by_load(whole, 600))) == ROWS

    x[1234] *= 0.9999 if norm < 1 else 1.0001
    np.save(tmp_path / "x.npy", x)
    beyond = NpyChunks(tmp_path / "x.npy", subjects=tmp_path / "s.txt", templates=None)
    with pytest.raises(InvalidError) as refused:
        by_load(beyond, 600)
    assert (refused.value.reason, refused.value.row) == ("VECTOR_NORM", 1234)


@pytest.mark.parametrize(
    ("line", "row"), [(b"", 7), (b"\xff", 7), (b"a\x00b", 7), (b"x" * 129, 7)], ids=repr
)
def test_a_line_that_is_no_id_is_named(tmp_path: Path, line: bytes, row: int) -> None:
    np.save(tmp_path / "x.npy", faces())
    lines = [f"s-{number}".encode() for number in range(ROWS)]
    lines[row] = line
    (tmp_path / "s.txt").write_bytes(b"\n".join(lines) + b"\n")
    source = NpyChunks(tmp_path / "x.npy", subjects=tmp_path / "s.txt", templates=None)
    with pytest.raises(InvalidError) as refused:
        by_load(source, 600)
    assert (refused.value.reason, refused.value.row) == ("ID_MALFORMED", row)


def test_a_file_that_changed_is_known_by_it(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(bytes(10_000_000))
    before = fingerprint(path)
    assert fingerprint(path) == before
    data = bytearray(path.read_bytes())
    data[-1] = 1
    path.write_bytes(data)
    assert fingerprint(path).sampled != before.sampled


@pytest.mark.parametrize(("told", "bits"), [(0, 8), (8, 8), (4, 4)])
def test_a_load_rounds_as_its_gallery_does_and_to_eight_bits_where_a_router_knows_no_other(
    tmp_path: Path, told: int, bits: int
) -> None:
    np.save(tmp_path / "x.npy", faces())
    (tmp_path / "s.txt").write_text("".join(f"s{row}\n" for row in range(ROWS)))
    source = NpyChunks(tmp_path / "x.npy", subjects=tmp_path / "s.txt", templates=None)

    status = ClusterStatusResponse(
        galleries=[types_pb2.Gallery(name="g", uid="1f00aa23", dim=DIM, component_bits=told)],
        shards=[ClusterStatusResponse.Shard(id="g.1f00aa23.0000", gallery="g", last=KEY_LAST)],
    )

    assert parameters_of(status, "g", source, ()).component_bits == bits
