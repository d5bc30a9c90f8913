"""Operations that are begun without being asked for, where that was switched on."""

from collections.abc import Sequence
from typing import Final

from facegrid.clock import Clock
from facegrid.errors import FacegridError
from facegrid.telemetry.log import Logger
from router.operate.planner import Planner
from router.operate.rebalancing import Rebalancing
from router.operate.register import Recorded

EVERY_S: Final = 10.0
"""Pause between two proposals, so that nodes tell what the operation before has changed."""
PLAN_S: Final = 10.0


class Automatic:
    """Begins what rebalancing proposes, one operation after the other.

    Args:
        planner: begins them.
        rebalancing: proposes them: draining and lost nodes are emptied first.
        clock: for pauses.
        logger: told what was begun and what could not be.
    """

    def __init__(
        self, planner: Planner, rebalancing: Rebalancing, clock: Clock, logger: Logger
    ) -> None:
        self._planner = planner
        self._rebalancing = rebalancing
        self._clock = clock
        self._logger = logger
        self._next_s = 0.0

    async def look(self, found: Sequence[Recorded]) -> None:
        """Begin the most urgent operation that can be begun, unless one is under way.

        One that an operator paused counts as under way.

        Raises:
            FacegridError: etcd or nodes cannot be asked.
        """
        if self._clock.now_s() < self._next_s:
            return
        if any(not one.operation.state.over for one in found):
            return
        self._next_s = self._clock.now_s() + EVERY_S
        deadline_s = self._clock.now_s() + PLAN_S
        balance = await self._rebalancing.propose(deadline_s=deadline_s)
        for planned in balance.moves:
            try:
                operation = await self._planner.start(
                    planned.spec,
                    request_id=f"automatic-{self._clock.unix_ms()}-{planned.map_version}",
                    map_version=planned.map_version,
                    deadline_s=deadline_s,
                )
            except FacegridError as error:
                self._logger.warning(
                    "move not begun", shard=planned.move.shard_id, problem=error.message
                )
                continue
            self._logger.info(
                "move begun", operation=operation.operation_id, cause=operation.cause
            )
            return
