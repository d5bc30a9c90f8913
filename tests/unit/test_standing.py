"""What a map says of a shard that a token names."""

from dataclasses import replace

import pytest

from facegrid.ids import GalleryName, NodeId, ShardId
from facegrid.model import Gallery, ShardAssignment, Token
from router.plan import placement
from router.plan.standing import Standing, demanded_of, not_of, shard_number, standing

GALLERY = Gallery(GalleryName("staff"), "1f00aa23", 8, "e", 3, 1, 0)
FIRST = placement.place(GALLERY, live=[NodeId("n1")])
"""Shards 0, 1 and 2."""


def named(number: str) -> ShardId:
    return ShardId(f"staff.1f00aa23.{number}")


LAST = FIRST.shards[2]
PENDING = replace(
    FIRST,
    pending=(ShardAssignment(named("0003"), LAST.range, LAST.node_ids, sources=(LAST.shard_id,)),),
    made_count=4,
)
"""Shard 3 is to take the place of shard 2."""
AFTER = replace(
    PENDING, pending=(), shards=(*FIRST.shards[:2], replace(PENDING.pending[0], sources=()))
)


@pytest.mark.parametrize(
    ("shard_map", "number", "expected"),
    [
        (FIRST, "0002", Standing.SERVES),
        (FIRST, "0003", Standing.LATER),
        (PENDING, "0002", Standing.SERVES),
        (PENDING, "0003", Standing.LATER),
        (AFTER, "0002", Standing.REPLACED),
        (AFTER, "0003", Standing.SERVES),
        (AFTER, "0004", Standing.LATER),
        (AFTER, "10000", Standing.LATER),
        (AFTER, "", Standing.FOREIGN),
        (AFTER, "-1", Standing.FOREIGN),
        (AFTER, "1.5", Standing.FOREIGN),
        (AFTER, "\u0662", Standing.FOREIGN),
    ],
)
def test_a_shard_stands_to_a_map(shard_map: object, number: str, expected: Standing) -> None:
    assert standing(shard_map, named(number)) is expected  # type: ignore[arg-type]  # a map


@pytest.mark.parametrize("name", ["staff.00000000.0000", "other.1f00aa23.0000", "staff", ""])
def test_shards_of_others_are_foreign(name: str) -> None:
    assert standing(AFTER, ShardId(name)) is Standing.FOREIGN
    assert shard_number(AFTER, ShardId(name)) is None


def test_a_token_demands_positions_of_shards_that_serve() -> None:
    token = Token({named("0000"): 7, named("0002"): 5, named("0003"): 4})

    assert demanded_of(AFTER, token) == {named("0000"): 7, named("0003"): 4}
    assert not_of(AFTER, token) is None
    assert not_of(PENDING, token) == named("0003")
