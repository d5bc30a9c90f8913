"""Fixtures for all tests: one real etcd and one S3 server for the whole run, with an empty part of
them per test.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling

import fgctl.local.etcd
from facegrid.clock import SystemClock
from fgctl.local.etcd import start_etcd
from tests.fakes.s3_servers import S3Server, moto, s3rver
from tests.hanging import note_stderr, pytest_runtest_protocol

__all__ = ["pytest_runtest_protocol"]

# The same examples in every run, and no verdict that depends on how busy the machine is.
settings.register_profile(
    "facegrid", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("facegrid")

TESTS = Path(__file__).parent
FOLDERS = ("cluster", "chaos", "property", "conformance", "unit", "sim", "tidy")
"""In this order, where several processes run tests: what takes longest first."""
COMMANDS = (
    "tests/chaos/test_chaos.py",
    "tests/cluster/test_bench_commands.py",
    "tests/cluster/test_demo.py",
    "tests/cluster/test_local.py",
)
"""Files whose clusters are started by commands, all with ports of one range: one at a time."""
WORKER_PORTS = 2000
WORKER_PORT_FIRST = 10_000
"""Clusters that a test process starts itself have ports from a range of its own, so that none gets
the port of another one's node that is just down.
"""

_roots = count(1)


def pytest_configure(config: pytest.Config) -> None:
    """Give each process that runs tests its own ports, and keep where its errors go."""
    note_stderr(config)
    worker = getattr(config, "workerinput", {}).get("workerid")
    if worker is not None:
        first = WORKER_PORT_FIRST + WORKER_PORTS * int(worker.removeprefix("gw"))
        fgctl.local.etcd.PORT_FIRST, fgctl.local.etcd.PORT_LAST = first, first + WORKER_PORTS


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put what takes longest first."""
    items.sort(key=lambda item: FOLDERS.index(item.path.relative_to(TESTS).parts[0]))


class ByFile(LoadScopeScheduling):
    """Tests of one file run in one process, since they share what they start; so do COMMANDS."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return "commands" if file in COMMANDS else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile:
    """Return what hands tests to processes."""
    return ByFile(config, log)


@dataclass(frozen=True, slots=True)
class EtcdRoot:
    """A running etcd, and a root prefix that no other test uses."""

    endpoints: tuple[str, ...]
    root: str

    @property
    def endpoint(self) -> str:
        """The endpoints as processes take them on their command line."""
        return ",".join(self.endpoints)


@pytest.fixture(scope="session")
def etcd_endpoints(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, ...]]:
    """Endpoints of an etcd with one member, running until the last test has ended."""
    folder: Path = tmp_path_factory.mktemp("etcd")
    etcd = asyncio.run(start_etcd(folder, clock=SystemClock()))
    yield etcd.endpoints
    etcd.kill()


@pytest.fixture
def etcd(etcd_endpoints: tuple[str, ...]) -> EtcdRoot:
    """A real etcd in which this test is alone: `.endpoints`, `.endpoint` and `.root`."""
    return EtcdRoot(etcd_endpoints, f"test{next(_roots)}/")


@contextmanager
def _s3_keys() -> Iterator[None]:
    """Set credentials in the environment of this process, and so of those that it starts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "S3RVER")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "S3RVER")
        yield


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """An S3 server with a bucket; each `.url()` is a part of it in which a test is alone."""
    with _s3_keys(), moto(tmp_path_factory.mktemp("moto")) as server:
        yield server


@pytest.fixture(scope="session")
def careless_s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """An S3 server that ignores conditions: it lets a name be taken many times."""
    with _s3_keys(), s3rver(tmp_path_factory.mktemp("s3rver")) as server:
        yield server
