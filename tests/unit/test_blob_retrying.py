"""The retrying store over one that fails as a script says. No time passes: waits are counted."""

from collections.abc import Awaitable, Callable

import pytest

from facegrid.blob.port import BlobStore
from facegrid.blob.retrying import LASTING, RetryingStore
from facegrid.errors import ConflictError, NotFoundError, OverloadedError, UnavailableError
from facegrid.retry import Backoff
from facegrid.testing.memory_blob import MemoryBlobStore
from facegrid.testing.scripted_blob import Lost, Passed, Refused, ScriptedBlobStore, Step

BUDGET_S = 10.0


class StandingClock:
    """A clock that only waits move."""

    def __init__(self) -> None:
        self.slept_s: list[float] = []

    def now_s(self) -> float:
        return sum(self.slept_s)

    def unix_ms(self) -> int:
        return 0

    async def sleep(self, duration_s: float) -> None:
        self.slept_s.append(duration_s)


class Longest:
    """Chance that always gives the upper bound."""

    def uniform(self, a: float, b: float) -> float:
        return max(a, b)


BUSY = OverloadedError("slow down", reason="STORE_BUSY")
GONE = UnavailableError("connection reset", reason="STORE_FAILED")


class Bench:
    """A retrying store over a scripted one over the twin."""

    def __init__(self, *script: Step) -> None:
        self.twin = MemoryBlobStore()
        self.scripted = ScriptedBlobStore(self.twin, script)
        self.clock = StandingClock()
        backoff = Backoff(1.0, 2.0, 4.0, Longest())
        self.store = RetryingStore(
            self.scripted, clock=self.clock, backoff=backoff, budget_s=BUDGET_S
        )


CALLS: dict[str, Callable[[BlobStore], Awaitable[object]]] = {
    "get": lambda store: store.get("a"),
    "list": lambda store: store.list(""),
    "delete": lambda store: store.delete("a"),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("error", [BUSY, GONE], ids=["busy", "gone"])
@pytest.mark.parametrize("step", [Refused, Lost])
async def test_reads_and_deletions_bridge_a_burst_of_failures(
    call: str, error: UnavailableError | OverloadedError, step: type[Refused | Lost]
) -> None:
    bench = Bench(*[step(error)] * 3)
    bench.twin.objects["a"] = b"1"
    expected = {"get": b"1", "list": ["a"], "delete": None}[call]
    assert await CALLS[call](bench.store) == expected
    assert (bench.scripted.calls, bench.clock.slept_s) == ([call] * 4, [1.0, 2.0, 4.0])


@pytest.mark.parametrize("call", CALLS)
async def test_a_read_from_a_store_under_pressure_ends_as_unavailable(call: str) -> None:
    bench = Bench(*[Refused(BUSY)] * 99)
    with pytest.raises(UnavailableError) as ended:
        await CALLS[call](bench.store)
    assert ended.value.reason == "STORE_BUSY"
    assert bench.clock.slept_s == [1.0, 2.0, 4.0]  # another 4 s would end beyond the budget


async def test_what_is_not_there_is_not_asked_for_again() -> None:
    bench = Bench()
    with pytest.raises(NotFoundError):
        await bench.store.get("a")
    assert bench.scripted.calls == ["get"]


async def test_a_put_bridges_a_burst_of_failures() -> None:
    bench = Bench(Refused(BUSY), Refused(GONE), Refused(BUSY))
    await bench.store.put_new("a", b"1")
    assert bench.twin.objects == {"a": b"1"}
    assert bench.scripted.calls == ["put_new"] * 4


async def test_a_put_whose_answer_was_lost_finds_its_own_object() -> None:
    """1 the object is stored, the answer lost; 2 the retry is refused; 3 it reads its own back."""
    bench = Bench(Lost(GONE))
    await bench.store.put_new("a", b"1")
    assert bench.twin.objects == {"a": b"1"}
    assert bench.scripted.calls == ["put_new", "put_new", "get"]


async def test_a_put_after_a_failure_does_not_take_the_object_of_another_for_its_own() -> None:
    """1 an attempt fails without effect; 2 somebody takes the name; 3 the retry is refused."""
    bench = Bench(Refused(GONE))
    bench.twin.objects["a"] = b"of another"
    with pytest.raises(ConflictError) as refused:
        await bench.store.put_new("a", b"1")
    assert refused.value.reason == "OBJECT_EXISTS"
    assert bench.twin.objects == {"a": b"of another"}


async def test_a_name_that_was_taken_before_is_refused_even_for_the_same_bytes() -> None:
    bench = Bench()
    bench.twin.objects["a"] = b"1"
    with pytest.raises(ConflictError):
        await bench.store.put_new("a", b"1")
    assert bench.scripted.calls == ["put_new"]


async def test_reading_back_is_tried_again_as_well() -> None:
    """1 the answer is lost; 2 the retry is refused; 3 reading back fails; 4 and 5 once more."""
    bench = Bench(Lost(GONE), Passed(), Refused(GONE))
    await bench.store.put_new("a", b"1")
    assert bench.scripted.calls == ["put_new", "put_new", "get", "put_new", "get"]


async def test_an_object_that_was_deleted_before_it_was_read_back_counts_as_taken() -> None:
    """1 the answer is lost; 2 the retry is refused; 3 the object is gone when it is read."""
    unknown = NotFoundError("no such object", reason="OBJECT_UNKNOWN")
    bench = Bench(Lost(GONE), Passed(), Refused(unknown))
    with pytest.raises(ConflictError):
        await bench.store.put_new("a", b"1")


@pytest.mark.parametrize("error", [BUSY, GONE], ids=["busy", "gone"])
async def test_a_put_that_never_succeeds_ends_with_the_last_error(
    error: UnavailableError | OverloadedError,
) -> None:
    bench = Bench(Refused(GONE), *[Refused(error)] * 99)
    with pytest.raises(type(error)) as ended:
        await bench.store.put_new("a", b"1")
    assert ended.value is error
    assert bench.clock.slept_s == [1.0, 2.0, 4.0]


@pytest.mark.parametrize("reason", sorted(LASTING))
@pytest.mark.parametrize("call", [*CALLS, "put_new"])
async def test_what_seconds_do_not_cure_is_told_at_once(call: str, reason: str) -> None:
    bench = Bench(*[Refused(UnavailableError("not now", reason=reason))] * 99)
    calls = {**CALLS, "put_new": lambda store: store.put_new("a", b"1")}
    with pytest.raises(UnavailableError) as ended:
        await calls[call](bench.store)
    assert (ended.value.reason, bench.clock.slept_s) == (reason, [])
