"""The client for programs without an event loop: every call is forwarded to an AsyncClient."""

import asyncio
import concurrent.futures
import os
import threading
import weakref
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, Final, Self, TypeVar

from facegrid.client.aio import TRAIN_S, TUNE_S, AsyncClient
from facegrid.client.ambient import Ambient
from facegrid.client.arguments import check_callable
from facegrid.client.caller import closed_error
from facegrid.client.checks import checked_batches
from facegrid.client.values import EnrolBatch, Erasure, Matrix, Template, Verification
from facegrid.errors import InvalidError
from facegrid.model import CandidateList, Gallery, Token
from facegrid.rpc.channel import TlsFiles
from facegrid.vectors import BITS_DEFAULT

CLOSE_S_MAX: Final = 5.0
HEAR_S_MAX: Final = 0.5

Result = TypeVar("Result")


class Client:
    """Speaks to one or several routers of a cluster. Arguments and errors as in AsyncClient.

    Safe to use from several threads. Close it, or use it in a `with` statement; at the end of the
    program it closes by itself. It runs an event loop in a thread of its own, so it does not
    survive a fork: make one in each process, after forking.
    """

    def __init__(
        self,
        target: str | Sequence[str],
        *,
        timeout_s: float = 30.0,
        tls: TlsFiles | None = None,
        ambient: Ambient | None = None,
    ) -> None:
        self._aio = AsyncClient(target, timeout_s=timeout_s, tls=tls, ambient=ambient)
        self._loop = _LoopThread()
        self._lock = threading.Lock()
        self._closed = False
        self._finalizer = weakref.finalize(self, _shut, self._aio, self._loop)

    def create_gallery(  # noqa: PLR0913 - each is one setting
        self,
        name: str,
        *,
        dim: int,
        extractor: str,
        shards: int = 1,
        replicas: int = 1,
        train_at: int | None = None,
        profile: str | None = None,
        miss_rate_max: float | None = None,
        component_bits: int = BITS_DEFAULT,
    ) -> Gallery:
        """Create a gallery and return it once its shards accept writes."""
        return self._run(
            self._aio.create_gallery(
                name,
                dim=dim,
                extractor=extractor,
                shards=shards,
                replicas=replicas,
                train_at=train_at,
                profile=profile,
                miss_rate_max=miss_rate_max,
                component_bits=component_bits,
            )
        )

    def get_gallery(self, name: str) -> Gallery:
        """Return a gallery with its present number of templates."""
        return self._run(self._aio.get_gallery(name))

    def list_galleries(self) -> list[Gallery]:
        """Return all galleries by name; their templates are not counted."""
        return self._run(self._aio.list_galleries())

    def drop_gallery(self, name: str) -> None:
        """Drop a gallery with all its templates. Cannot be undone."""
        return self._run(self._aio.drop_gallery(name))

    def train(self, name: str, *, timeout_s: float = TRAIN_S) -> Gallery:
        """Train the gallery's index and return once every shard searches with it."""
        return self._run(self._aio.train(name, timeout_s=timeout_s))

    def update_gallery(
        self, name: str, *, profile: str | None = None, miss_rate_max: float | None = None
    ) -> Gallery:
        """Change settings of a gallery and return it; what is not given stays."""
        return self._run(
            self._aio.update_gallery(name, profile=profile, miss_rate_max=miss_rate_max)
        )

    def tune(self, name: str, *, mates: int | None = None, timeout_s: float = TUNE_S) -> Gallery:
        """Measure what the index misses against exact search, and set the profiles by it."""
        return self._run(self._aio.tune(name, mates=mates, timeout_s=timeout_s))

    def enrol(
        self,
        gallery: str,
        *,
        template_ids: Sequence[str],
        subject_ids: Sequence[str],
        vectors: Matrix,
        request_id: str | None = None,
    ) -> Token:
        """Enrol rows, [rows, dim]; returns when they are durable and searchable."""
        return self._run(
            self._aio.enrol(
                gallery,
                template_ids=template_ids,
                subject_ids=subject_ids,
                vectors=vectors,
                request_id=request_id,
            )
        )

    def enrol_stream(
        self,
        gallery: str,
        batches: Iterable[EnrolBatch],
        *,
        on_ack: Callable[[int], object] | None = None,
    ) -> Token:
        """Enrol many rows with back-pressure; returns when all are durable and searchable.

        `batches` is read, and `on_ack` called, in the calling thread.
        """
        check_callable(on_ack, field="on_ack")
        session = self._aio.open_session(gallery)
        told = 0
        try:
            for batch in checked_batches(batches):
                acked = self._run(session.send(batch))
                if on_ack is not None and acked > told:
                    on_ack(acked)
                told = acked
            while (acked_now := self._run(session.step())) is not None:
                if on_ack is not None:
                    on_ack(acked_now)
        finally:
            self._loop.soon(session.close)
        return session.token

    def get_template(
        self,
        gallery: str,
        template_id: str,
        *,
        subject_id: str | None = None,
        after: Token | None = None,
        confirmed_only: bool = False,
    ) -> Template:
        """Return one stored template, rounded as it is stored."""
        return self._run(
            self._aio.get_template(
                gallery,
                template_id,
                subject_id=subject_id,
                after=after,
                confirmed_only=confirmed_only,
            )
        )

    def erase(
        self,
        gallery: str,
        *,
        template_ids: Sequence[str] = (),
        subject_ids: Sequence[str] = (),
        request_id: str | None = None,
    ) -> Erasure:
        """Erase templates, or subjects with all their templates."""
        return self._run(
            self._aio.erase(
                gallery,
                template_ids=template_ids,
                subject_ids=subject_ids,
                request_id=request_id,
            )
        )

    def identify(  # noqa: PLR0913 - each is one thing that callers may wish of an answer
        self,
        gallery: str,
        probes: Matrix,
        *,
        k: int = 10,
        threshold: float | None = None,
        coverage_min: float | None = None,
        unconfirmed_max: float | None = None,
        after: Token | None = None,
        profile: str | None = None,
    ) -> list[CandidateList]:
        """Return for every probe, [probes, dim], the subjects that resemble it most."""
        return self._run(
            self._aio.identify(
                gallery,
                probes,
                k=k,
                threshold=threshold,
                coverage_min=coverage_min,
                unconfirmed_max=unconfirmed_max,
                after=after,
                profile=profile,
            )
        )

    def verify(
        self,
        gallery: str,
        subject_id: str,
        probe: Matrix,
        *,
        after: Token | None = None,
        confirmed_only: bool = False,
    ) -> Verification:
        """Return the score of a probe, [dim] or [1, dim], against a subject's best template."""
        return self._run(
            self._aio.verify(
                gallery, subject_id, probe, after=after, confirmed_only=confirmed_only
            )
        )

    def close(self) -> None:
        """Close the connections; calls of other threads end as UnavailableError. Idempotent."""
        with self._lock:
            self._closed = True
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.close()

    def _run(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        future = self._started(coroutine)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise closed_error() from None
        finally:
            future.cancel()  # does nothing unless the wait was interrupted, by Ctrl-C for instance

    def _started(
        self, coroutine: Coroutine[Any, Any, Result]
    ) -> "concurrent.futures.Future[Result]":
        with self._lock:  # so that nothing is started on a loop that is about to stop
            problem = self._problem()
            if problem is None:
                return self._loop.submit(coroutine)
        coroutine.close()
        raise problem

    def _problem(self) -> Exception | None:
        if self._closed:
            return closed_error()
        if self._loop.forked():
            return InvalidError(
                "the client was made before a fork, make one in this process", reason="FORKED"
            )
        return None


class _LoopThread:
    """An event loop running in a daemon thread."""

    def __init__(self) -> None:
        self._process_id = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="facegrid-client", daemon=True
        )
        self._thread.start()

    def forked(self) -> bool:
        """Tell whether this is a copy of the process that has the thread."""
        return os.getpid() != self._process_id

    def submit(
        self, coroutine: Coroutine[Any, Any, Result]
    ) -> "concurrent.futures.Future[Result]":
        """Start a coroutine."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def soon(self, action: Callable[[], object]) -> None:
        """Call something in the thread, unless that has ended."""
        if not self._loop.is_closed() and not self.forked():
            self._loop.call_soon_threadsafe(action)

    def stop(self, last: Coroutine[Any, Any, None]) -> None:
        """Run a last coroutine, cancel what else is running, and end the thread."""
        if threading.current_thread() is self._thread:  # collected as garbage while calling
            last.close()
            self._loop.call_soon(self._loop.stop)
            return
        self.submit(_wind_up(last)).result(CLOSE_S_MAX)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CLOSE_S_MAX)
        self._loop.close()


async def _wind_up(last: Coroutine[Any, Any, None]) -> None:
    await last
    others = asyncio.all_tasks() - {asyncio.current_task()}
    if others:
        # Calls that were cut off hear so from gRPC. If the loop were closed before, that would
        # be told to the loop of another client instead, where it is an error.
        _, others = await asyncio.wait(others, timeout=HEAR_S_MAX)
    for task in others:
        task.cancel()
    if others:
        await asyncio.wait(others, timeout=CLOSE_S_MAX)


def _shut(client: AsyncClient, loop: _LoopThread) -> None:
    """Not a method: what a finalizer refers to must not keep the client alive."""
    if not loop.forked():
        loop.stop(client.aclose())
