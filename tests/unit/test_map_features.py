"""What of a map an earlier version must not overlook, and what it may go on reading."""

from dataclasses import replace

import pytest

from facegrid.api.storage.v1 import storage_pb2
from facegrid.errors import CorruptError
from facegrid.format import checks
from facegrid.format.records import decode_shard_map, encode_shard_map
from facegrid.ids import KEY_LAST, GalleryName, NodeId, ShardId
from facegrid.model import HashRange, ShardAssignment, ShardMap

SHARD = ShardAssignment(ShardId("g.0.0000"), HashRange(0, KEY_LAST), (NodeId("n1"),))
MAP = ShardMap(GalleryName("g"), "0", 1, (SHARD,))
CHILD = replace(SHARD, shard_id=ShardId("g.0.0001"), sources=(SHARD.shard_id,))
JOINED = replace(MAP, shards=(replace(SHARD, joining=(NodeId("n2"),)),))
FILLED = replace(MAP, pending=(CHILD,), made_count=2)
MERGED = replace(MAP, made_count=3)


@pytest.mark.parametrize(
    ("shard_map", "features"),
    [
        (MAP, []),
        (replace(MAP, made_count=1), []),
        (JOINED, ["map-joining"]),
        (FILLED, ["map-made-count", "map-pending"]),
        (MERGED, ["map-made-count"]),
    ],
    ids=["plain", "counted", "joining", "pending", "after a merge"],
)
def test_a_map_demands_what_its_reader_must_know_and_no_more(
    shard_map: ShardMap, features: list[str]
) -> None:
    message = storage_pb2.ShardMapRecord.FromString(encode_shard_map(shard_map))

    assert list(message.required_features) == features
    assert decode_shard_map(encode_shard_map(shard_map)) == shard_map


@pytest.mark.parametrize("shard_map", [JOINED, FILLED, MERGED])
def test_a_version_that_knows_no_feature_refuses_it(
    shard_map: ShardMap, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = encode_shard_map(shard_map)
    monkeypatch.setattr(checks, "FEATURES_KNOWN", frozenset())

    with pytest.raises(CorruptError) as refused:
        decode_shard_map(data)

    assert refused.value.reason == "FEATURE_UNKNOWN"
    assert decode_shard_map(encode_shard_map(MAP)) == MAP
