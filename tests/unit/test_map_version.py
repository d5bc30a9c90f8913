"""A node tells routers with an old map which one it knows."""

import pytest

from facegrid.coord import keys
from facegrid.coord.port import Changed, KeyValue
from facegrid.errors import FacegridError, FencedError, InvalidError, NotFoundError
from facegrid.format.records import encode_shard_map
from facegrid.ids import KEY_LAST, GalleryName, NodeId, ShardId
from facegrid.model import HashRange, ShardAssignment, ShardMap
from indexd.replica.view import View
from indexd.service.map_version import map_version, telling_map

SHARD = ShardId("staff.1f00aa23.0000")
MAP = ShardMap(
    GalleryName("staff"),
    "1f00aa23",
    7,
    (ShardAssignment(SHARD, HashRange(0, KEY_LAST), (NodeId("n1"),)),),
)


def view() -> View:
    seen = View()
    item = KeyValue(keys.shard_map(MAP.gallery), encode_shard_map(MAP), 3)
    seen.take(keys.MAPS, Changed("put", item.key, item, 3))
    return seen


def test_a_node_knows_versions_of_the_maps_that_it_heard_of() -> None:
    assert map_version(view(), "staff") == 7
    assert map_version(view(), "other") == 0


@pytest.mark.parametrize(
    ("error", "shard", "told"),
    [
        (NotFoundError("not here", reason="SHARD_NOT_HERE"), SHARD, "7"),
        (FencedError("another process"), "staff.1f00aa23.0009", "7"),
        (NotFoundError("not here", reason="SHARD_NOT_HERE"), "other.1.0000", None),
        (NotFoundError("not here", reason="SHARD_NOT_HERE"), "no/such.thing", None),
        (InvalidError("wrong"), SHARD, None),
    ],
)
def test_errors_of_shards_that_are_not_served_tell_it(
    error: FacegridError, shard: str, told: str | None
) -> None:
    with pytest.raises(FacegridError) as caught, telling_map(view(), shard):
        raise error

    assert caught.value is error
    assert caught.value.facts.get("map_version") == told
