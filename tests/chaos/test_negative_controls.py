"""Builds without a safeguard fail the scenarios that guard it: else those would show nothing.

The simulation has three more, `tests/sim/test_sim.py`: no fencing, answers before the commit,
erasures that wait for nobody.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from facegrid.errors import FacegridError
from fgctl.local.plan import Wanted
from tests.fakes.rig import Rig
from tests.fakes.scenarios import (
    a_flipped_bit_is_found,
    a_power_cut_loses_nothing_acknowledged,
    a_stopped_primary_commits_nothing,
)

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


@contextmanager
def build(folder: Path, *flags: str) -> Iterator[Rig]:
    """Run a cluster of one node in another build; it rewrites segments at once."""
    with Rig(
        folder / "rig",
        Wanted(nodes=1, replicas=1, etcd=1, routers=1),
        environment={"FACEGRID_INDEXD_ERASED_REWRITE_S": "1"},
        node_argv=("tests.fakes.other_node", *flags),
    ) as rig:
        yield rig


Play = Callable[[Path, tuple[str, ...]], None]


def play_fencing(folder: Path, flags: tuple[str, ...]) -> None:
    with build(folder, *flags) as rig:
        a_stopped_primary_commits_nothing(rig, "fenced")


def play_fsync(folder: Path, flags: tuple[str, ...]) -> None:
    journal = folder / "disk"
    with build(folder, f"--disk={journal}", *flags) as rig:
        a_power_cut_loses_nothing_acknowledged(rig, journal)


def play_checksums(folder: Path, flags: tuple[str, ...]) -> None:
    with build(folder, *flags) as rig:
        a_flipped_bit_is_found(rig)


PLAYS: dict[str, Play] = {
    "fencing": play_fencing,
    "fsync": play_fsync,
    "checksums": play_checksums,
}
FOUND_BY = {
    "fencing": "the stopped one has committed",
    "fsync": "what was acknowledged is gone",
    "checksums": "a wrong answer was given",
}
"""What the scenario says: another failure would show nothing."""


@pytest.mark.parametrize("safeguard", PLAYS)
def test_the_whole_build_survives(tmp_path: Path, safeguard: str) -> None:
    PLAYS[safeguard](tmp_path, ())


@pytest.mark.parametrize("safeguard", PLAYS)
def test_a_build_without_it_is_found_out(tmp_path: Path, safeguard: str) -> None:
    with pytest.raises((AssertionError, FacegridError)) as found:
        PLAYS[safeguard](tmp_path, (f"--without={safeguard}",))

    assert FOUND_BY[safeguard] in str(found.value)
