"""What is done about alarms of canaries: tune again, and train where that does not help.

Any node may raise an alarm; the node of the gallery's first shard alone does something about it.
Others tell it, over and over while the alarm stands, and it acts once: an alarm names the tuning
that it is about, and one about a tuning that was replaced is nothing to act on.

Training again is costly, so it happens at most once in a while, by whatever process, over starts
and changes of the map: before it begins the time is written into the gallery's record, in a
transaction that holds only if nobody else has changed it.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Final, Protocol

from facegrid.api.shard.v1 import shard_service_pb2 as pb
from facegrid.api.shard.v1.shard_service_pb2_grpc import ShardServiceStub
from facegrid.clock import Clock
from facegrid.coord import keys
from facegrid.coord.port import Coordinator, Guard, Put
from facegrid.errors import FacegridError, FencedError, InvalidError, UnavailableError
from facegrid.format.records import encode_gallery
from facegrid.ids import GalleryName, NodeId
from facegrid.model import Gallery
from facegrid.rpc.call import call
from facegrid.rpc.pool import ChannelPool
from facegrid.telemetry.log import Logger
from facegrid.tuning import Profile, Tuning
from facegrid.tuning_messages import from_profile_message, to_profile_message
from indexd.engine.alarms import TuningId
from indexd.replica.drift import Drift
from indexd.replica.view import View

CALL_S: Final = 5.0
WORK_S: Final = 1800.0
"""How long tuning or training may take."""
LOOK_S: Final = 0.05
"""How often to look whether this node has heard of what it wrote itself."""
LOOK_S_MAX: Final = 10.0


@dataclass(frozen=True, slots=True)
class Alarm:
    """A profile misses more than it may.

    Attributes:
        gallery: whose.
        profile: which.
        tuning: by which it was searched.
        mates_count: mates compared.
        misses_count: of these.
    """

    gallery: GalleryName
    profile: Profile
    tuning: TuningId
    mates_count: int
    misses_count: int


def to_alarm_message(alarm: Alarm) -> pb.CanaryAlarm:
    """Return what an alarm says of its gallery."""
    return pb.CanaryAlarm(
        profile=to_profile_message(alarm.profile),
        codebook=alarm.tuning.codebook,
        tuned_unix_ms=alarm.tuning.tuned_unix_ms,
        mates_count=alarm.mates_count,
        misses_count=alarm.misses_count,
    )


def from_alarm_message(gallery: str, message: pb.CanaryAlarm) -> Alarm:
    """Return the alarm that another node tells of.

    Raises:
        InvalidError: it names no profile (PROFILE_UNKNOWN).
    """
    profile = from_profile_message(message.profile)
    if profile is None:
        raise InvalidError("no profile", reason="PROFILE_UNKNOWN", field="alarm")
    return Alarm(
        GalleryName(gallery),
        profile,
        TuningId(message.codebook, message.tuned_unix_ms),
        message.mates_count,
        message.misses_count,
    )


class Tunes(Protocol):
    """Measures a gallery and makes the outcome its tuning."""

    async def tune(self, name: str, mates_count_max: int, deadline_s: float) -> Tuning:
        """Return the new tuning. At most so many mates are measured; 0: as many as it takes."""
        ...


class Trains(Protocol):
    """Trains a codebook and makes it the gallery's."""

    async def train(self, name: str, deadline_s: float) -> tuple[str, int]:
        """Return the codebook's sha256, and the rows it was trained on."""
        ...


@dataclass(frozen=True, slots=True)
class Healing:
    """What helps.

    Attributes:
        tuner: measures anew.
        trainer: trains anew.
        drift: measures whether recent rows are coded as well as those trained on.
        fits: whether a number of lists suits a number of templates.
        retrain_pause_s: a gallery is trained because of alarms at most so often; 0: never.
    """

    tuner: Tunes
    trainer: Trains
    drift: Callable[[GalleryName], Awaitable[Drift | None]]
    fits: Callable[[int, int], bool]
    retrain_pause_s: float


@dataclass(frozen=True, slots=True)
class RemedyPorts:
    """What this needs of the node."""

    node_id: NodeId
    coord: Coordinator
    clock: Clock
    view: View
    pool: ChannelPool
    logger: Logger


class Remedies:
    """Hears alarms, and acts on those of galleries whose first shard's primary is on this node.

    Args:
        ports: of the node.
        healing: what helps; None: nothing here, so that alarms are only told of.
    """

    def __init__(self, ports: RemedyPorts, healing: Healing | None) -> None:
        self._ports = ports
        self._healing = healing
        self._waiting: dict[GalleryName, Alarm] = {}
        self._called = asyncio.Event()
        self._made: dict[str, TuningId] = {}
        """By gallery uid: the tuning made here last because of an alarm. One about that very
        tuning shows that tuning does not help."""
        self._replaced: dict[str, TuningId] = {}
        """By gallery uid: what was tuned away last. This node may not have heard of that yet."""
        self._refused: dict[str, TuningId] = {}
        """By gallery uid: for which alarm it was said that nothing is trained."""

    async def tell(self, alarm: Alarm) -> None:
        """Let the node that can do something know of an alarm; it may be this one.

        Raises:
            UnavailableError: that node is not there.
            FacegridError: it did not take the alarm.
        """
        node_id = self._first_node(alarm.gallery)
        if node_id == self._ports.node_id:
            self.heed(alarm)
            return
        address = None if node_id is None else self._ports.view.address(node_id)
        if address is None:
            raise UnavailableError(
                f"nobody is there to be told of an alarm gallery={alarm.gallery}",
                reason="NODE_AWAY",
                gallery=alarm.gallery,
            )
        stub = ShardServiceStub(self._ports.pool.get(address))
        request = pb.TuneRequest(gallery=alarm.gallery, alarm=to_alarm_message(alarm))
        await call(stub.Tune, request, timeout_s=CALL_S)

    def heed(self, alarm: Alarm) -> None:
        """Have something done about an alarm, unless it is outdated or not for this node."""
        if self._gallery(alarm) is not None:
            self._waiting[alarm.gallery] = alarm
            self._called.set()

    async def run(self) -> None:
        """Act on alarms, one at a time, until cancelled."""
        while True:
            await self._called.wait()
            self._called.clear()
            while self._waiting:
                alarm = self._waiting.pop(next(iter(self._waiting)))
                try:
                    await self._act(alarm)
                except FacegridError as error:
                    # It is told of again while it stands.
                    self._ports.logger.warning(
                        "nothing came of an alarm",
                        gallery=alarm.gallery,
                        reason=error.reason,
                        problem=error.message,
                    )

    def _first_node(self, name: GalleryName) -> NodeId | None:
        shard_map = self._ports.view.shard_map(name)
        if shard_map is None:
            return None
        return min(shard_map.shards, key=lambda shard: shard.range.first).primary

    def _gallery(self, alarm: Alarm) -> Gallery | None:
        """Return the gallery if there is something to be done here about an alarm."""
        gallery = self._ports.view.gallery(alarm.gallery)
        if gallery is None or gallery.tuning is None:
            return None
        if TuningId.of(gallery.tuning) != alarm.tuning:
            return None
        return gallery if self._first_node(alarm.gallery) == self._ports.node_id else None

    async def _act(self, alarm: Alarm) -> None:
        """Tune; train if there is a reason to."""
        gallery, healing = self._gallery(alarm), self._healing
        if gallery is None or gallery.tuning is None or healing is None:
            return
        if self._replaced.get(gallery.uid) == alarm.tuning:
            return
        if gallery.codebook != alarm.tuning.codebook:
            # Trained since, and not tuned yet.
            await self._tuned(healing, gallery, alarm)
            return
        reason = "the alarm remains"
        if self._made.get(gallery.uid) != alarm.tuning:
            reason = await self._tune(healing, gallery, gallery.tuning, alarm)
        if not reason:
            return
        refusal = self._refusal(healing, gallery)
        if not refusal:
            await self._train(healing, gallery, alarm, reason)
        elif self._refused.get(gallery.uid) != alarm.tuning:
            self._refused[gallery.uid] = alarm.tuning
            self._ports.logger.warning(
                "not trained again", gallery=gallery.name, because=reason, problem=refusal
            )

    async def _tune(self, healing: Healing, gallery: Gallery, before: Tuning, alarm: Alarm) -> str:
        """Tune; return why it does not help, empty if it may."""
        after = await self._tuned(healing, gallery, alarm)
        drift = await healing.drift(gallery.name)
        if _proves(before, alarm.profile) and not _proves(after, alarm.profile):
            return "the rate cannot be shown any more unless all lists are searched"
        if drift is not None and drift.is_great:
            return f"recent rows are coded worse than those trained on ratio={drift.ratio:.2f}"
        if not healing.fits(after.nlist, after.templates_count):
            return f"the gallery has outgrown its lists nlist={after.nlist}"
        return ""

    async def _tuned(self, healing: Healing, gallery: Gallery, alarm: Alarm) -> Tuning:
        deadline_s = self._ports.clock.now_s() + WORK_S
        tuning = await healing.tuner.tune(gallery.name, 0, deadline_s)
        self._replaced[gallery.uid] = alarm.tuning
        self._made[gallery.uid] = TuningId.of(tuning)
        self._ports.logger.info(
            "tuned again", gallery=gallery.name, profile=alarm.profile.value, nlist=tuning.nlist
        )
        return tuning

    def _refusal(self, healing: Healing, gallery: Gallery) -> str:
        """Say why a gallery is not to be trained now; empty where it may be."""
        if not healing.retrain_pause_s:
            return "this node is set to train nothing again by itself"
        if not gallery.train_at_templates_count:
            return "the gallery is set to be trained only when told"
        since_s = (self._ports.clock.unix_ms() - gallery.retrained_unix_ms) / 1000
        if since_s < healing.retrain_pause_s:
            return "it was trained again a while ago"
        return ""

    async def _train(self, healing: Healing, gallery: Gallery, alarm: Alarm, reason: str) -> None:
        """Train and tune, if nobody else does."""
        deadline_s = self._ports.clock.now_s() + WORK_S
        await self._claim(healing, gallery.name)
        sha256, sample_count = await healing.trainer.train(gallery.name, deadline_s)
        self._ports.logger.info(
            "trained again",
            gallery=gallery.name,
            because=reason,
            codebook=sha256,
            sample=sample_count,
        )
        await self._tuned(healing, gallery, alarm)

    async def _claim(self, healing: Healing, name: GalleryName) -> None:
        """Write down that training begins.

        Raises:
            FencedError: another node has just done so, or the gallery changed otherwise.
            UnavailableError: etcd cannot be reached, or does not tell this node of its own write.
        """
        ports = self._ports
        gallery, revision = ports.view.gallery(name), ports.view.gallery_revision(name)
        if gallery is None or self._refusal(healing, gallery):
            raise FencedError(
                f"the gallery changed meanwhile gallery={name}",
                reason="GALLERY_CHANGED",
                gallery=name,
            )
        claimed = replace(gallery, retrained_unix_ms=ports.clock.unix_ms())
        key = keys.gallery(name)
        result = await ports.coord.txn([Guard(key, revision)], [Put(key, encode_gallery(claimed))])
        if not result.succeeded:
            raise FencedError(
                f"another node trains the gallery, or it changed gallery={name}",
                reason="GALLERY_CHANGED",
                gallery=name,
            )
        # Training publishes by what this node has heard.
        until_s = ports.clock.now_s() + LOOK_S_MAX
        while ports.view.gallery_revision(name) < result.revision:
            if ports.clock.now_s() >= until_s:
                raise UnavailableError(
                    f"etcd does not tell of what was written gallery={name}",
                    reason="ETCD_SILENT",
                    gallery=name,
                )
            await ports.clock.sleep(LOOK_S)


def _proves(tuning: Tuning, profile: Profile) -> bool:
    """Tell whether a tuning shows the rate wanted without looking into all lists."""
    effort = tuning.efforts[profile]
    return effort.proven and effort.nprobe < tuning.nlist
