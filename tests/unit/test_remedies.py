"""Alarms are answered once, by the node of the first shard: by tuning, then by training."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from facegrid.api.shard.v1 import shard_service_pb2 as pb
from facegrid.coord import keys
from facegrid.coord.port import Guard, KeyValue, Listing, Put, Snapshot
from facegrid.errors import FacegridError, InvalidError, UnavailableError
from facegrid.format.records import decode_gallery, encode_gallery, encode_node
from facegrid.ids import NodeId
from facegrid.model import Gallery, NodeInfo, ShardMap
from facegrid.rpc.pool import ChannelPool
from facegrid.testing.manual_clock import ManualClock
from facegrid.testing.memory_coord import MemoryCoordinator
from facegrid.tuning import Effort, Profile, Tuning
from indexd.engine.alarms import TuningId
from indexd.replica.canaries import Canaries
from indexd.replica.drift import RATIO_MAX, Drift
from indexd.replica.fence import Claimant
from indexd.replica.remedies import (
    LOOK_S_MAX,
    Alarm,
    Healing,
    Remedies,
    RemedyPorts,
    from_alarm_message,
    to_alarm_message,
)
from indexd.replica.spread import Spread
from indexd.replica.view import View
from indexd.service.shard_service import ServicePorts, ShardService
from tests.fakes.canary_world import (
    GALLERY,
    MAP,
    NAME,
    NLIST,
    CanaryWorld,
    Log,
    tuning,
    viewed,
)

HOUR_S = 3600.0
KEY = keys.gallery(NAME)
NEW_BOOK = "cd" * 32


@dataclass
class World:
    """etcd and two nodes, of which n1 has the first shard. Tuning and training are made up."""

    gallery: Gallery = GALLERY
    node_ids: tuple[str, ...] = ("n1",)
    pause_s: float = HOUR_S
    clock: ManualClock = field(default_factory=lambda: ManualClock(unix_ms=10_000_000_000))
    done: list[str] = field(default_factory=list)
    after: Callable[[Tuning], Tuning] = lambda made: made
    ratio: float = 1.0
    fits: bool = True
    trouble: FacegridError | None = None
    log: Log = field(default_factory=Log)
    hears: bool = True

    def __post_init__(self) -> None:
        self.coord = MemoryCoordinator(self.clock)
        self.views = {node_id: View() for node_id in self.node_ids}
        self.remedies = {node_id: self._remedies(node_id) for node_id in self.node_ids}

    def _remedies(self, node_id: str) -> Remedies:
        logger: Any = self.log
        ports = RemedyPorts(
            NodeId(node_id), self.coord, self.clock, self.views[node_id], ChannelPool(), logger
        )
        healing = Healing(
            tuner=self,
            trainer=self,
            drift=self._drift,
            fits=lambda _nlist, _templates: self.fits,
            retrain_pause_s=self.pause_s,
        )
        return Remedies(ports, healing)

    async def _drift(self, _gallery: str) -> Drift | None:
        return Drift("ab", self.ratio)

    async def now(self) -> Gallery:
        item = await self.coord.get(KEY)
        assert item is not None
        return decode_gallery(item.value)

    async def write(self, gallery: Gallery) -> None:
        await self.coord.txn([], [Put(KEY, encode_gallery(gallery))])
        if self.hears:
            await self.hear()

    async def hear(self, shard_map: ShardMap = MAP) -> None:
        """Let all nodes know what etcd says."""
        item = await self.coord.get(KEY)
        assert item is not None
        for view in self.views.values():
            viewed(view, decode_gallery(item.value), item.mod_revision, shard_map)

    async def tune(self, name: str, mates_count_max: int, deadline_s: float) -> Tuning:
        assert (name, mates_count_max) == (NAME, 0)
        assert deadline_s > self.clock.now_s()
        self.done.append("tune")
        if self.trouble is not None:
            raise self.trouble
        gallery = await self.now()
        await self.clock.sleep(1)
        made = replace(tuning(4, tuned_unix_ms=self.clock.unix_ms()), codebook=gallery.codebook)
        made = self.after(made)
        await self.write(replace(gallery, tuning=made))
        return made

    async def train(self, name: str, deadline_s: float) -> tuple[str, int]:
        """Publish by what the node has heard, as the trainer does."""
        assert deadline_s > self.clock.now_s()
        self.done.append("train")
        view = self.views[self.node_ids[0]]
        gallery, revision = view.gallery(name), view.gallery_revision(name)
        assert gallery is not None
        value = encode_gallery(replace(gallery, codebook=NEW_BOOK))
        result = await self.coord.txn([Guard(KEY, revision)], [Put(KEY, value)])
        assert result.succeeded, "the claim was heard of before"
        await self.hear()
        return NEW_BOOK, 1100

    async def raised(self) -> Alarm:
        """Return an alarm about the tuning that there is."""
        made = (await self.now()).tuning
        assert made is not None
        return Alarm(NAME, Profile.FAST, TuningId.of(made), 400, 80)

    async def answer(self, *alarms: Alarm, duration_s: float = 15) -> None:
        """Let the first node act on alarms, or on one about what there is."""
        first = self.remedies[self.node_ids[0]]
        for alarm in alarms or [await self.raised()]:
            first.heed(alarm)
        running = [asyncio.ensure_future(one) for one in (first.run(), self.listen())]
        await self.clock.advance(duration_s)
        for one in running:
            one.cancel()
            with pytest.raises(asyncio.CancelledError):
                await one

    async def listen(self) -> None:
        """Let nodes hear a moment later of what they write."""
        while True:
            await self.clock.sleep(1)
            if self.hears:
                await self.hear()

    def said(self) -> list[str]:
        return [event for event, _ in self.log.lines]


async def made(**options: Any) -> World:
    world = World(**options)
    await world.write(world.gallery)
    await world.hear()
    return world


async def test_an_alarm_is_answered_by_tuning() -> None:
    world = await made()
    await world.answer()

    now = await world.now()
    assert world.done == ["tune"]
    assert now.tuning is not None
    assert now.tuning.tuned_unix_ms > 1
    assert now.retrained_unix_ms == 0


async def test_the_same_alarm_of_many_nodes_is_answered_once() -> None:
    """Others tell of it while it is being answered, and just after that too."""
    world = await made()
    alarm = await world.raised()
    world.hears = False
    await world.answer(alarm, alarm)
    await world.answer(alarm)
    assert world.done == ["tune"], "this node has not heard of its own tuning yet"

    await world.hear()
    await world.answer(alarm)
    assert world.done == ["tune"], "the alarm is about a tuning that was replaced"


async def test_an_alarm_that_remains_is_answered_by_training_and_tuning() -> None:
    world = await made()
    await world.answer()
    await world.answer()

    now = await world.now()
    assert world.done == ["tune", "train", "tune"]
    assert now.codebook == NEW_BOOK
    assert now.tuning is not None
    assert now.tuning.codebook == NEW_BOOK
    assert now.retrained_unix_ms > 0
    assert "trained again" in world.said()


def unproven(made: Tuning) -> Tuning:
    lists = Effort(nprobe=NLIST, depth=1000)
    return replace(made, efforts=dict.fromkeys(Profile, lists))


@pytest.mark.parametrize(
    ("reason", "options"),
    [
        ("cannot be shown", {"after": unproven}),
        ("recent rows", {"ratio": RATIO_MAX + 0.01}),
        ("outgrown its lists", {"fits": False}),
    ],
)
async def test_training_follows_at_once_where_tuning_shows_that_it_is_needed(
    reason: str, options: dict[str, Any]
) -> None:
    world = await made(**options)
    await world.answer()

    assert world.done == ["tune", "train", "tune"]
    (facts,) = [facts for event, facts in world.log.lines if event == "trained again"]
    assert reason in str(facts["because"])


async def test_a_profile_that_was_never_shown_to_suffice_is_no_reason_to_train() -> None:
    before = unproven(tuning(1))
    world = await made(gallery=replace(GALLERY, tuning=before), after=unproven)
    await world.answer()

    assert world.done == ["tune"]


async def test_training_happens_at_most_once_an_hour_over_starts_of_nodes() -> None:
    world = await made()
    for _ in range(5):
        await world.answer()
    assert world.done == ["tune", "train", "tune"]
    assert world.said().count("not trained again") == 1, "said once"

    world.remedies["n1"] = world._remedies("n1")
    await world.answer()
    await world.answer()
    assert world.done[3:] == ["tune"], "it was started anew: only etcd remembers"

    await world.clock.advance(HOUR_S)
    await world.answer()
    assert world.done[4:] == ["train", "tune"]


@pytest.mark.parametrize(
    "options", [{"pause_s": 0.0}, {"gallery": replace(GALLERY, train_at_templates_count=0)}]
)
async def test_training_can_be_switched_off(options: dict[str, Any]) -> None:
    world = await made(**options)
    for _ in range(4):
        await world.answer()

    assert world.done == ["tune"]
    assert world.said().count("not trained again") == 1
    assert (await world.now()).retrained_unix_ms == 0


async def test_of_two_nodes_that_both_think_they_have_the_first_shard_one_trains() -> None:
    """1 both have tuned, which did not help; 2 one claims; 3 the other has not heard of that."""
    world = await made(node_ids=("n1", "n2"))
    await world.answer()
    alarm = await world.raised()
    other = world._remedies("n2")
    other._ports = replace(other._ports, node_id=NodeId("n1"), view=world.views["n2"])
    other._made = dict(world.remedies["n1"]._made)
    item = await world.coord.get(KEY)
    assert item is not None
    other.heed(alarm)
    gallery = replace(await world.now(), retrained_unix_ms=world.clock.unix_ms())
    await world.coord.txn([], [Put(KEY, encode_gallery(gallery))])
    running = asyncio.ensure_future(other.run())
    await world.clock.advance(100)
    running.cancel()

    assert world.done == ["tune"]
    assert world.log.lines[-1][1]["reason"] == "GALLERY_CHANGED"


async def test_a_node_that_does_not_hear_of_its_claim_does_not_train() -> None:
    world = await made()
    await world.answer()
    alarm = await world.raised()
    world.hears = False
    running = asyncio.ensure_future(world.remedies["n1"].run())
    world.remedies["n1"].heed(alarm)
    await world.clock.advance(LOOK_S_MAX + 1)
    running.cancel()

    assert world.done == ["tune"]
    assert world.log.lines[-1][1]["reason"] == "ETCD_SILENT"


async def test_trouble_ends_nothing_and_the_next_alarm_tries_again() -> None:
    world = await made(trouble=UnavailableError("n2 is away", reason="NODE_AWAY"))
    await world.answer()
    assert world.said() == ["nothing came of an alarm"]

    world.trouble = None
    await world.answer()
    assert world.done == ["tune", "tune"]
    assert world.said()[-1] == "tuned again"


async def test_a_codebook_that_was_not_tuned_is_tuned_and_not_replaced() -> None:
    """1 tuning fails after training; 2 the alarm, about the old codebook, is told of again."""
    world = await made()
    alarm = await world.raised()
    await world.write(replace(await world.now(), codebook=NEW_BOOK))
    world.remedies["n1"]._made[GALLERY.uid] = alarm.tuning
    await world.answer(alarm)

    assert world.done == ["tune"]
    now = await world.now()
    assert now.tuning is not None
    assert now.tuning.codebook == NEW_BOOK


async def test_other_nodes_leave_it_to_the_first_and_say_when_it_is_away() -> None:
    world = await made(node_ids=("n2",))
    alarm = await world.raised()
    with pytest.raises(UnavailableError) as away:
        await world.remedies["n2"].tell(alarm)
    await world.answer(alarm)

    assert (away.value.reason, world.done) == ("NODE_AWAY", [])


async def test_the_first_node_tells_itself() -> None:
    world = await made()
    await world.remedies["n1"].tell(await world.raised())
    running = asyncio.ensure_future(world.remedies["n1"].run())
    await world.clock.advance(10)
    running.cancel()

    assert world.done == ["tune"]


async def test_an_alarm_about_a_gallery_that_is_gone_comes_to_nothing() -> None:
    world = await made()
    alarm = await world.raised()
    viewed(world.views["n1"], None, 99)
    await world.answer(alarm)

    assert (world.done, world.log.lines) == ([], [])


class Wire:
    """A pool whose channels lead into a service, past any network."""

    def __init__(self, service: ShardService) -> None:
        self._service = service
        self.asked: list[str] = []

    def get(self, address: str) -> "Wire":
        self.asked.append(address)
        return self

    def unary_unary(self, path: str, **_options: object) -> Callable[..., Any]:
        async def method(request: Any, **_options: object) -> Any:
            return await getattr(self._service, path.rpartition("/")[2])(request, None)

        return method

    def unary_stream(self, path: str, **_options: object) -> str:
        return path

    stream_unary = stream_stream = unary_stream


async def test_a_node_tells_the_first_one_by_a_call_that_returns_at_once() -> None:
    """1 n2 raises an alarm; 2 it calls n1, which hears it; 3 n1 tunes."""
    world = await made(node_ids=("n1", "n2"))
    info = NodeInfo(NodeId("n1"), "b1", "10.0.0.1:7500")
    item = KeyValue(f"{keys.NODES}n1", encode_node(info), 5)
    world.views["n2"].take(keys.NODES, Listing(Snapshot(5, (item,))))
    heard = CanaryWorld()
    anything: Any = None
    remedies: Any = world.remedies["n1"]
    canaries = Canaries(replace(heard.ports, remedies=remedies))
    claimant, pool = Claimant(NodeId("n1"), "b1"), ChannelPool()
    ports = ServicePorts(
        claimant,
        world.clock,
        anything,
        Spread(pool, world.clock, View()),
        streams=anything,
        canaries=canaries,
    )
    wire: Any = Wire(ShardService(ports, anything, anything))
    world.remedies["n2"]._ports = replace(world.remedies["n2"]._ports, pool=wire)

    await world.remedies["n2"].tell(await world.raised())
    assert (wire.asked, world.done) == (["10.0.0.1:7500"], [])
    running = asyncio.ensure_future(world.remedies["n1"].run())
    await world.clock.advance(10)
    running.cancel()

    assert world.done == ["tune"]


def test_alarms_travel_as_they_are() -> None:
    alarm = Alarm(NAME, Profile.BALANCED, TuningId("ab" * 32, 17), 400, 80)

    assert from_alarm_message(NAME, to_alarm_message(alarm)) == alarm
    with pytest.raises(InvalidError):
        from_alarm_message(NAME, pb.CanaryAlarm())
