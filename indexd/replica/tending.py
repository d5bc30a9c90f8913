"""When a gallery trains and tunes by itself, asked by the primary of its first shard."""

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Final

from facegrid.clock import Clock
from facegrid.errors import FacegridError, InvalidError
from facegrid.ids import KEY_LAST
from facegrid.model import Gallery
from facegrid.telemetry.log import Logger
from indexd.engine.state import ShardState
from indexd.replica.primary import Primary
from indexd.replica.shard_copy import Phase, ShardCopy
from indexd.replica.trainer import Trainer, train_due
from indexd.replica.tuner import Tuner

TRAIN_TIMEOUT_S: Final = 1800.0
TUNE_TIMEOUT_S: Final = 3600.0
TUNED_GROWTH: Final = 4
"""A gallery that has grown so much since is tuned again."""
TRIED_GROWTH: Final = 2
"""One that could not be tuned, for want of mates that exact search accepts, is tried again then:
each try costs as much as a tuning.
"""
PAUSE_S_MIN: Final = 2.0
PAUSE_S_MAX: Final = 600.0
"""Between attempts to tune, doubled after each that fails."""

Start = Callable[[str, Coroutine[None, None, None]], None]


def tune_due(gallery: Gallery | None, state: ShardState) -> bool:
    """Tell whether a gallery is to be tuned, by its first shard: it has a new codebook, may miss
    more or fewer mates than it was tuned for, or has grown fourfold.
    """
    if gallery is None or state.range.first != 0 or not gallery.codebook:
        return False
    if state.codebook != gallery.codebook:
        return False
    tuning = gallery.tuning
    if tuning is None or tuning.codebook != gallery.codebook:
        return True
    if tuning.miss_rate_max != gallery.miss_rate_max:
        return True
    return estimated(state) >= TUNED_GROWTH * max(tuning.templates_count, 1)


def estimated(state: ShardState) -> int:
    """Return about how many templates a gallery has, by one shard."""
    return state.templates_count * (KEY_LAST + 1) // state.range.size


@dataclass(frozen=True, slots=True)
class _InVain:
    """What a gallery was when it could not be tuned."""

    codebook: str
    miss_rate_max: float
    templates_count: int

    def still(self, gallery: Gallery, state: ShardState) -> bool:
        """Tell whether another try would come to the same."""
        same = (gallery.codebook, gallery.miss_rate_max) == (self.codebook, self.miss_rate_max)
        return same and estimated(state) < TRIED_GROWTH * max(self.templates_count, 1)


@dataclass(frozen=True, slots=True)
class Tended:
    """What tending needs; without a tuner nothing is tuned."""

    trainer: Trainer
    tuner: Tuner | None
    clock: Clock
    logger: Logger


class Tending:
    """Trains and tunes galleries in the background when it is due.

    Args:
        tended: who trains and tunes.
        start: runs work in the background, once at a time for each name.
        changed: has the node look again.
    """

    def __init__(self, tended: Tended, start: Start, changed: Callable[[], None]) -> None:
        self._trainer, self._tuner = tended.trainer, tended.tuner
        self._clock, self._logger = tended.clock, tended.logger
        self._start = start
        self._changed = changed
        self._pauses_s: dict[str, float] = {}
        self._in_vain: dict[str, _InVain] = {}

    def look(self, gallery: Gallery | None, copy: ShardCopy, *, written: bool = False) -> None:
        """Start what is due, by one copy. Training only after a write, which made the gallery
        grow; after a failure the next write tries again.
        """
        if gallery is None or not isinstance(copy, Primary) or copy.phase is not Phase.SERVING:
            return
        if written and train_due(gallery, copy.state):
            self._start(f"train {gallery.name}", self._train(gallery))
        if self._tuner is None or not tune_due(gallery, copy.state):
            return
        in_vain = self._in_vain.get(gallery.uid)
        if in_vain is None or not in_vain.still(gallery, copy.state):
            tuning = self._tune(self._tuner, gallery, estimated(copy.state))
            self._start(f"tune {gallery.name}", tuning)

    async def _train(self, gallery: Gallery) -> None:
        deadline_s = self._clock.now_s() + TRAIN_TIMEOUT_S
        sha256, sample_count = await self._trainer.train(gallery.name, deadline_s)
        self._logger.info(
            "trained by itself", gallery=gallery.name, codebook=sha256, sample=sample_count
        )

    async def _tune(self, tuner: Tuner, gallery: Gallery, templates_count: int) -> None:
        """Tune; after a failure wait a while before anybody looks again, or until the gallery is
        another where it is the gallery's.
        """
        try:
            tuning = await tuner.tune(gallery.name, 0, self._clock.now_s() + TUNE_TIMEOUT_S)
        except InvalidError as error:
            self._in_vain[gallery.uid] = _InVain(
                gallery.codebook, gallery.miss_rate_max, templates_count
            )
            self._logger.info(
                "cannot be tuned", gallery=gallery.name, reason=error.reason, problem=error.message
            )
            return
        except FacegridError as error:
            pause_s = self._pauses_s.get(gallery.uid, PAUSE_S_MIN)
            self._pauses_s[gallery.uid] = min(2 * pause_s, PAUSE_S_MAX)
            self._logger.info(
                "not tuned yet", gallery=gallery.name, reason=error.reason, problem=error.message
            )
            await self._clock.sleep(pause_s)
            self._changed()
            return
        self._pauses_s.pop(gallery.uid, None)
        self._in_vain.pop(gallery.uid, None)
        self._logger.info(
            "tuned by itself",
            gallery=gallery.name,
            mates=tuning.mates_count,
            pseudo_mates=tuning.pseudo_mates_count,
            **{f"{profile}_nprobe": one.nprobe for profile, one in tuning.efforts.items()},
        )
