"""Child processes: found, signalled and told from strangers."""

import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from facegrid.clock import SystemClock
from fgctl.cluster_file import ProcessRecord
from fgctl.local import processes
from fgctl.local.ports import is_free

pytestmark = pytest.mark.cluster

WAIT_S = 20.0
OBEDIENT = "print('ready', flush=True); import signal; signal.pause()"
STUBBORN = (
    "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    " print('ready', flush=True); signal.pause()"
)

BUSY = (
    "import hashlib, signal, threading; data = bytes(50_000_000);"
    " hashes = lambda: [hashlib.sha256(data) for _ in iter(int, 1)];"
    " [threading.Thread(target=hashes, daemon=True).start() for _ in range(8)];"
    " print('ready', flush=True); signal.pause()"
)
PAUSES_COUNT = 20

ENDING = (
    "import ctypes, platform, signal, socket, threading;"
    " taken = socket.create_server(('127.0.0.1', 0));"
    " threading.Thread(target=signal.pause).start();"
    " print('ready', taken.getsockname()[1], flush=True);"
    " ctypes.CDLL(None).syscall({'x86_64': 60, 'aarch64': 93}[platform.machine()], 0)"
)
"""Its first thread ends alone, as that of a killed process may do a little before the others."""


def states_of(record: ProcessRecord) -> set[str]:
    """Return the states of a process's threads, as the kernel abbreviates them."""
    stats = [(task / "stat").read_text() for task in Path(f"/proc/{record.pid}/task").iterdir()]
    return {stat.rpartition(")")[2].split()[0] for stat in stats}


def started(log: Path, program: str) -> ProcessRecord:
    argv = (sys.executable, "-c", program)
    pid, created_s = processes.spawn(argv, log)
    record = ProcessRecord("p", "node", "", pid=pid, created_s=created_s, argv=argv)
    problem = processes.wait_until(
        lambda: "" if "ready" in processes.log_tail(log) else "not ready",
        timeout_s=WAIT_S,
        clock=SystemClock(),
    )
    assert not problem
    return record


@pytest.fixture
def obedient(tmp_path: Path) -> Iterator[ProcessRecord]:
    record = started(tmp_path / "log", OBEDIENT)
    yield record
    processes.kill([record])


def test_a_process_is_found_until_it_ends(obedient: ProcessRecord) -> None:
    found = processes.find(obedient)
    assert found is not None
    assert found.pid == obedient.pid
    assert processes.stop([obedient], grace_s=WAIT_S) == ()
    assert processes.find(obedient) is None
    assert not psutil.pid_exists(obedient.pid)


def test_a_process_that_ignores_the_request_is_killed(tmp_path: Path) -> None:
    stubborn = started(tmp_path / "log", STUBBORN)
    assert processes.stop([stubborn], grace_s=0.1) == ("p",)
    assert processes.find(stubborn) is None


def test_a_process_has_not_ended_before_its_last_thread(tmp_path: Path) -> None:
    """Its ports are taken until then: etcd, killed and started again, found its own taken."""
    log = tmp_path / "log"
    ending = started(log, ENDING)
    address = f"127.0.0.1:{processes.log_tail(log).split()[-1]}"
    problem = processes.wait_until(
        lambda: "" if "Z" in states_of(ending) else "its first thread lives",
        timeout_s=WAIT_S,
        clock=SystemClock(),
    )
    assert not problem

    assert processes.find(ending) is not None
    assert not is_free(address)
    processes.kill([ending])
    assert processes.find(ending) is None
    assert is_free(address)


SPINNING = ENDING.replace("signal.pause", "lambda: [0 for _ in iter(int, 1)]")
"""The same with a thread that wants the processor all the time."""


@pytest.mark.parametrize(
    ("code", "ends"), [(ENDING, False), (SPINNING, True)], ids=["waits", "computes"]
)
def test_only_what_wants_the_processor_counts_as_ending(
    tmp_path: Path, code: str, *, ends: bool
) -> None:
    """What hangs in a call after it was killed is told as before, however long ago."""
    ending = started(tmp_path / "log", code)
    problem = processes.wait_until(
        lambda: "" if "Z" in states_of(ending) else "its first thread lives",
        timeout_s=WAIT_S,
        clock=SystemClock(),
    )

    found = processes._ends_at_the_lowest_priority(ending)

    processes.kill([ending])
    assert not problem
    assert found == ends


def test_a_process_whose_first_thread_lives_is_not_ending(tmp_path: Path) -> None:
    busy = started(tmp_path / "log", BUSY)

    found = processes._ends_at_the_lowest_priority(busy)

    processes.kill([busy])
    assert not found


LAZY = (
    "import os, signal, threading;"
    " lazy = lambda: (os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19),"
    " print('ready', flush=True), signal.pause());"
    " threading.Thread(target=lazy).start()"
)
"""A thread of it has the lowest priority, as those have in which nodes measure."""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may raise a priority")
def test_a_thread_of_the_lowest_priority_is_given_the_usual_one_to_end_with(
    tmp_path: Path,
) -> None:
    """Else it hardly gets a processor on a busy machine, and what it has open stays open."""
    lazy = started(tmp_path / "log", LAZY)
    tasks = [int(task.name) for task in Path(f"/proc/{lazy.pid}/task").iterdir()]
    assert max(os.getpriority(os.PRIO_PROCESS, task) for task in tasks) == 19

    processes._hasten(lazy)

    assert {os.getpriority(os.PRIO_PROCESS, task) for task in tasks} == {0}
    processes.kill([lazy])
    assert processes.find(lazy) is None


def test_a_process_has_ended_even_when_its_parent_does_not_ask(tmp_path: Path) -> None:
    """1. a parent starts a child and sleeps, 2. we kill the child: a zombie of somebody else."""
    parent = (
        "import subprocess, sys, psutil, signal;"
        f" child = subprocess.Popen([sys.executable, '-c', {OBEDIENT!r}],"
        " stdout=subprocess.PIPE); child.stdout.readline();"
        " print('ready', child.pid, flush=True); signal.pause()"
    )
    record = started(tmp_path / "log", parent)
    child = psutil.Process(int(processes.log_tail(tmp_path / "log").split()[1]))
    orphan = ProcessRecord(
        "c", "node", "", pid=child.pid, created_s=child.create_time(), argv=(*child.cmdline(),)
    )
    processes.kill([orphan])
    assert psutil.pid_exists(orphan.pid)
    assert processes.find(orphan) is None
    processes.kill([record])


def test_a_stranger_with_the_recorded_pid_is_left_alone(obedient: ProcessRecord) -> None:
    """Pids are reused: 1. ours ends, 2. a stranger gets its pid, 3. `fgctl local down` runs."""
    others_time = replace(obedient, created_s=obedient.created_s - 60)
    others_command = replace(obedient, argv=(*obedient.argv, "--other"))
    for stranger in (others_time, others_command):
        assert processes.find(stranger) is None
        assert processes.stop([stranger], grace_s=0.1) == ()
        processes.kill([stranger])
    assert processes.find(obedient) is not None


def test_a_process_does_not_hear_the_interrupts_of_its_starter(obedient: ProcessRecord) -> None:
    found = processes.find(obedient)
    assert found is not None
    assert found.terminal() is None
    with Path(f"/proc/{found.pid}/stat").open() as file:
        session = int(file.read().rpartition(")")[2].split()[3])
    assert session == found.pid


def test_nothing_is_found_or_signalled_where_nothing_was_started() -> None:
    never = ProcessRecord("p", "node", "")
    assert processes.find(never) is None
    processes.send([never], signal.SIGTERM)
    assert processes.stop([never], grace_s=0.1) == ()


def test_only_what_a_log_got_since_the_start_is_shown(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert (processes.log_bytes(log), processes.log_tail(log)) == (0, "")
    log.write_text("before\n")
    since = processes.log_bytes(log)
    assert processes.log_tail(log, since=since) == ""
    with log.open("a") as file:
        file.writelines(f"line {number}\n" for number in range(20))
    assert processes.log_tail(log, since=since).splitlines() == [
        f"line {number}" for number in range(8, 20)
    ]


def test_a_paused_process_stands_still_with_all_its_threads(tmp_path: Path) -> None:
    """A member of etcd answered after it was told to stand still: its other threads went on."""
    busy = started(tmp_path / "log", BUSY)
    try:
        states = set[str]()
        for _ in range(PAUSES_COUNT):
            processes.pause([busy])
            states |= states_of(busy)
            processes.resume([busy])
        assert states == {"T"}
    finally:
        processes.kill([busy])
