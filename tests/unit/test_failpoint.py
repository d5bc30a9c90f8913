"""Failpoints: what a rule says happens there, then, once; and nothing without a rule."""

import importlib
import inspect
import pkgutil
import signal
from pathlib import Path

import pytest

import facegrid.format
from facegrid.coord import keys
from facegrid.coord.port import Put
from facegrid.errors import InvalidError, NotFoundError, UnavailableError
from facegrid.failpoint import (
    POINTS,
    FailingCoordinator,
    FailingStore,
    Failpoints,
    ShiftedClock,
    coord,
    store,
)
from facegrid.failpoint.points import parse
from facegrid.testing.manual_clock import ManualClock
from facegrid.testing.memory_blob import MemoryBlobStore
from facegrid.testing.memory_coord import MemoryCoordinator
from indexd.settings import IndexdSettings
from router.settings import RouterSettings

LOG = "shards/g.1f00aa23.0000/log/0000000001-0000000000000000001-aa"


class Rules:
    """A file of rules, and the signals that a process would have sent itself."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "n1"
        self.signals: list[signal.Signals] = []
        self.failpoints = self.read_anew()

    def read_anew(self) -> Failpoints:
        """Return the failpoints as another process of the same node reads them."""
        return Failpoints(self.path, signal_self=self.signals.append)

    def write(self, *rules: str) -> None:
        self.path.write_text("\n".join(rules))

    @property
    def struck(self) -> list[str]:
        return self.path.with_name("n1.struck").read_text().splitlines()


@pytest.fixture
def rules(tmp_path: Path) -> Rules:
    return Rules(tmp_path)


async def test_without_rules_everything_passes(rules: Rules) -> None:
    failing = FailingStore(MemoryBlobStore(), rules.failpoints)
    await failing.put_new(LOG, b"x")

    assert (await failing.get(LOG), list(await failing.list("shards/"))) == (b"x", [LOG])
    await failing.delete(LOG)
    with pytest.raises(NotFoundError):
        await failing.get(LOG)


async def test_an_error_before_a_step_keeps_it_from_happening_and_strikes_once(
    rules: Rules,
) -> None:
    inner = MemoryBlobStore()
    failing = FailingStore(inner, rules.failpoints)
    rules.write("store.put.log before error 1")

    with pytest.raises(UnavailableError) as failed:
        await failing.put_new(LOG, b"x")
    assert (failed.value.reason, inner.objects) == ("FAILPOINT", {})
    await failing.put_new(LOG, b"x")
    assert rules.struck == ["store.put.log before error 1"]


async def test_an_error_after_a_step_is_an_answer_that_was_lost(rules: Rules) -> None:
    inner = MemoryCoordinator(ManualClock())
    failing = FailingCoordinator(inner, rules.failpoints)
    rules.write("etcd.txn.tip after error 1")

    with pytest.raises(UnavailableError):
        await failing.txn([], [Put(keys.TIPS + "s", b"x")])
    found = await inner.get(keys.TIPS + "s")
    assert found is not None
    assert found.value == b"x"


@pytest.mark.parametrize(
    ("action", "sent"), [("crash", signal.SIGKILL), ("stall", signal.SIGSTOP)]
)
def test_a_process_ends_or_stands_still_at_the_stated_arrival(
    rules: Rules, action: str, sent: signal.Signals
) -> None:
    rules.write(f"etcd.txn.* after {action} 3")
    for point in ("etcd.txn.tip", "store.put.log", "etcd.txn.map"):
        rules.failpoints.reach(point, "after")
    rules.failpoints.reach("etcd.txn.tip", "before")
    assert rules.signals == []

    rules.failpoints.reach("etcd.txn.tip", "after")
    assert rules.signals == [sent]


def test_a_rule_that_struck_does_not_strike_the_next_process_unless_it_is_for_every_arrival(
    rules: Rules,
) -> None:
    rules.write("store.put.log after crash 1", "store.get.* before error *")
    rules.failpoints.reach("store.put.log", "after")
    again = rules.read_anew()
    again.reach("store.put.log", "after")
    for failpoints in (rules.failpoints, again, again):
        with pytest.raises(UnavailableError):
            failpoints.reach("store.get.log", "before")

    assert rules.signals == [signal.SIGKILL]


def test_rules_are_read_anew_when_they_change(rules: Rules) -> None:
    rules.write("store.put.log before error *")
    with pytest.raises(UnavailableError):
        rules.failpoints.reach("store.put.log", "before")
    rules.path.unlink()
    rules.failpoints.reach("store.put.log", "before")


@pytest.mark.parametrize(
    "line",
    [
        "store.put.log",
        "a before error 0",
        "a amid error 1",
        "a after explode 1",
        "a after crash x",
    ],
)
def test_a_line_that_is_no_rule_is_refused(line: str) -> None:
    with pytest.raises(InvalidError) as refused:
        parse(line)
    assert refused.value.reason == "FAILPOINT_MALFORMED"


def test_every_durable_step_has_a_point() -> None:
    """Whoever stores a new kind of object, or a new kind of record, names it here too."""
    ours = set(store.KINDS.values())
    put = {f"store.put.{kind}" for kind in ours}
    # The journal of erasures outlives its gallery: no node deletes it.
    deleted = {f"store.delete.{kind}" for kind in ours - {"journal"}}
    committed = {f"etcd.txn.{kind}" for _, kind in coord.KINDS}

    assert set(POINTS) == put | deleted | committed
    prefixes = {value for name, value in vars(keys).items() if name.isupper()}
    assert {prefix for prefix, _ in coord.KINDS} == prefixes


def test_every_kind_of_object_is_known_by_its_name() -> None:
    """Every function of the format that says what names begin with."""
    modules = [
        importlib.import_module(f"facegrid.format.{module.name}")
        for module in pkgutil.iter_modules(facegrid.format.__path__)
    ]
    prefixes = {
        name: function("g.1f00aa23.0000")
        for module in modules
        for name, function in vars(module).items()
        if name.endswith("_prefix") and inspect.isfunction(function)
    }

    assert len(prefixes) >= 7
    assert [name for name, prefix in prefixes.items() if store.kind_of(prefix) == "other"] == []


def test_a_shifted_clock_moves_wall_time_alone(tmp_path: Path) -> None:
    clock = ShiftedClock(ManualClock(), tmp_path / "wall")
    before = (clock.now_s(), clock.unix_ms())
    (tmp_path / "wall").write_text("-3600000")

    assert (clock.now_s(), clock.unix_ms()) == (before[0], before[1] - 3_600_000)


@pytest.mark.parametrize("settings", [IndexdSettings, RouterSettings])
def test_failpoints_need_dev(settings: type[IndexdSettings] | type[RouterSettings]) -> None:
    values = {"node_id": "n1", "store": "dir:/x"} if settings is IndexdSettings else {}
    with pytest.raises(ValueError, match="they need dev"):
        settings(etcd=("127.0.0.1:1",), failpoints=Path("/x"), **values)  # type: ignore[arg-type]  # as named
    assert settings(etcd=("127.0.0.1:1",), failpoints=Path("/x"), dev=True, **values)  # type: ignore[arg-type]  # likewise
