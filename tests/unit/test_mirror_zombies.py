"""A source's primary that has not heard that it is none any more."""

import pytest

from facegrid.api.shard.v1 import shard_service_pb2 as pb
from facegrid.coord.port import Delete
from facegrid.errors import FencedError
from indexd.replica.mirror import Mirror
from tests.fakes.mirror_rig import LOW, N1, N2, S, rigged, split_map
from tests.fakes.waiting import until
from tests.unit.test_fgctl_meta_reshaped import recovered, stop
from tests.unit.test_mirror import enrol


async def test_a_base_is_not_brought_over_by_who_is_the_primary_no_more() -> None:
    """1 a process stands still; 2 another one claims the shard, and trims its log; 3 the shard is
    to be split; 4 the first hears of that, and not yet of the claim. From its position on nobody
    could bring the log over.
    """
    async with rigged() as rig:
        await rig.start(N1)
        source = await rig.serving(S)
        await source.write(enrol(1))
        await source.flush()
        source.fence = lambda: None  # type: ignore[method-assign]  # it has not heard
        await rig.raise_generation(S)
        brought: list[pb.MirrorRequest] = []

        async def ask(request: pb.MirrorRequest, _timeout_s: float) -> pb.MirrorResponse:
            brought.extend([request] if request.records else [])
            return pb.MirrorResponse(source_position=request.last_position)

        mirror = Mirror(source, split_map().pending[0], ask, lambda: "000000000001")
        assert await mirror.step(), "it asks how far the child is"
        with pytest.raises(FencedError):
            await mirror.step()
        assert brought == []


async def test_nothing_is_deleted_because_etcd_was_wiped_during_a_split() -> None:
    """The new shards may have taken the old one's place, and been written to, without its primary
    having heard: then what it stored for them is theirs, and needed for the recovery of etcd.
    """
    async with rigged(shard_map=split_map()) as rig:
        await rig.start(N1)
        await rig.start(N2)
        source = await rig.serving(S)
        for number in range(1, 4):
            await source.write(enrol(number))
        await rig.brought_over()
        before = set(rig.store.objects)
        assert any(f"shards/{LOW}/segments/" in name for name in before)
        mirrors = [one.node.mirrors for one in rig.processes.values()]
        keys_there = [item.key for item in (await rig.coord.list("")).items]
        await rig.coord.txn([], [Delete(key) for key in keys_there])
        await until(lambda: not any(one._running for one in mirrors if one is not None))

        assert set(rig.store.objects) >= {name for name in before if "/loads/" not in name}
        await stop(rig)
        plan, _ = await recovered(rig)
        assert plan.complete, "a shard that lacks what was brought into it would stand in the way"
