"""How a shard that somebody names stands to a map: shards come and go, their ids never return."""

from collections.abc import Mapping
from enum import Enum, auto

from facegrid.ids import ShardId
from facegrid.model import ShardMap, Token


class Standing(Enum):
    """What a map says of a shard that is named.

    SERVES: it is read and written.
    REPLACED: it was split or merged; its children have all that it had.
    LATER: it is not read yet, or was made after this map: a newer map will tell.
    FOREIGN: it is of another gallery, or of an earlier one of the name.
    """

    SERVES = auto()
    REPLACED = auto()
    LATER = auto()
    FOREIGN = auto()


def shard_number(shard_map: ShardMap, shard_id: ShardId) -> int | None:
    """Return the number in the id of one of a gallery's shards; None where it is another's."""
    prefix = f"{shard_map.gallery}.{shard_map.gallery_uid}."
    digits = shard_id.removeprefix(prefix)
    if digits == shard_id or not (digits.isascii() and digits.isdecimal()):
        return None
    return int(digits)


def standing(shard_map: ShardMap, shard_id: ShardId) -> Standing:
    """Return how a shard stands to a map."""
    if any(shard.shard_id == shard_id for shard in shard_map.shards):
        return Standing.SERVES
    if any(shard.shard_id == shard_id for shard in shard_map.pending):
        return Standing.LATER
    number = shard_number(shard_map, shard_id)
    if number is None:
        return Standing.FOREIGN
    return Standing.REPLACED if number < shard_map.next_number else Standing.LATER


def not_of(shard_map: ShardMap, token: Token) -> ShardId | None:
    """Return a shard that a token names and a map does not know to serve or to be replaced."""
    known = (Standing.SERVES, Standing.REPLACED)
    return next(
        (shard_id for shard_id in token.positions if standing(shard_map, shard_id) not in known),
        None,
    )


def demanded_of(shard_map: ShardMap, token: Token) -> Mapping[ShardId, int]:
    """Return what a token demands of the shards that serve: of those replaced, nothing more."""
    serving = {shard.shard_id for shard in shard_map.shards}
    return {
        shard_id: position for shard_id, position in token.positions.items() if shard_id in serving
    }
