"""Tuning a gallery: whoever asks while it is made gets what comes of it."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from typing_extensions import override

from facegrid.clock import SystemClock
from facegrid.ids import GalleryName
from facegrid.model import Gallery
from facegrid.tuning import Effort, Profile, Tuning
from indexd.replica.tuner import Tuner, TunerPorts

NOTHING: Any = None
EFFORTS = {profile: Effort(nprobe=1, depth=20) for profile in Profile}
GALLERY = Gallery(
    name=GalleryName("staff"),
    uid="1f00aa23",
    dim=8,
    extractor="x@1",
    codebook="c1",
    shards_count=1,
    replicas_count=1,
    train_at_templates_count=0,
)


class Counted(Tuner):
    """Measures when it is let, and counts how often."""

    def __init__(self) -> None:
        super().__init__(TunerPorts(NOTHING, SystemClock(), NOTHING), NOTHING)
        self.gallery = GALLERY
        self.measured: list[int] = []
        self.begun = asyncio.Event()
        self.may_go_on = asyncio.Event()

    async def ask(self, mates: int = 0) -> Tuning:
        """Tune, within a minute."""
        return await self.tune("staff", mates, SystemClock().now_s() + 60)

    @override
    def _gallery(self, name: str) -> Gallery:
        assert name == self.gallery.name
        return self.gallery

    @override
    async def _measured(self, gallery: Gallery, mates_count_max: int, deadline_s: float) -> Tuning:
        assert deadline_s > 0
        self.measured.append(mates_count_max)
        self.begun.set()
        await self.may_go_on.wait()
        miss_rate_max = gallery.miss_rate_max
        return Tuning(gallery.codebook, 1, EFFORTS, miss_rate_max=miss_rate_max)

    @override
    async def _publish(self, gallery: Gallery, tuning: Tuning) -> None:
        assert tuning.codebook == gallery.codebook


@pytest.mark.parametrize(("second", "measured"), [(0, [0]), (100, [0, 100])])
async def test_who_asks_while_a_gallery_is_tuned_gets_that_tuning(
    second: int, measured: list[int]
) -> None:
    """Unless another number of mates is wanted."""
    tuner = Counted()
    async with asyncio.TaskGroup() as group:
        first = group.create_task(tuner.ask())
        await tuner.begun.wait()
        other = group.create_task(tuner.ask(second))
        group.create_task(_let(tuner))

    assert tuner.measured == measured
    assert first.result() == other.result()


async def test_who_asks_later_has_it_measured_anew() -> None:
    tuner = Counted()
    tuner.may_go_on.set()
    await tuner.ask()
    await tuner.ask()

    assert tuner.measured == [0, 0]


async def test_a_tuning_of_another_codebook_is_no_answer() -> None:
    tuner = Counted()
    async with asyncio.TaskGroup() as group:
        group.create_task(tuner.ask())
        await tuner.begun.wait()
        waiting = group.create_task(tuner.ask())
        tuner.gallery = replace(GALLERY, codebook="c2")
        group.create_task(_let(tuner))

    assert tuner.measured == [0, 0]
    assert waiting.result().codebook == "c2"


async def _let(tuner: Counted) -> None:
    """Let measurements go on, when everybody who was started before has asked."""
    tuner.may_go_on.set()
