"""The driver: looks at all operations again and again, as long as this router is elected."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

from facegrid import limits
from facegrid.clock import Clock
from facegrid.errors import FacegridError
from facegrid.format.operations import OperationState, RebalancerSettings
from facegrid.rpc.together import all_of
from facegrid.telemetry.log import Logger
from router.dispatch.supervisor import Broken, Done, Supervisor
from router.operate.automatic import Automatic
from router.operate.parts import Operate
from router.operate.performer import Performer
from router.operate.register import Recorded
from router.plan.kinds import abortable

BUSY_S: Final = 0.5
"""Pause between two looks while operations are at work."""
IDLE_S: Final = 1.0
"""The same while none is."""
ROUND_S: Final = 10.0
"""Time for etcd to tell what there is."""
WAITS_FOR_TURN: Final = "waits for its turn"


class Driver:
    """Drives operations.

    Args:
        operate: reads operations, and knows who drives and how quick searches are.
        performer: advances one operation.
        supervisor: keeps a bug met in one operation from ending others, and the router.
        clock: for pauses.
        logger: told when it cannot go on.
    """

    def __init__(
        self,
        operate: Operate,
        performer: Performer,
        *,
        supervisor: Supervisor,
        clock: Clock,
        logger: Logger,
    ) -> None:
        self._supervisor = supervisor
        self._election = operate.election
        self._operate = operate
        self._performer = performer
        self._automatic = Automatic(operate.planner, operate.rebalancing, clock, logger)
        self._clock = clock
        self._logger = logger
        self._told = False
        self.counts: Mapping[tuple[str, str], int] = {}
        """How many operations there are by state and next step, as of the last look; none while
        another router drives."""

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            match await self._supervisor.start(self.look()):
                case Done(pause_s):
                    await self._clock.sleep(pause_s)
                case Broken(error):
                    self._logger.error("operations not driven", problem=repr(error))
                    await self._clock.sleep(IDLE_S)

    async def look(self) -> float:
        """Look once at everything; return the seconds until the next look.

        Without etcd nothing is done: the next look finds what was left undone.
        """
        self._operate.rebalancing.look()
        if self._election.guard is None:
            self.counts = {}
            return IDLE_S
        try:
            busy = await self._round()
        except FacegridError as error:
            if not self._told:
                self._logger.warning("operations not driven", problem=error.message)
            self._told = True
            return IDLE_S
        self._told = False
        return BUSY_S if busy else IDLE_S

    async def _round(self) -> bool:
        """Advance each operation whose turn it is by a step; tell whether there was any."""
        register = self._operate.register
        deadline_s = self._clock.now_s() + ROUND_S
        found = await register.operations(deadline_s=deadline_s)
        self.counts = Counter(
            (one.operation.state.name.lower(), one.operation.step) for one in found
        )
        settings = await register.settings(deadline_s=deadline_s)
        for old in _forgotten(found):
            await self._performer.forget(old)
        chosen = _at_work(found, settings)
        braked = self._braked(settings)
        # Of a gallery that is dropped nothing may stay, whoever paused what was done to it.
        paused = [one for one in found if one.operation.state is OperationState.PAUSED]
        await all_of([self._advance(one, braked=braked) for one in (*chosen, *paused)])
        for one in found:
            if one not in chosen:
                await self._performer.note(one, WAITS_FOR_TURN)
        if settings.automatic and not braked:
            await self._automatic.look(found)
        return bool(chosen)

    async def _advance(self, recorded: Recorded, *, braked: bool) -> None:
        """Advance one operation; what breaks there stops that one alone."""
        work = self._performer.advance(recorded, braked=braked)
        outcome = await self._supervisor.start(work)
        if isinstance(outcome, Broken):
            await self._performer.stop(recorded, outcome.error)

    def _braked(self, settings: RebalancerSettings) -> bool:
        """Tell whether searches are too slow for anything to be begun."""
        p99_ms = self._operate.latencies.p99_ms()
        return 0 < settings.p99_limit_ms < p99_ms


def _at_work(found: Sequence[Recorded], settings: RebalancerSettings) -> list[Recorded]:
    """Return the operations to be advanced: those on their way back, and of the others first those
    past their cutover, since they are soon over and cannot be aborted, then the oldest.
    """
    back = [one for one in found if one.operation.state is OperationState.ABORTING]
    running = [one for one in found if one.operation.state is OperationState.RUNNING]
    running.sort(key=lambda one: abortable(one.operation))
    return [*back, *running[: settings.at_once_max]]


def _forgotten(found: Sequence[Recorded]) -> list[Recorded]:
    """Return operations that were over before many others."""
    over = [one for one in found if one.operation.state.over]
    over.sort(key=lambda one: one.operation.step_unix_ms)
    return over[: max(0, len(over) - limits.OPERATIONS_KEPT_MAX)]
