"""A gallery is tuned by itself when it is due, and not again and again where that is in vain."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from typing_extensions import override

from facegrid import vectors
from facegrid.clock import SystemClock
from facegrid.errors import FacegridError, InvalidError, UnavailableError
from facegrid.model import Gallery
from facegrid.telemetry.log import get_logger
from facegrid.testing.manual_clock import ManualClock
from facegrid.tuning import Effort, Profile, Tuning
from indexd.ann.train import train
from indexd.engine import coded
from indexd.engine.coded import NamedCodebook
from indexd.engine.requests import EnrolRequest
from indexd.replica.primary import Primary
from indexd.replica.tending import PAUSE_S_MIN, Tended, Tending
from indexd.replica.tuner import Tuner, TunerPorts
from tests.fakes.mirror_rig import DIM, GALLERY, N1, S, rigged

NOTHING: Any = None
ROWS = 40
EFFORTS = {profile: Effort(nprobe=1, depth=20) for profile in Profile}


class Played(Tuner):
    """Fails as it is told."""

    def __init__(self) -> None:
        super().__init__(TunerPorts(NOTHING, SystemClock(), NOTHING), NOTHING)
        self.error: FacegridError | None = None

    @override
    async def tune(self, name: str, mates_count_max: int, deadline_s: float) -> Tuning:
        del name, mates_count_max, deadline_s
        if self.error is not None:
            raise self.error
        return Tuning("c", 1, EFFORTS)


def rows(count: int, seed: int) -> vectors.Int8:
    x = np.random.default_rng(seed).normal(size=(count, DIM)).astype(np.float32)
    return vectors.quantize(x / np.linalg.norm(x, axis=1, keepdims=True))


async def enrol(primary: Primary, first: int, count: int) -> None:
    ids = [f"t{row}" for row in range(first, first + count)]
    await primary.write(EnrolRequest(f"r{first}", ids, ids, rows(count, first)))


@pytest.fixture
async def primary() -> AsyncIterator[Primary]:
    async with rigged() as rig:
        await rig.start(N1)
        serving = await rig.serving(S)
        await enrol(serving, 0, ROWS)
        trained = train(rows(1200, 7), seed=3, threads=1)
        await serving.use_codebook(NamedCodebook(coded.encode(trained)[1], trained))
        yield serving


class Scene:
    """Tending, of which the work is begun when the test says so."""

    def __init__(self, primary: Primary) -> None:
        self.primary = primary
        self.gallery = replace(GALLERY, codebook=primary.state.codebook)
        self.tuner, self.clock = Played(), ManualClock()
        self.begun: list[Coroutine[Any, Any, None]] = []
        self.changes = 0
        self.tending = Tending(
            Tended(NOTHING, self.tuner, self.clock, get_logger("tests")),
            lambda _name, work: self.begun.append(work),
            self.changed,
        )

    def changed(self) -> None:
        self.changes += 1

    def due(self, gallery: Gallery | None = None) -> bool:
        """Look; tell whether tuning begins."""
        self.tending.look(gallery or self.gallery, self.primary)
        return bool(self.begun)

    async def work(self) -> None:
        """Do what has begun."""
        await self.begun.pop()


async def test_what_cannot_be_tuned_is_tried_again_once_it_is_another(primary: Primary) -> None:
    """Each try costs as much as a tuning: on a large shard, an hour of a core."""
    scene = Scene(primary)
    scene.tuner.error = InvalidError("too few mates", reason="TOO_FEW_MATES")
    assert scene.due()
    await scene.work()

    assert scene.changes == 0
    assert not scene.due()
    await enrol(primary, ROWS, ROWS - 1)
    assert not scene.due()
    await enrol(primary, 2 * ROWS, 1)
    assert scene.due()
    await scene.work()
    assert not scene.due()

    assert scene.due(replace(scene.gallery, miss_rate_max=0.01))
    scene.tuner.error = None
    await scene.work()
    assert scene.due(), "the record, which a test does not write, still lacks a tuning"
    await scene.work()


async def test_what_fails_otherwise_is_tried_again_after_a_pause(primary: Primary) -> None:
    scene = Scene(primary)
    scene.tuner.error = UnavailableError("a shard is away")
    assert scene.due()
    async with asyncio.TaskGroup() as group:
        group.create_task(scene.begun.pop())
        await scene.clock.settle()
        assert scene.changes == 0
        await scene.clock.advance(PAUSE_S_MIN)
    assert scene.changes == 1
    assert scene.due()
    scene.begun.pop().close()
