"""The world of one run: its loop, its faults, and the links between processes and services."""

import hashlib
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from random import Random  # noqa: TID251 - seeded
from typing import Any, TypeVar

from facegrid.errors import DeadlineError, FacegridError, UnavailableError
from tests.sim.loop import Actor, SimLoop

T = TypeVar("T")


class Violation(AssertionError):  # noqa: N818 - a broken promise, not an error of a program
    """A checker found a promise broken."""


@dataclass(frozen=True, slots=True)
class Controls:
    """What a negative control breaks on purpose; the checkers must notice."""

    fencing: bool = True
    commit_before_ack: bool = True
    erase_waits: bool = True
    pins: bool = True
    claim_waits: bool = True
    joining_waits: bool = True
    map_confirms: bool = True
    cutover_guards: bool = True
    follows: bool = True
    children_wait: bool = True
    inherits: bool = True


@dataclass(slots=True)
class Faults:
    """How likely a call meets which fate. All zero: a healthy world."""

    lost_request: float = 0.0
    lost_answer: float = 0.0
    late: float = 0.0
    """The caller is told that time is up; the call is carried out afterwards."""
    crash: float = 0.0
    """The caller's process dies when the call has been carried out, before the answer."""
    stall: float = 0.0
    """The same, but the process only stands still for some seconds, and another may take over."""
    slow: float = 0.0
    delay_s: float = 0.003


@dataclass(eq=False)
class World:
    """Everything that a run shares."""

    seed: int
    controls: Controls = field(default_factory=Controls)
    keep_trace: bool = False

    def __post_init__(self) -> None:
        """Start with a healthy world at time zero."""
        self.rng = Random(self.seed)
        self.loop = SimLoop(self.rng)
        self.faults = {"etcd": Faults(), "store": Faults(), "net": Faults()}
        self.over = False
        self.counts: dict[str, int] = {}
        self.trace: list[str] = []
        self._hash = hashlib.sha256()

    def note(self, actor: str, event: str, *facts: object) -> None:
        """Write one line of the run's history."""
        line = f"{self.loop.now_s:.6f} {actor} {event} {facts}"
        self._hash.update(line.encode())
        if self.keep_trace:
            self.trace.append(line)

    def digest(self) -> str:
        """Return what stands for the whole history so far."""
        return f"{self._hash.hexdigest()[:32]}-{self.loop.steps}"

    def count(self, what: str, number: int = 1) -> None:
        """Count something worth reporting."""
        self.counts[what] = self.counts.get(what, 0) + number

    def chance(self, probability: float) -> bool:
        """Throw a coin."""
        return probability > 0 and self.rng.random() < probability

    def require(self, what: object, complaint: str, *facts: object) -> None:
        """Raise a Violation unless something holds."""
        if not what:
            self.note("checker", complaint, *facts)
            raise Violation(
                f"{complaint} {facts} seed={self.seed} now_s={self.loop.now_s:.3f};"
                f" replay with FACEGRID_SEEDS={self.seed}"
            )


class OuterClock:
    """Time as etcd sees it."""

    def __init__(self, loop: SimLoop) -> None:
        self._loop = loop

    def now_s(self) -> float:
        """Return the loop's time."""
        return self._loop.now_s

    def unix_ms(self) -> int:
        """Return milliseconds."""
        return round(self._loop.now_s * 1000)

    async def sleep(self, duration_s: float) -> None:
        """Nobody sleeps by this clock."""
        raise NotImplementedError


class SimClock:
    """A process's clock: its own zero, its own speed, a wall clock that may jump."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._zero_s = 10_000 * world.rng.random()
        self._speed = 1 + 0.02 * (world.rng.random() - 0.5)
        self.wall_jump_ms = 0

    def now_s(self) -> float:
        """Return seconds of the boot clock."""
        return self._zero_s + self._world.loop.now_s * self._speed

    def unix_ms(self) -> int:
        """Return the wall clock."""
        return 1_700_000_000_000 + round(self._world.loop.now_s * 1000) + self.wall_jump_ms

    async def sleep(self, duration_s: float) -> None:
        """Wait as long as this clock takes for it."""
        loop = self._world.loop
        future = loop.create_future()
        timer = loop.call_later(max(duration_s, 0.0) / self._speed, _wake, future)
        try:
            await future
        finally:
            timer.cancel()


def _wake(future: Any) -> None:
    if not future.done():
        future.set_result(None)


@dataclass(eq=False)
class Link:
    """One process's way to one service. `cut` makes a black hole of it."""

    world: World
    service: str
    actor: Actor
    crash: Callable[[], None] | None = None
    """What lets the process die, or stand still; None: it does neither."""
    stall: Callable[[], None] | None = None
    cut: bool = False
    deaf: bool = False
    """Whether watches tell of nothing, though reads are answered."""
    slow_s: float = 0.0
    """How much longer a transaction may take on its way there."""

    def mend(self) -> None:
        """Reach it again."""
        self.cut = False

    async def call(self, name: str, perform: Callable[[], T], timeout_s: float) -> T:
        """Carry something out over there, with what the faults make of it."""
        world, faults = self.world, self.world.faults[self.service]
        if world.over:
            raise UnavailableError("the run is over")
        rng, loop = world.rng, world.loop
        future = loop.create_future()
        there_s = rng.random() * faults.delay_s
        back_s = rng.random() * faults.delay_s
        if self.slow_s and name == "txn":
            there_s += (1 + 3 * rng.random()) / 4 * self.slow_s
        if world.chance(faults.slow):
            there_s += rng.random() * timeout_s / 2
        draw = rng.random()
        lost_request = self.cut or draw < faults.lost_request
        draw -= faults.lost_request
        lost_answer = 0 <= draw < faults.lost_answer
        draw -= faults.lost_answer
        late = 0 <= draw < faults.late
        if lost_request or lost_answer or late:
            # Either the connection breaks and the caller hears of it, or time just runs out.
            fails_s = timeout_s if rng.random() < 0.5 else there_s + rng.random() * 0.3
            loop.in_world(min(fails_s, timeout_s), _fail, future, name)
        if late:
            there_s += timeout_s * rng.random() * 2
        if not lost_request:
            loop.in_world(
                there_s,
                self._arrive,
                name,
                perform,
                None if lost_answer or late else (future, back_s),
            )
        return await _shielded(future)

    def _arrive(
        self, name: str, perform: Callable[[], T], answer: tuple[Any, float] | None
    ) -> None:
        """Carry out; send the answer back, if it is not to be lost."""
        world = self.world
        try:
            result = perform()
        except FacegridError as error:
            world.note(self.actor.name, name, type(error).__name__)
            if answer is not None:
                world.loop.in_world(answer[1], _refuse, answer[0], error)
            return
        world.note(self.actor.name, name, "lost" if answer is None else "")
        faults, alive = world.faults[self.service], not self.actor.dead
        if alive and self.crash is not None and world.chance(faults.crash):
            world.count("crashes in calls")
            self.crash()
            return
        if alive and self.stall is not None and world.chance(faults.stall):
            world.count("stalls in calls")
            self.stall()
        if answer is not None:
            world.loop.in_world(answer[1], _answer, answer[0], result)


async def _shielded(future: Any) -> Any:
    return await future


def _answer(future: Any, result: object) -> None:
    if not future.done():
        future.set_result(result)


def _refuse(future: Any, error: FacegridError) -> None:
    if not future.done():
        future.set_exception(error)


def _fail(future: Any, name: str) -> None:
    if not future.done():
        future.set_exception(DeadlineError(f"no answer call={name}", reason="TRANSPORT"))


def at_once(coroutine: Coroutine[Any, Any, T]) -> T:
    """Return the result of a coroutine that waits for nothing."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    raise AssertionError("a twin in memory waits for nothing")
