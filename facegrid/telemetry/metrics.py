"""Metrics for Prometheus: what is common to all processes, and the port that serves them.

Metrics are named in tables, so that documents and dashboards can be held to them. What a process
holds is looked at when it is scraped, on its event loop, where it changes; only calls are counted
as they end. Labels name nodes, shards, galleries, methods and reasons: never a subject, a template
or a score.
"""

import asyncio
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal
from wsgiref.simple_server import WSGIServer

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    start_http_server,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from typing_extensions import override

from facegrid.errors import UnavailableError

SCRAPE_S: Final = 5.0
"""How long a scrape waits for a busy event loop."""
REASONS_MAX: Final = 256
"""Pairs of code and reason told apart; what comes beyond them counts as OTHER."""
OTHER: Final = "OTHER"
REASON: Final = re.compile(r"[A-Z][A-Z0-9_]{0,62}")
BUCKETS_S: Final = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0),
)


@dataclass(frozen=True, slots=True)
class Spec:
    """One metric: its name as it is exported, what it is, and what tells its series apart."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    says: str
    labels: tuple[str, ...] = ()


CALLS: Final = Spec(
    "facegrid_calls_total",
    "counter",
    "calls served, by gRPC status code and, where they failed, reason",
    ("method", "code", "reason"),
)
CALL_SECONDS: Final = Spec(
    "facegrid_call_seconds", "histogram", "how long calls took to be served", ("method",)
)
BUILD: Final = Spec(
    "facegrid_build_info", "gauge", "always 1; labels say what runs", ("process", "version")
)
PROCESS: Final = (
    Spec("process_resident_memory_bytes", "gauge", "memory of the process"),
    Spec("process_virtual_memory_bytes", "gauge", "address space of the process"),
    Spec("process_cpu_seconds_total", "counter", "processor time used"),
    Spec("process_open_fds", "gauge", "open files and connections"),
    Spec("process_max_fds", "gauge", "how many there may be"),
    Spec("process_start_time_seconds", "gauge", "when the process began, in Unix time"),
)
COMMON: Final = (CALLS, CALL_SECONDS, BUILD, *PROCESS)


class Families:
    """Collects the series of one scrape.

    Args:
        specs: the metrics that there are; no other can be added to.
    """

    def __init__(self, specs: Sequence[Spec]) -> None:
        self._families: dict[str, GaugeMetricFamily | CounterMetricFamily] = {}
        for spec in specs:
            kind = CounterMetricFamily if spec.kind == "counter" else GaugeMetricFamily
            self._families[spec.name] = kind(spec.name, spec.says, labels=spec.labels)

    def add(self, name: str, value: float, *labels: str) -> None:
        """Add one series; labels in the order of the table."""
        self._families[name].add_metric(labels, float(value))

    def __iter__(self) -> Iterator[Metric]:
        """Yield all metrics, those without a series too."""
        return iter(self._families.values())


class _OnLoop(Collector):
    """Lets what is told be looked up on the event loop, though scrapes come in other threads."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, collect: Callable[[], Iterable[Metric]]
    ) -> None:
        self._loop = loop
        self._collect = collect

    def describe(self) -> Iterable[Metric]:
        """Tell nothing: else it would be collected while the loop waits for that."""
        return ()

    @override
    def collect(self) -> Iterable[Metric]:
        """Return what the event loop says; a TimeoutError, if it is stuck, fails the scrape."""
        return asyncio.run_coroutine_threadsafe(self._told(), self._loop).result(SCRAPE_S)

    async def _told(self) -> list[Metric]:
        return [*self._collect()]


class Metrics:
    """The metrics of one process.

    Args:
        process: its name.
        version: and which one it is.
    """

    def __init__(self, process: str, version: str) -> None:
        self.registry = CollectorRegistry()
        self._calls = Counter(CALLS.name, CALLS.says, CALLS.labels, registry=self.registry)
        self._call_seconds = Histogram(
            CALL_SECONDS.name,
            CALL_SECONDS.says,
            CALL_SECONDS.labels,
            buckets=BUCKETS_S,
            registry=self.registry,
        )
        self._reasons: set[tuple[str, str]] = set()
        # Series by what is told: looking them up by labels would cost more than counting.
        self._series: dict[tuple[str, str, str], tuple[Counter, Histogram]] = {}
        self._build = (process, version)
        self._collectors: list[Callable[[], Iterable[Metric]]] = [self._about]
        self._server: WSGIServer | None = None
        ProcessCollector(registry=self.registry)
        # When a series began is of no use, and doubles their number.
        disable_created_metrics()  # type: ignore[no-untyped-call]  # it lacks annotations

    def add(self, collect: Callable[[], Iterable[Metric]]) -> None:
        """Let something be told at every scrape; before `start`."""
        self._collectors.append(collect)

    def called(self, method: str, code: str, reason: str, duration_s: float) -> None:
        """Take notice of a call that was served.

        Args:
            method: as gRPC names it, of a service that there is: `/package.Service/Method`.
            code: of its status.
            reason: of its error; empty where it has none.
            duration_s: how long it took.
        """
        series = self._series.get((method, code, reason))
        if series is None:
            series = self._series_of(method, code, reason)
        calls, call_seconds = series
        calls.inc()
        call_seconds.observe(duration_s)

    def _series_of(self, method: str, code: str, reason: str) -> tuple[Counter, Histogram]:
        short, known = method.rpartition(".")[2], self._known(code, reason)
        series = self._calls.labels(short, code, known), self._call_seconds.labels(short)
        if known == reason:
            self._series[method, code, reason] = series
        return series

    def _known(self, code: str, reason: str) -> str:
        """Return a reason, or OTHER, so that no peer can make up series without end."""
        pair = (code, reason)
        if pair in self._reasons or not reason:
            return reason
        if len(self._reasons) >= REASONS_MAX or REASON.fullmatch(reason) is None:
            return OTHER
        self._reasons.add(pair)
        return reason

    def _about(self) -> Iterable[Metric]:
        families = Families([BUILD])
        families.add(BUILD.name, 1, *self._build)
        return families

    def start(self, listen: str) -> int:
        """Serve at host:port, on threads of its own; return the port. On the event loop.

        Raises:
            UnavailableError: the address cannot be had (LISTEN_FAILED).
        """
        loop = asyncio.get_running_loop()
        for collect in self._collectors:
            self.registry.register(_OnLoop(loop, collect))
        host, _, port = listen.rpartition(":")
        try:
            self._server, _ = start_http_server(
                int(port), host.strip("[]"), registry=self.registry
            )
        except OSError as error:
            raise UnavailableError(
                f"cannot serve metrics: the address is taken or not of this machine"
                f" address={listen}",
                reason="LISTEN_FAILED",
                address=listen,
            ) from error
        return self._server.server_port

    def stop(self) -> None:
        """Serve no more. Idempotent."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()
