"""fgctl offline manifest: what each shard consists of, as its newest manifest says."""

from collections.abc import Sequence
from dataclasses import dataclass

from facegrid.blob.reader import BlobReader
from facegrid.errors import CorruptError, NotFoundError
from facegrid.format.checks import sha256_hex
from facegrid.format.inventory import ShardNames, named_sha256
from facegrid.format.manifest import Manifest, decode_manifest
from fgctl import render

COLUMNS = (
    "shard", "position", "gen", "segments", "rows", "erased", "templates", "requests", "manifest",
    "problem",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Newest:
    """The newest readable manifest of a shard, and what kept others from being read."""

    name: str
    manifest: Manifest

    @property
    def rows_count(self) -> int:
        """Rows in the segments, erased ones too."""
        return sum(segment.rows_count for segment in self.manifest.segments)


@dataclass(frozen=True, slots=True)
class ShownShard:
    """One shard: its newest manifest, if there is one, and why others cannot be read."""

    shard_id: str
    newest: Newest | None
    problem: str = ""


async def newest(reader: BlobReader, names: ShardNames) -> Newest | None:
    """Return the newest manifest of a shard that can be read, or None."""
    return (await shown("", reader, names)).newest


async def shown(shard_id: str, reader: BlobReader, names: ShardNames) -> ShownShard:
    """Return a shard's newest manifest and what is wrong with others."""
    found: list[Newest] = []
    problems = []
    for name in names.manifests:
        try:
            data = await reader.get(name)
            manifest = decode_manifest(data)
        except (CorruptError, NotFoundError) as error:
            problems.append(f"{named_sha256(name)[:12]}: {error.message}")
            continue
        if sha256_hex(data) == named_sha256(name):
            found.append(Newest(name, manifest))
        else:
            problems.append(f"{named_sha256(name)[:12]}: bytes do not match the name")
    best = max(
        found, key=lambda one: (one.manifest.position, one.manifest.generation), default=None
    )
    return ShownShard(shard_id, best, "; ".join(problems))


def as_json(shards: Sequence[ShownShard]) -> render.Json:
    """Return shards as JSON. Keys are hexadecimal text, since JSON numbers do not hold 64 bits."""
    return [_shard_json(shard) for shard in shards]


def show(shards: Sequence[ShownShard]) -> None:
    """Print shards as a table."""
    render.show_table("manifests", COLUMNS, [_row(shard) for shard in shards])


def _row(shard: ShownShard) -> tuple[object, ...]:
    if shard.newest is None:
        return (shard.shard_id, 0, 0, 0, 0, 0, 0, 0, "none", shard.problem)
    held, manifest = shard.newest, shard.newest.manifest
    return (
        shard.shard_id,
        manifest.position,
        manifest.generation,
        len(manifest.segments),
        held.rows_count,
        held.rows_count - manifest.templates_count,
        manifest.templates_count,
        len(manifest.requests),
        named_sha256(held.name)[:12],
        shard.problem,
    )


def _shard_json(shard: ShownShard) -> render.Json:
    if shard.newest is None:
        return {"shard": shard.shard_id, "manifest": None, "problem": shard.problem}
    manifest, log = shard.newest.manifest, shard.newest.manifest.log
    return {
        "shard": shard.shard_id,
        "manifest": shard.newest.name,
        "problem": shard.problem,
        "first": f"{manifest.range.first:016x}",
        "last": f"{manifest.range.last:016x}",
        "dim": manifest.dim,
        "position": manifest.position,
        "generation": manifest.generation,
        "rows_count": shard.newest.rows_count,
        "erased_count": shard.newest.rows_count - manifest.templates_count,
        "templates_count": manifest.templates_count,
        "requests_count": len(manifest.requests),
        "digest": manifest.digest.hex(),
        "log": None if log is None else f"{log.generation}-{log.first_position}-{log.uuid}",
        "segments": [
            {
                "sha256": segment.sha256,
                "rows_count": segment.rows_count,
                "erased_count": int(segment.erased.sum()),
            }
            for segment in manifest.segments
        ],
    }
