"""fgctl offline segment and codebook: one object, without its vectors."""

from facegrid.blob.reader import BlobReader
from facegrid.errors import CorruptError, InvalidError
from facegrid.format.checks import sha256_hex
from facegrid.format.codebook import CodebookArrays, decode_codebook
from facegrid.format.frame import Kind, decode_frames
from facegrid.format.inventory import named_sha256, take_inventory
from facegrid.format.segment import Segment, decode_segment
from fgctl import render


async def segment_bytes(reader: BlobReader, name: str) -> bytes:
    """Return a segment's bytes, once they match its name."""
    kinds = [held.segments for held in take_inventory([name]).shards.values()]
    if kinds != [[name]]:
        raise _misnamed(name, "shards/SHARD/segments/SHA256")
    return await _matching(reader, name)


async def codebook(reader: BlobReader, name: str) -> CodebookArrays:
    """Return a codebook, once its bytes match its name."""
    if not take_inventory([name]).codebooks:
        raise _misnamed(name, "codebooks/UID/SHA256")
    return decode_codebook(await _matching(reader, name))


async def _matching(reader: BlobReader, name: str) -> bytes:
    data = await reader.get(name)
    if sha256_hex(data) != named_sha256(name):
        raise CorruptError(f"bytes do not match the name name={name}", reason="OBJECT_DAMAGED")
    return data


def _misnamed(name: str, form: str) -> InvalidError:
    return InvalidError(f"name must be {form} name={name!r}", reason="OBJECT_NAME_MALFORMED")


def segment_json(data: bytes, *, with_ids: bool) -> render.Json:
    """Return what a segment holds as JSON, without its vectors."""
    segment = decode_segment(data)
    shown: dict[str, render.Json] = {
        "shard": segment.shard_id,
        "dim": segment.dim,
        "rows_count": len(segment.template_ids),
        "subjects_count": len(segment.subject_ids),
        "codebook": segment.codebook,
        "size_bytes": len(data),
        "frames": [
            {"kind": Kind(frame.kind).name, "raw_bytes": len(frame.payload)}
            for frame in decode_frames(data)
        ],
    }
    if with_ids:
        shown["rows"] = [
            {"template_id": template_id, "subject_id": subject_id}
            for template_id, subject_id in _ids(segment)
        ]
    return shown


def show_segment(data: bytes, *, with_ids: bool) -> None:
    """Print what a segment holds, without its vectors."""
    segment = decode_segment(data)
    rows: list[tuple[str, object]] = [
        ("shard", segment.shard_id),
        ("dim", segment.dim),
        ("rows", len(segment.template_ids)),
        ("subjects", len(segment.subject_ids)),
        ("codebook", segment.codebook or "none"),
        ("bytes", len(data)),
    ]
    rows += [
        (f"frame {Kind(frame.kind).name}", f"{len(frame.payload):,} bytes")
        for frame in decode_frames(data)
    ]
    render.show_table("segment", ("what", "value"), rows)
    if with_ids:
        pairs = [(row, *pair) for row, pair in enumerate(_ids(segment))]
        render.show_table("rows", ("row", "template", "subject"), pairs)


def codebook_json(held: CodebookArrays) -> render.Json:
    """Return the numbers of a codebook as JSON."""
    return dict(_codebook_rows(held))


def show_codebook(held: CodebookArrays) -> None:
    """Print the numbers of a codebook."""
    render.show_table("codebook", ("what", "value"), _codebook_rows(held))


def _codebook_rows(held: CodebookArrays) -> list[tuple[str, int]]:
    return [
        ("dim", held.dim),
        ("nlist", held.nlist),
        ("pq_m", held.pq_m),
        ("pq_bits", held.pq_bits),
        ("nprobe", held.nprobe),
        ("rescore_factor", held.rescore_factor),
        ("sample_count", held.sample_count),
        ("seed", held.seed),
    ]


def _ids(segment: Segment) -> list[tuple[str, str]]:
    return [
        (template_id, segment.subject_ids[number])
        for template_id, number in zip(
            segment.template_ids, segment.subject_rows.tolist(), strict=True
        )
    ]
