"""The cluster that most rows of the fault matrix are played on; each test leaves it healed."""

from collections.abc import Iterator

import pytest

from fgctl.local.plan import Wanted
from tests.fakes.rig import Rig


@pytest.fixture(scope="session")
def _rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """Three nodes, two routers, one etcd, a proxy in every link and failpoints in every node."""
    wanted = Wanted(nodes=3, replicas=2, etcd=1, routers=2)
    with Rig(tmp_path_factory.mktemp("rig"), wanted) as rig:
        yield rig


@pytest.fixture
def rig(_rig: Rig) -> Iterator[Rig]:
    """The shared cluster, whole; whatever the test breaks is mended behind it."""
    try:
        yield _rig
    finally:
        _rig.heal()
