"""Which router drives operations: the one that holds the key `driver` under its lease.

The lease is no lock: whoever acts as driver names the key in the guards of each transaction. So
one that was superseded without noticing changes nothing.
"""

from typing import Final

from facegrid.clock import Clock
from facegrid.coord import keys
from facegrid.coord.port import Coordinator, Guard, Put
from facegrid.errors import FacegridError, NotFoundError, UnavailableError
from facegrid.telemetry.log import Logger

TTL_S: Final = 6
"""How long a driver that died keeps others from taking its place."""
RENEWALS_PER_TTL: Final = 3
RETRY_S: Final = 1.0
"""Pause before etcd is asked again who drives."""
LEAVE_TIMEOUT_S: Final = 1.0


class Election:
    """Stands for driver for as long as `run` runs.

    Args:
        coordinator: where the key lies.
        address: of this router; the key names it, with the lease.
        clock: when to renew, and until when the lease surely lasts.
        logger: told of the outcome.
    """

    def __init__(
        self, coordinator: Coordinator, address: str, clock: Clock, logger: Logger
    ) -> None:
        self._coordinator = coordinator
        self._address = address
        self._clock = clock
        self._logger = logger
        self._lease_id = 0
        self._revision = 0
        self._until_s = 0.0

    @property
    def guard(self) -> Guard | None:
        """What the driver's transactions are guarded by; None: this router does not drive."""
        if not self._revision or self._clock.now_s() >= self._until_s:
            return None
        return Guard(keys.DRIVER, self._revision)

    async def run(self) -> None:
        """Stand, and stand again when the lease was lost, until cancelled; then step down."""
        try:
            while True:
                await self._clock.sleep(await self._keep())
        finally:
            await self._leave()

    async def _keep(self) -> float:
        """Do what is due; return the seconds until something is due again."""
        interval_s = TTL_S / RENEWALS_PER_TTL
        sent_s = self._clock.now_s()
        try:
            if self._lease_id:
                await self._coordinator.renew_lease(self._lease_id, timeout_s=interval_s)
            # Asked every time: the key may have been deleted, and the lease live on.
            if await self._stand(interval_s):
                self._until_s = sent_s + TTL_S
                return interval_s
        except NotFoundError:
            if self._revision:
                self._logger.warning("drives operations no more, its lease has ended")
            self._lease_id = self._revision = 0
        except UnavailableError:
            # A driver stops at `_until_s` by itself, and may find its lease alive afterwards.
            return min(RETRY_S, interval_s)
        return RETRY_S

    async def _stand(self, timeout_s: float) -> bool:
        """Take the key if nobody has it; tell whether this router has it now."""
        held = await self._coordinator.get(keys.DRIVER, timeout_s=timeout_s)
        if held is None:
            if not self._lease_id:
                self._lease_id = await self._coordinator.grant_lease(TTL_S, timeout_s=timeout_s)
            name = f"{self._address}#{self._lease_id:x}"
            put = Put(keys.DRIVER, name.encode(), self._lease_id)
            await self._coordinator.txn([Guard(keys.DRIVER, 0)], [put], timeout_s=timeout_s)
            # Read back: so an answer that was lost makes no difference.
            held = await self._coordinator.get(keys.DRIVER, timeout_s=timeout_s)
        if held is None or not self._lease_id or held.lease_id != self._lease_id:
            self._revision = 0
            return False
        if held.mod_revision != self._revision:
            self._logger.info("drives operations", key=keys.DRIVER)
        self._revision = held.mod_revision
        return True

    async def _leave(self) -> None:
        """End the lease, so that another router drives at once."""
        self._revision = 0
        if not self._lease_id:
            return
        try:
            await self._coordinator.revoke_lease(self._lease_id, timeout_s=LEAVE_TIMEOUT_S)
        except FacegridError as error:
            self._logger.warning("driver's lease left behind", problem=error.message)
