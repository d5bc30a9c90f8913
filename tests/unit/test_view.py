"""What a node makes of the records in etcd."""

from facegrid.coord import keys
from facegrid.coord.port import Changed, KeyValue, Listing, Progress, Snapshot
from facegrid.format.records import encode_gallery, encode_node, encode_shard_map
from facegrid.ids import KEY_LAST, GalleryName, NodeId, ShardId
from facegrid.model import Gallery, HashRange, NodeInfo, ShardAssignment, ShardMap
from indexd.replica.view import WATCHED, Holding, View

GALLERY = Gallery(GalleryName("g"), "1f00aa23", 16, "x@1", 1, 2, 0)
SHARD = ShardAssignment(
    ShardId("g.1f00aa23.0000"), HashRange(0, KEY_LAST), (NodeId("n1"), NodeId("n2"))
)
MAP = ShardMap(GALLERY.name, GALLERY.uid, 1, (SHARD,))


def listed(**values: bytes) -> View:
    """A view that has read every prefix once; `values` by the first part of their key."""
    view = View()
    for prefix in WATCHED:
        data = values.get(prefix.rstrip("/"))
        items = () if data is None else (KeyValue(f"{prefix}g", data, 7),)
        view.take(prefix, Listing(Snapshot(7, items)))
    return view


def test_primary_and_followers_hold_the_shards_of_the_map_and_others_none() -> None:
    view = listed(galleries=encode_gallery(GALLERY), map=encode_shard_map(MAP))
    holding = {SHARD.shard_id: Holding(GALLERY, SHARD, 7, 1)}

    assert [view.holdings(NodeId(node)) for node in ("n1", "n2", "n3")] == [holding, holding, {}]


def test_a_map_of_an_earlier_gallery_of_that_name_gives_nothing() -> None:
    later = Gallery(GalleryName("g"), "99999999", 16, "x@1", 1, 2, 0)
    view = listed(galleries=encode_gallery(later), map=encode_shard_map(MAP))

    assert view.holdings(NodeId("n1")) == {}


def test_one_record_that_cannot_be_read_hides_no_other() -> None:
    view = listed(galleries=encode_gallery(GALLERY))
    good = KeyValue(keys.shard_map(GALLERY.name), encode_shard_map(MAP), 8)
    bad = KeyValue("map/bad", b"\xff\xff", 8)
    view.take(keys.MAPS, Listing(Snapshot(8, (bad, good))))

    assert list(view.holdings(NodeId("n1"))) == [SHARD.shard_id]
    assert list(view.refused) == ["map/bad"]


def test_changes_and_deletions_are_taken_in_and_progress_changes_nothing() -> None:
    view = listed()
    node = NodeInfo(NodeId("n1"), "b1", "127.0.0.1:1")
    key = keys.node(node.node_id, node.boot_id)

    assert view.take(
        keys.NODES, Changed("put", key, KeyValue(key, encode_node(node), 8), revision=8)
    )
    assert view.address(NodeId("n1")) == "127.0.0.1:1"
    assert not view.take(keys.NODES, Progress(9))
    assert view.take(keys.NODES, Changed("delete", key, None, revision=10))
    assert view.address(NodeId("n1")) is None


def test_of_a_node_listed_twice_the_later_registration_counts() -> None:
    """1 n1 is killed, its lease lives on; 2 n1 starts again elsewhere."""
    view = listed()
    for revision, boot, port in ((8, "zz", 1), (9, "aa", 2)):
        node = NodeInfo(NodeId("n1"), boot, f"127.0.0.1:{port}")
        key = keys.node(node.node_id, boot)
        item = KeyValue(key, encode_node(node), revision)
        view.take(keys.NODES, Changed("put", key, item, revision=revision))

    assert view.address(NodeId("n1")) == "127.0.0.1:2"
