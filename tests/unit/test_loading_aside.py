"""A long log is decoded and applied beside the event loop: other shards go on meanwhile."""

import threading
from typing import Any

import pytest

from facegrid.coord import keys
from facegrid.errors import CorruptError
from facegrid.format.log import LogRecord, LogRef
from facegrid.format.records import decode_manifest_pointer, decode_tip
from indexd.engine import recovery
from indexd.engine.loading import ShardShape
from indexd.engine.requests import EraseRequest
from indexd.engine.state import ShardState
from tests.unit.test_replica import GALLERY, SHARD, World, enrol, found
from tests.unit.test_replica import world as world  # noqa: PLC0414 - a fixture

ROWS = recovery.ASIDE_SIZE


@pytest.mark.parametrize(("rows", "aside"), [(ROWS, True), (2, False)])
async def test_what_is_long_is_applied_in_a_thread_and_comes_to_the_same(
    world: World, monkeypatch: pytest.MonkeyPatch, *, rows: int, aside: bool
) -> None:
    async with world.primary("b1") as first:
        await first.write(enrol(1, rows))
        await first.write(EraseRequest("r-2", [], ["s-1-0"]))
        await first.write(enrol(3))
        digest = first.state.digest
    threads: set[bool] = set()
    apply = ShardState.apply

    def noted(state: ShardState, record: LogRecord, log: LogRef) -> Any:
        threads.add(threading.current_thread() is not threading.main_thread())
        return apply(state, record, log)

    monkeypatch.setattr(ShardState, "apply", noted)
    async with world.primary("b2") as second:
        assert threads == {aside}
        assert (second.state.digest, second.state.position) == (digest, 3)
        assert found(second, enrol(3)) == ["s-3-0", "s-3-1"]


@pytest.mark.parametrize("large", [False, True])
async def test_a_changed_log_object_is_found_out_wherever_it_is_decoded(
    world: World, monkeypatch: pytest.MonkeyPatch, *, large: bool
) -> None:
    monkeypatch.setattr(recovery, "ASIDE_BYTES", 0 if large else 1 << 30)
    async with world.primary("b1") as first:
        await first.write(enrol(1))
    name = next(name for name in world.of_shard() if "/log/" in name)
    world.store.objects[name] += b"x"
    item = await world.coord.get(keys.tip(SHARD.shard_id))
    assert item is not None

    with pytest.raises(CorruptError) as told:
        await recovery.read_chain(
            world.store, SHARD.shard_id, after=None, tip=decode_tip(item.value).log
        )

    assert told.value.reason == "OBJECT_DAMAGED"


async def test_a_gap_in_a_long_log_is_found_out(world: World) -> None:
    async with world.primary("b1") as first:
        await first.write(enrol(1))
        await first.write(enrol(2, ROWS))
        loads = first.loads
    item = await world.coord.get(keys.tip(SHARD.shard_id))
    assert item is not None
    chain = await recovery.read_chain(
        world.store, SHARD.shard_id, after=None, tip=decode_tip(item.value).log
    )
    shape = ShardShape(SHARD.shard_id, SHARD.range, GALLERY.dim)
    state, _ = await recovery.load_segments(loads, shape, None, None)

    with pytest.raises(CorruptError) as told:
        await recovery.replay_unseen(state, chain[1:], loads)

    assert told.value.reason == "LOG_BROKEN"


async def test_a_segment_whose_rows_are_none_of_its_gallery_is_damage(world: World) -> None:
    """Packing would change them; and what is no damage would be tried again for ever."""
    async with world.primary("b1") as first:
        await first.write(enrol(1))
        await first.flush()
        loads = first.loads
    item = await world.coord.get(keys.manifest(SHARD.shard_id))
    assert item is not None
    manifest = await recovery.load_manifest(
        world.store, SHARD.shard_id, decode_manifest_pointer(item.value)
    )
    shape = ShardShape(SHARD.shard_id, SHARD.range, GALLERY.dim, component_bits=4)

    with pytest.raises(CorruptError, match="no row of its gallery") as told:
        await recovery.load_segments(loads, shape, manifest, None)

    assert told.value.reason == "SEGMENT_MISMATCH"
