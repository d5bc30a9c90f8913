"""The blocking Client: threads, closing, and the sample program of the design."""

import asyncio
import gc
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator

import numpy as np
import pytest

import facegrid
from facegrid import Client, EnrolBatch, InvalidError, UnavailableError
from facegrid.client.blocking import _wind_up
from facegrid.testing.fake_router import FakeRouter

DIM = 512


@pytest.fixture
async def router() -> AsyncIterator[FakeRouter]:
    async with FakeRouter() as router:
        yield router


def sample_program(address: str) -> list[object]:
    """Run the program that the design shows, as it stands there."""
    x = np.eye(20, DIM, dtype=np.float32)
    ids = [f"t-{row}" for row in range(20)]
    subjects = [f"s-{row}" for row in range(20)]
    probes = x[15:18]

    client = facegrid.Client(address)
    client.create_gallery("staff", dim=512, extractor="arcface-r100@1", shards=4, replicas=2)
    token = client.enrol("staff", template_ids=ids, subject_ids=subjects, vectors=x)
    lists = client.identify("staff", probes, k=10, threshold=0.35, after=token)
    seen: list[object] = [
        lists[0].candidates[0].subject_id,
        lists[0].candidates[0].score,
        lists[0].coverage,
    ]
    client.erase("staff", subject_ids=["s-17"])
    seen.append(len(client.identify("staff", probes, threshold=0.35)[2].candidates))
    client.close()
    return seen


async def test_the_program_of_the_design_runs_as_written(router: FakeRouter) -> None:
    assert await asyncio.to_thread(sample_program, router.address) == [
        "s-15",
        1.0,
        facegrid.Coverage(share=1.0, shards_answered_count=1, shards_count=1, scanned_share=1.0),
        0,
    ]


async def test_every_method_is_forwarded(router: FakeRouter) -> None:
    def use() -> None:
        with Client([router.address], timeout_s=20) as client:
            gallery = client.create_gallery("staff", dim=8, extractor="e@1", train_at=0)
            x = np.eye(8, dtype=np.float32)
            names = [f"n-{row}" for row in range(8)]
            client.enrol(
                "staff", template_ids=names, subject_ids=names, vectors=x, request_id="mine"
            )
            assert client.get_gallery("staff").templates_count == 8
            assert client.list_galleries() == [gallery]
            assert client.train("staff").codebook == "c0debeef"
            assert client.verify("staff", "n-1", x[1]).score == 1.0
            assert client.get_template("staff", "n-2", subject_id="n-2").subject_id == "n-2"
            assert client.erase("staff", template_ids=["n-3"]).erased_templates_count == 1
            with pytest.raises(InvalidError):
                client.identify("staff", x, k=0)
            client.drop_gallery("staff")
            assert client.list_galleries() == []

    await asyncio.to_thread(use)


async def test_a_stream_reads_batches_and_tells_progress_in_the_calling_thread(
    router: FakeRouter,
) -> None:
    threads: set[str] = set()
    acked: list[int] = []

    def produce() -> Iterator[EnrolBatch]:
        for number in range(20):
            threads.add(threading.current_thread().name)
            yield EnrolBatch([f"t-{number}"], [f"s-{number}"], np.eye(1, 8))

    def note(rows: int) -> None:
        threads.add(threading.current_thread().name)
        acked.append(rows)

    def use() -> str:
        with Client(router.address) as client:
            client.create_gallery("staff", dim=8, extractor="e@1")
            client.enrol_stream("staff", produce(), on_ack=note)
        return threading.current_thread().name

    calling_thread = await asyncio.to_thread(use)
    assert threads == {calling_thread}
    assert acked == list(range(1, 21))


async def test_several_threads_may_share_a_client(router: FakeRouter) -> None:
    def use(client: Client, number: int) -> None:
        for turn in range(5):
            names = [f"{number}-{turn}"]
            client.enrol("staff", template_ids=names, subject_ids=names, vectors=np.eye(1, 8))

    def share() -> int:
        with Client(router.address) as client:
            client.create_gallery("staff", dim=8, extractor="e@1")
            threads = [threading.Thread(target=use, args=(client, n)) for n in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            return client.get_gallery("staff").templates_count

    assert await asyncio.to_thread(share) == 40


async def test_closing_ends_the_calls_of_other_threads_and_refuses_later_ones(
    router: FakeRouter,
) -> None:
    """1. a thread's call hangs. 2. the client is closed, twice. 3. the call ends as CLOSED."""
    router.faults.hanging = True
    client = Client(router.address)

    def ask() -> str:
        with pytest.raises(UnavailableError) as caught:
            client.get_gallery("staff")
        return caught.value.reason

    async with asyncio.TaskGroup() as group:
        asked = group.create_task(asyncio.to_thread(ask))
        await router.faults.struck.wait()
        await asyncio.to_thread(client.close)
        await asyncio.to_thread(client.close)
    assert asked.result() == "CLOSED"
    assert await asyncio.to_thread(ask) == "CLOSED"


async def test_a_client_that_nobody_refers_to_ends_its_thread() -> None:
    def names() -> list[str]:
        return [one.name for one in threading.enumerate() if one.name == "facegrid-client"]

    client = Client("127.0.0.1:1")
    assert names() == ["facegrid-client"]
    del client
    gc.collect()
    assert names() == []


async def test_after_a_fork_the_copy_refuses_instead_of_hanging(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Client("127.0.0.1:1") as client:
        monkeypatch.setattr(os, "getpid", lambda: -1)
        with pytest.raises(InvalidError, match="before a fork"):
            client.list_galleries()
        monkeypatch.undo()


@pytest.mark.cluster
async def test_a_program_that_never_closes_its_client_ends_in_silence(router: FakeRouter) -> None:
    program = (
        "import facegrid\n"
        f"client = facegrid.Client('{router.address}')\n"
        "print(client.list_galleries())\n"
    )
    run = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "[]\n", "")


async def test_a_call_that_closing_cuts_off_hears_so_before_its_loop_ends() -> None:
    """1 the channels are closed; 2 gRPC tells the call so, a little later; 3 the loop may end.

    Told after that, it would be an error in the loop of whichever other client reads it.
    """
    heard: list[str] = []

    async def close_with_a_call_under_way() -> None:
        told = asyncio.Event()

        async def call() -> None:
            await told.wait()
            heard.append("cut off")

        async def close_channels() -> None:
            asyncio.get_running_loop().call_later(0.01, told.set)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(call())
            await _wind_up(close_channels())

    await asyncio.to_thread(asyncio.run, close_with_a_call_under_way())

    assert heard == ["cut off"]
