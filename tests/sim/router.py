"""What a router knows of the cluster, in a run: the map and the claims as etcd told them last."""

from typing import Any

from facegrid import limits
from facegrid.api.shard.v1 import shard_service_pb2 as pb
from facegrid.coord import keys
from facegrid.errors import FacegridError
from facegrid.format.records import GenerationClaim, decode_generation, decode_shard_map
from facegrid.model import ShardAssignment
from tests.sim.services import SimCoordinator, SimEtcd
from tests.sim.world import Link, SimClock, World

LOOK_S = 0.4
LOOK_TIMEOUT_S = 1.0


class RouterView:
    """A view of etcd, which may be behind; vouches for primaries while it was confirmed lately."""

    def __init__(
        self, world: World, etcd: SimEtcd, link: Link, shards: tuple[ShardAssignment, ...]
    ) -> None:
        self.shards = shards
        self._world = world
        self._coord: Any = SimCoordinator(etcd, link)
        self._clock = SimClock(world)
        self._claims: dict[str, GenerationClaim] = {}
        self._confirmed_s = float("-inf")
        self._looked_s = float("-inf")

    async def look(self) -> None:
        """Read everything anew, if that was not done just now. Where etcd does not answer, what
        was known stays, and grows old.
        """
        asked_s = self._clock.now_s()
        if asked_s - self._looked_s < LOOK_S:
            return
        self._looked_s = asked_s
        try:
            # Everything as of one revision: the map and the claims belong together.
            snapshot = await self._coord.list("", timeout_s=LOOK_TIMEOUT_S)
        except FacegridError:
            return
        maps = [i for i in snapshot.items if i.key.startswith(keys.MAPS)]
        if maps:
            self.shards = decode_shard_map(maps[0].value).shards
        self._claims = {
            keys.name_of(item.key, keys.GENERATIONS): decode_generation(item.value)
            for item in snapshot.items
            if item.key.startswith(keys.GENERATIONS)
        }
        self._confirmed_s = asked_s

    def shard(self, shard_id: str) -> ShardAssignment:
        """Return a shard as the map has it."""
        return next(shard for shard in self.shards if shard.shard_id == shard_id)

    def trust(self, shard_id: str, node_id: str) -> pb.Trust:
        """Return what is said of a shard to the node that is asked."""
        accepted = self._world.rng.random() < 0.5
        age_s = self._clock.now_s() - self._confirmed_s
        claim = self._claims.get(shard_id)
        if age_s > limits.STALENESS_S or claim is None or claim.node_id != node_id:
            return pb.Trust(unconfirmed_accepted=accepted)
        return pb.Trust(primary_boot_id=claim.boot_id, unconfirmed_accepted=accepted)
