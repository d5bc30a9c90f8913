"""The shape of the gallery that a run begins with."""

from collections.abc import Sequence
from random import Random  # noqa: TID251 - seeded

from facegrid.ids import KEY_LAST, NodeId, ShardId
from facegrid.model import HashRange, ShardAssignment


def first_shards(
    rng: Random, uid: str, node_ids: Sequence[str], count: int
) -> tuple[ShardAssignment, ...]:
    """Return shards that cut the key space evenly, with copies on nodes that the seed chooses."""
    step = (KEY_LAST + 1) // count
    replicas = min(len(node_ids), rng.choice((1, 2, 2, 3)))
    return tuple(
        ShardAssignment(
            ShardId(f"g.{uid}.{number:04d}"),
            HashRange(number * step, KEY_LAST if number == count - 1 else (number + 1) * step - 1),
            tuple(map(NodeId, rng.sample(list(node_ids), replicas))),
        )
        for number in range(count)
    )
