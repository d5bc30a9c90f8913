"""Claiming a shard: the right to write is a generation in etcd, never a lease or a clock.

A claim is one guarded transaction that raises the generation while the map still names this node
as the primary. Every later commit carries the generation as a guard, so whoever claimed before
cannot commit any more, however late its transaction arrives.
"""

from dataclasses import dataclass

from facegrid.coord import keys
from facegrid.coord.port import Coordinator, Guard, KeyValue, Put
from facegrid.errors import FencedError
from facegrid.format.log import LogRef
from facegrid.format.records import (
    GenerationClaim,
    ManifestPointer,
    decode_generation,
    decode_manifest_pointer,
    decode_tip,
    encode_generation,
)
from facegrid.ids import GalleryName, NodeId, ShardId


@dataclass(frozen=True, slots=True)
class Fence:
    """The right to write one shard, and where its log and manifest stood when it was won.

    `claim` is the value of gen/<shard>, which no other process ever writes. Commits are guarded by
    it and not by the revision of the key: an etcd that was restored or made anew counts revisions
    from an earlier number, so that a revision may come again.
    """

    generation: int
    claim: bytes
    tip: LogRef | None
    tip_revision: int
    manifest: ManifestPointer | None
    manifest_revision: int


@dataclass(frozen=True, slots=True)
class Claimant:
    """Who claims: a node and its present process."""

    node_id: NodeId
    boot_id: str


async def claim(
    coord: Coordinator,
    shard_id: ShardId,
    *,
    claimant: Claimant,
    gallery: GalleryName,
    map_revision: int,
) -> Fence:
    """Raise the shard's generation in the name of this process.

    Tip and manifest are read after the claim: from then on nobody else can move them.

    Raises:
        FencedError: the map is no longer the one given, or somebody else claimed meanwhile.
        UnavailableError: etcd cannot be reached; claiming again is safe.
    """
    held = await coord.get(keys.generation(shard_id))
    generation = 1 if held is None else decode_generation(held.value).generation + 1
    record = GenerationClaim(generation, claimant.node_id, claimant.boot_id)
    result = await coord.txn(
        [
            Guard(keys.generation(shard_id), 0 if held is None else held.mod_revision),
            Guard(keys.shard_map(gallery), map_revision),
        ],
        [Put(keys.generation(shard_id), encode_generation(record))],
    )
    if not result.succeeded:
        raise FencedError(
            f"claim refused: the map or the generation moved on shard={shard_id}",
            shard=shard_id,
        )
    names = [keys.tip(shard_id), keys.manifest(shard_id)]
    found = {item.key: item for item in (await coord.get_many(names)).items}
    tip, pointer = (found.get(name) for name in names)
    return Fence(
        generation=generation,
        claim=encode_generation(record),
        tip=None if tip is None else decode_tip(tip.value).log,
        tip_revision=_revision(tip),
        manifest=None if pointer is None else decode_manifest_pointer(pointer.value),
        manifest_revision=_revision(pointer),
    )


def _revision(item: KeyValue | None) -> int:
    """Return what a guard must name: 0 for a key that does not exist."""
    return 0 if item is None else item.mod_revision
