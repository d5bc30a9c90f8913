"""Exchanges the state of a copy for one without erased rows, while it serves: what of it waits."""

import asyncio
from functools import partial

from facegrid import limits
from facegrid.errors import CorruptError
from indexd.engine.repack import Repack, due
from indexd.replica.shard_copy import Phase, ShardCopy

BEHIND_SHARE = 1 / 64
"""Of a step's rows so many are left to the event loop, which they hold up for some ms."""


class Repacker:
    """Repacks the copies of a node, one at a time: each takes the memory of its rows once more."""

    def __init__(self) -> None:
        self._one = asyncio.Lock()

    def due(self, copy: ShardCopy) -> bool:
        """Tell whether a copy holds so many erased rows that it is worth it."""
        return copy.repacks and copy.phase is Phase.SERVING and due(copy.state)

    async def repack(self, copy: ShardCopy) -> None:
        """Put a state without erased rows in the place of a copy's, if it still serves then.

        Searches on the old state look again in the new one, see ShardService. Writes go on: the
        exchange itself waits for nothing, so they find the one state or the other.
        """
        async with self._one, copy.building:
            state, started_s = copy.state, copy.ports.clock.now_s()
            if not self.due(copy):
                return
            repack = await copy.on(copy.ports.build_thread, partial(Repack, state))
            done = False
            while not done:
                await _come_near(copy, repack)
                # Waiting for this may take long. Holding it must not: see Follower.confirm.
                async with copy.handing_over():
                    done = _exchange(copy, repack, started_s)


def _behind_max() -> int:
    return int(limits.REPACK_STEP_ROWS * BEHIND_SHARE)


async def _come_near(copy: ShardCopy, repack: Repack) -> None:
    """Copy until few rows are left, or the copy has no use for it any more."""
    ports = copy.ports
    while copy.phase is Phase.SERVING and repack.of(copy.state):
        step = repack.next_step(_behind_max())
        if step is None:
            break
        encoded = await copy.on(ports.search_thread, partial(repack.encoded, step))
        await copy.on(ports.build_thread, partial(repack.copy, step, encoded))
    await copy.on(ports.build_thread, repack.erase)


def _exchange(copy: ShardCopy, repack: Repack, started_s: float) -> bool:
    """Put the new state in the place of the old one; tell whether nothing is left to be done."""
    before = copy.state.rows_count
    if copy.phase is not Phase.SERVING or not repack.of(copy.state):
        return True
    if repack.next_step(_behind_max()) is not None:
        return False
    try:
        packed = repack.finish()
    except CorruptError as error:
        copy.give_up_repacking(error)
        return True
    copy.exchange(packed, repack.persisted(copy.persisted))
    copy.log.info(
        "repacked",
        rows_before=before,
        rows=packed.rows_count,
        position=packed.position,
        duration_s=round(copy.ports.clock.now_s() - started_s, 3),
    )
    return True
