"""The probe: a sound store passes and keeps nothing of it; each way to be unsound is named."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from typing_extensions import override

from facegrid.blob.directory import DirectoryStore
from facegrid.blob.port import BlobStore
from facegrid.blob.probe import Finding, ProbeReport, probe
from facegrid.errors import NotFoundError, OverloadedError, UnavailableError
from facegrid.testing.memory_blob import MemoryBlobStore
from facegrid.testing.scripted_blob import Refused, ScriptedBlobStore

CONDITIONS = ("put-if-absent", "read-your-write", "list-after-write", "delete")


class Careless(MemoryBlobStore):
    """Lets a name be taken again, as a store does that ignores If-None-Match."""

    @override
    async def put_new(self, name: str, data: bytes) -> None:
        self.objects[name] = data


class CarelessLater(MemoryBlobStore):
    """Keeps the condition in a race and forgets it after."""

    @override
    async def put_new(self, name: str, data: bytes) -> None:
        if data == b"late":
            self.objects.pop(name, None)
        await super().put_new(name, data)


class Mixing(MemoryBlobStore):
    """Refuses all racers but one, and keeps the bytes of another."""

    @override
    async def put_new(self, name: str, data: bytes) -> None:
        await super().put_new(name, data)
        if data == b"racer 0":
            self.objects[name] = b"racer 1"


class Stale(MemoryBlobStore):
    """Shows a new object to the second reader only."""

    @override
    async def get(self, name: str) -> bytes:
        if name.endswith("/plain"):
            raise NotFoundError("not yet", reason="OBJECT_UNKNOWN")
        return await super().get(name)


class Inventive(MemoryBlobStore):
    """Has an answer for every name."""

    @override
    async def get(self, name: str) -> bytes:
        return self.objects.get(name, b"a page of a proxy")


class Listless(MemoryBlobStore):
    """Lists what is older than a second."""

    @override
    async def list(self, prefix: str) -> Sequence[str]:
        return []


class Hoarder(MemoryBlobStore):
    """Keeps what is deleted."""

    @override
    async def delete(self, name: str) -> None:
        return


class Ghosts(MemoryBlobStore):
    """Goes on listing what is deleted."""

    def __init__(self) -> None:
        super().__init__()
        self.ever: set[str] = set()

    @override
    async def list(self, prefix: str) -> Sequence[str]:
        self.ever |= set(self.objects)
        return sorted(self.ever)


@pytest.mark.parametrize("kind", ["memory", "directory"])
async def test_a_sound_store_passes_and_keeps_nothing_of_it(kind: str, tmp_path: Path) -> None:
    store: BlobStore = MemoryBlobStore() if kind == "memory" else DirectoryStore(tmp_path)
    await store.put_new("before", b"1")
    report = await probe(store, "once")
    assert report == ProbeReport(tuple(Finding(name, "") for name in CONDITIONS))
    report.check("memory")
    assert list(await store.list("")) == ["before"]


@pytest.mark.parametrize(
    ("store", "condition", "problem"),
    [
        (Careless(), "put-if-absent", "16 of 16 racers took one name, and exactly one may"),
        (CarelessLater(), "put-if-absent", "a name that was taken could be taken again"),
        (
            Mixing(),
            "put-if-absent",
            "the object does not hold the bytes of the racer that won",
        ),
        (
            Stale(),
            "read-your-write",
            "an object that was just put could not be read as it was put",
        ),
        (Inventive(), "read-your-write", "an object could be read that nobody had put"),
        (Listless(), "list-after-write", "2 of 2 objects that were just put are not listed"),
        (Hoarder(), "delete", "an object that was deleted can still be read"),
        (Ghosts(), "delete", "an object that was deleted is still listed"),
    ],
)
async def test_an_unsound_store_is_refused_with_what_it_did(
    store: MemoryBlobStore, condition: str, problem: str
) -> None:
    report = await probe(store, "once")
    assert Finding(condition, problem) in report.findings
    with pytest.raises(UnavailableError) as refused:
        report.check("the store")
    assert refused.value.reason == "STORE_UNSAFE"
    assert f"{condition}: {problem}" in refused.value.message
    assert "store=the store" in refused.value.message


@pytest.mark.parametrize(
    "error",
    [
        UnavailableError("away", reason="STORE_FAILED"),
        OverloadedError("slow down", reason="STORE_BUSY"),
    ],
)
async def test_a_store_that_cannot_be_tried_is_not_judged(
    error: UnavailableError | OverloadedError,
) -> None:
    twin = MemoryBlobStore()
    store = ScriptedBlobStore(twin, [Refused(error)])
    with pytest.raises(type(error)) as ended:
        await probe(store, "once")
    assert ended.value is error
    assert twin.objects == {}


async def test_a_store_that_never_answers_is_not_asked_to_clean_up() -> None:
    error = UnavailableError("away", reason="STORE_FAILED")
    store = ScriptedBlobStore(MemoryBlobStore(), [Refused(error)] * 99)
    with pytest.raises(UnavailableError):
        await probe(store, "once")
    assert set(store.calls) == {"put_new"}
