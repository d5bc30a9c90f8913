"""Keeping a node's registration alive: a hint where to connect, never a lock."""

from typing import Final

from facegrid.clock import Clock
from facegrid.coord import keys
from facegrid.coord.port import Coordinator, Put
from facegrid.errors import FacegridError, NotFoundError, UnavailableError
from facegrid.format.records import encode_node
from facegrid.model import NodeInfo
from facegrid.telemetry.log import Logger

RENEWALS_PER_TTL: Final = 3
"""Two renewals may fail before the registration ends."""
RETRY_S: Final = 0.5
LEAVE_TIMEOUT_S: Final = 1.0


class Registration:
    """Keeps `nodes/<id>/<boot>` in the coordinator for as long as `run` runs.

    Args:
        coord: where the key lies.
        node: what the key says.
        ttl_s: how long the key outlives a node that died.
        clock: when to renew.
        logger: told when the coordinator cannot be reached, and when it can again.
    """

    def __init__(
        self,
        coord: Coordinator,
        node: NodeInfo,
        ttl_s: int,
        clock: Clock,
        logger: Logger,
    ) -> None:
        assert ttl_s > 0, "a lease needs time"
        self._coord = coord
        self._key = keys.node(node.node_id, node.boot_id)
        self._value = encode_node(node)
        self._ttl_s = ttl_s
        self._clock = clock
        self._logger = logger
        self._lease_id = 0
        self._registered = False
        self._told = False
        """Whether an outage that lasts was told already."""

    async def run(self) -> None:
        """Register and renew until cancelled; then take the key back, if that is quickly done.

        Goes on through outages of the coordinator, and registers again when the lease has ended.
        """
        try:
            while True:
                await self._clock.sleep(await self._keep())
        finally:
            await self._leave()

    async def _keep(self) -> float:
        """Do what is due; return the seconds until something is due again."""
        interval_s = self._ttl_s / RENEWALS_PER_TTL
        try:
            if self._registered:
                await self._coord.renew_lease(self._lease_id, timeout_s=interval_s)
            else:
                await self._register(interval_s)
        except NotFoundError:
            self._logger.warning("registration ended", key=self._key)
            self._lease_id = 0
            self._registered = False
            return min(RETRY_S, interval_s)
        except UnavailableError as error:
            if not self._told:
                self._logger.warning("registration not renewed", key=self._key, problem=str(error))
            self._told = True
            return min(RETRY_S, interval_s)
        self._told = False
        return interval_s

    async def _register(self, timeout_s: float) -> None:
        """Put the key under a lease. Trying again is harmless: the key is ours alone."""
        if self._lease_id == 0:
            self._lease_id = await self._coord.grant_lease(self._ttl_s, timeout_s=timeout_s)
        put = Put(self._key, self._value, self._lease_id)
        await self._coord.txn([], [put], timeout_s=timeout_s)
        self._registered = True
        self._logger.info("registered", key=self._key, ttl_s=self._ttl_s)

    async def _leave(self) -> None:
        """End the lease, so that nobody connects any more; a lease left behind ends by itself."""
        if self._lease_id == 0:
            return
        try:
            await self._coord.revoke_lease(self._lease_id, timeout_s=LEAVE_TIMEOUT_S)
        except FacegridError as error:
            self._logger.warning("registration left behind", key=self._key, problem=str(error))
