"""A node with one coded shard whose searches canaries watch, without threads or waiting."""

from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, TypeVar

import numpy as np
from typing_extensions import override

from facegrid import vectors
from facegrid.coord import keys
from facegrid.coord.port import KeyValue, Listing, Snapshot
from facegrid.format.records import encode_gallery, encode_shard_map
from facegrid.ids import KEY_LAST, GalleryName, NodeId, ShardId
from facegrid.model import Gallery, HashRange, ShardAssignment, ShardMap
from facegrid.testing.manual_clock import ManualClock
from facegrid.tuning import Effort, Profile, Tuning
from facegrid.vectors import Float32
from indexd.ann.train import train
from indexd.engine import coded
from indexd.engine.budget import Budget
from indexd.engine.coded import NamedCodebook
from indexd.engine.loading import ShardShape
from indexd.engine.search import Found, Wish, search
from indexd.engine.state import ShardState
from indexd.replica.canaries import Canaries, CanaryPorts
from indexd.replica.drift import Drifts
from indexd.replica.remedies import Alarm
from indexd.replica.shard_copy import Phase
from indexd.replica.view import View

DIM = 32
NLIST = 16
SUBJECTS = 600
THRESHOLD = 0.7
NAME = GalleryName("staff")
SHARD = ShardAssignment(
    ShardId("staff.1f00aa23.0000"), HashRange(0, KEY_LAST), (NodeId("n1"), NodeId("n2"))
)
PIECE_S = 0.005
"""What every look at a ticking clock costs."""

T = TypeVar("T")


class AtOnce(Executor):
    """Runs work where it is submitted."""

    @override
    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        future: Future[T] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


class TickingClock(ManualClock):
    """Moves by itself a little whenever it is looked at, so that work takes time."""

    @override
    def now_s(self) -> float:
        self._now_s += PIECE_S
        return self._now_s


def people(count: int, seed: int) -> Float32:
    """Return float32 [n, DIM] of norm 1, without any order in them."""
    x = np.random.default_rng(seed).normal(size=(count, DIM)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def seen_again(x: Float32, cosine: float, seed: int) -> Float32:
    """Return other samples of the same people."""
    noise = people(len(x), seed)
    noise -= np.einsum("ij,ij->i", noise, x)[:, None] * x
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    mixed: Float32 = cosine * x + np.float32(np.sqrt(1 - cosine**2)) * noise
    return mixed


PEOPLE = people(SUBJECTS, 1)


def codebook(nlist: int = NLIST) -> NamedCodebook:
    """Return a codebook with that many lists, which such data does not fall into by itself."""
    sample = vectors.quantize(people(1100, 2))
    learnt = train(sample, seed=3, threads=1)
    book = replace(learnt, nlist=nlist, nprobe=nlist, centroids=people(nlist, 4))
    return NamedCodebook(coded.encode(book)[1], book)


CODEBOOK = codebook()


def tuning(nprobe: int, *, tuned_unix_ms: int = 1) -> Tuning:
    """Return a tuning by which all profiles but the exhaustive one look into so many lists."""
    some = Effort(nprobe=nprobe, depth=1000, proven=True)
    return Tuning(
        codebook=CODEBOOK.sha256,
        nlist=NLIST,
        efforts={
            Profile.EXHAUSTIVE: Effort(nprobe=NLIST, depth=1000, proven=True),
            Profile.BALANCED: some,
            Profile.FAST: some,
        },
        threshold=THRESHOLD,
        tuned_unix_ms=tuned_unix_ms,
    )


GALLERY = Gallery(
    NAME,
    "1f00aa23",
    DIM,
    "x@1",
    1,
    2,
    1000,
    codebook=CODEBOOK.sha256,
    miss_rate_max=0.01,
    tuning=tuning(1),
)
MAP = ShardMap(NAME, GALLERY.uid, 1, (SHARD,))


def shard_state(x: Float32 = PEOPLE, book: NamedCodebook | None = CODEBOOK) -> ShardState:
    """Return a shard in which subject s-i has row i."""
    state = ShardState(ShardShape(SHARD.shard_id, SHARD.range, DIM))
    if book is not None:
        state.use_codebook(book)
    enrol(state, x)
    state.index.absorb()
    return state


def enrol(state: ShardState, x: Float32) -> None:
    """Add subjects behind those that there are."""
    first = state.rows_count
    names = [f"s-{first + number}" for number in range(len(x))]
    state.add_rows([f"t-{name}" for name in names], names, vectors.quantize(x))


def viewed(view: View, gallery: Gallery | None, revision: int, shard_map: ShardMap = MAP) -> None:
    """Let a view know of a gallery, or that it is gone."""
    records = {}
    if gallery is not None:
        records = {keys.GALLERIES: encode_gallery(gallery), keys.MAPS: encode_shard_map(shard_map)}
    for prefix in (keys.GALLERIES, keys.MAPS):
        value = records.get(prefix)
        items = () if value is None else (KeyValue(f"{prefix}{NAME}", value, revision),)
        view.take(prefix, Listing(Snapshot(revision, items)))


@dataclass
class HeardAlarms:
    """Stands for what is done about alarms."""

    told: list[Alarm] = field(default_factory=list)

    async def tell(self, alarm: Alarm) -> None:
        self.told.append(alarm)

    def heed(self, alarm: Alarm) -> None:
        self.told.append(alarm)

    async def run(self) -> None:
        """Do nothing more."""


@dataclass
class Log:
    """What was logged."""

    lines: list[tuple[str, dict[str, object]]] = field(default_factory=list)

    def warning(self, event: str, **facts: object) -> None:
        self.lines.append((event, facts))

    info = warning


class CanaryWorld:
    """One node.

    Args:
        share: of a core.
        clock: what time it is.
        gallery: what etcd says.
    """

    def __init__(
        self,
        *,
        share: float = 1.0,
        clock: ManualClock | None = None,
        gallery: Gallery = GALLERY,
        seed: int = 7,
    ) -> None:
        self.clock = clock or ManualClock()
        self.view = View()
        self.log = Log()
        self.heard = HeardAlarms()
        self.budget = Budget(share, self.clock)
        self.copy: Any = SimpleNamespace(
            state=shard_state(), phase=Phase.SERVING, gallery=gallery, assignment=SHARD
        )
        self.copies: dict[ShardId, Any] = {SHARD.shard_id: self.copy}
        self._revision = 0
        self.say(gallery)
        copies: Mapping[ShardId, Any] = self.copies
        logger: Any = self.log
        remedies: Any = self.heard
        self.ports = CanaryPorts(
            copies=copies,
            view=self.view,
            clock=self.clock,
            logger=logger,
            thread=AtOnce(),
            budget=self.budget,
            rng=np.random.default_rng(seed),
            drifts=Drifts(copies, AtOnce(), self.clock, self.budget),
            remedies=remedies,
        )
        self.canaries = Canaries(self.ports)

    @property
    def state(self) -> ShardState:
        """The shard as it is now."""
        state: ShardState = self.copy.state
        return state

    @property
    def gallery(self) -> Gallery:
        """What etcd says."""
        gallery = self.view.gallery(NAME)
        assert gallery is not None
        return gallery

    def say(self, gallery: Gallery | None) -> None:
        """Let etcd say something else."""
        self._revision += 1
        viewed(self.view, gallery, self._revision)

    def retune(self, nprobe: int) -> None:
        """Let somebody have tuned the gallery again."""
        self.say(replace(self.gallery, tuning=tuning(nprobe, tuned_unix_ms=self._revision + 10)))

    def search(
        self, x: Float32, profile: Profile = Profile.FAST, *, k: int = 5, threshold: float = -2.0
    ) -> Found:
        """Search as the service does, with canaries looking on."""
        wish = Wish(k, threshold, profile, self.gallery.tuning)
        found = search([self.state], vectors.prepare_probes(x), wish)
        self.canaries.observe(self.gallery, [self.state], x, wish, found)
        return found

    async def compare(self) -> None:
        """Let time pass until all that was taken is compared."""
        await self.clock.advance(20)
        await self.canaries.compare_due()
