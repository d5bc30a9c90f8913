"""Child processes that outlive the command that started them.

A process is recorded with its creation time and command line, so that a pid that was reused by a
stranger is never taken for ours, and never signalled.
"""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from facegrid.clock import Clock, SystemClock
from facegrid.errors import UnavailableError
from fgctl.cluster_file import ProcessRecord

POLL_INTERVAL_S = 0.05
CREATED_TOLERANCE_S = 2.0
"""The creation time is derived from the boot time, which moves when the wall clock is set."""
ENDED = ("Z", "X")
"""States of a process or thread that runs no more."""
LOG_TAIL_LINES = 12
LOG_TAIL_BYTES = 16_384


def spawn(argv: Sequence[str], log: Path) -> tuple[int, float]:
    """Start a process in a session of its own, so that Ctrl-C here does not reach it.

    Both of its outputs go to the end of the log, and it reads nothing.

    Returns:
        Its pid and its creation time in Unix seconds.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    pid = os.posix_spawn(
        argv[0],
        list(argv),
        os.environ,  # noqa: TID251 - a child inherits the environment unread
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), flags, 0o644),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
        setsigmask=[],
        setsigdef=[signal.SIGINT, signal.SIGTERM, signal.SIGPIPE],
    )
    return pid, psutil.Process(pid).create_time()


def find(record: ProcessRecord) -> psutil.Process | None:
    """Return the living process of a record, or None when it has ended."""
    if record.pid == 0:
        return None
    try:
        process = psutil.Process(record.pid)
        if abs(process.create_time() - record.created_s) > CREATED_TOLERANCE_S:
            return None
        if process.status() == psutil.STATUS_ZOMBIE:
            if process.num_threads() > 1:
                # Its first thread has ended, the others are ending: its ports are still taken.
                return process
            process.wait(0)
            return None
        # Empty for a moment after the start, until the kernel has laid out the new program.
        return process if tuple(process.cmdline()) in {(), record.argv} else None
    except (psutil.NoSuchProcess, psutil.TimeoutExpired):
        return None


def send(records: Sequence[ProcessRecord], number: signal.Signals) -> None:
    """Signal the living processes among the records."""
    for record in records:
        process = find(record)
        if process is not None:
            try:
                process.send_signal(number)
            except psutil.NoSuchProcess:
                continue


def pause(records: Sequence[ProcessRecord], *, wait_s: float = 10.0) -> None:
    """Make processes stand still, with SIGSTOP, and wait until all their threads do.

    The signal reaches one thread, which makes the others stop once it runs itself: until then
    they go on, and on a busy machine still answer.

    Raises:
        UnavailableError: a thread of one does not stop, hanging in an uninterruptible call.
    """
    send(records, signal.SIGSTOP)
    going = wait_until(
        lambda: " ".join(str(record.pid) for record in records if not _stands(record)),
        timeout_s=wait_s,
        clock=SystemClock(),
    )
    if going:
        raise UnavailableError(f"cannot be stopped pids={going}", reason="PROCESS_STUCK")


def resume(records: Sequence[ProcessRecord]) -> None:
    """Let processes that stand still go on, with SIGCONT; the others do not notice."""
    send(records, signal.SIGCONT)


def _stands(record: ProcessRecord) -> bool:
    """Tell whether no thread of a process runs: all are stopped, or it has ended."""
    process = find(record)
    tasks = Path(f"/proc/{record.pid}/task")
    if process is None:
        return True
    if not tasks.exists():
        return process.status() == psutil.STATUS_STOPPED
    return all(_state(task) in {"T", *ENDED} for task in tasks.iterdir())


def _state(task: Path) -> str:
    """Return the state of a process or a thread, X once it is gone; it follows its name in
    parentheses.
    """
    try:
        return task.joinpath("stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


def stop(records: Sequence[ProcessRecord], *, grace_s: float) -> tuple[str, ...]:
    """End processes: ask them all with SIGTERM, and kill those that live on after the grace.

    Returns:
        Names of those that had to be killed.
    """
    for record in records:
        _hasten(record)
    send(records, signal.SIGTERM)
    stubborn = _left(records, grace_s)
    kill(stubborn)
    return tuple(record.name for record in stubborn)


def kill(records: Sequence[ProcessRecord], *, wait_s: float = 10.0) -> None:
    """End processes at once, with SIGKILL, and wait until they are gone.

    Raises:
        UnavailableError: the system did not end one, which hangs in an uninterruptible call.
    """
    for record in records:
        _hasten(record)
    send(records, signal.SIGKILL)
    left = [one for one in _left(records, wait_s) if not _ends_at_the_lowest_priority(one)]
    if left:
        pids = " ".join(str(record.pid) for record in left)
        threads = " ".join(thread for record in left for thread in _living_threads(record))
        raise UnavailableError(
            f"cannot be killed pids={pids} threads={threads}", reason="PROCESS_STUCK"
        )


def _hasten(record: ProcessRecord) -> None:
    """Give all threads of a process the usual priority, where that is permitted.

    A thread needs the processor to end, too. One of the lowest priority gets next to none of it on
    a busy machine: Linux shares the cores among sessions, but a thread that ends belongs to none.
    Nodes have such threads, and were seen to keep their ports for more than ten seconds.
    """
    if find(record) is None:
        return
    for task in Path(f"/proc/{record.pid}/task").glob("*"):
        with contextlib.suppress(PermissionError, ProcessLookupError):
            if os.getpriority(os.PRIO_PROCESS, int(task.name)) > 0:
                os.setpriority(os.PRIO_PROCESS, int(task.name), 0)


def _ends_at_the_lowest_priority(record: ProcessRecord) -> bool:
    """Tell whether a process has ended but for threads that have no processor to end with."""
    ended = _state(Path(f"/proc/{record.pid}")) in ENDED
    return ended and all(":R:" in thread for thread in _living_threads(record))


def _living_threads(record: ProcessRecord) -> list[str]:
    """Return the threads of a process that have not ended: number, state and where they wait."""
    threads = []
    for task in sorted(Path(f"/proc/{record.pid}/task").glob("*")):
        state = _state(task)
        if state not in ENDED:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                threads.append(f"{task.name}:{state}:{task.joinpath('wchan').read_text()}")
    return threads


def _left(records: Sequence[ProcessRecord], timeout_s: float) -> list[ProcessRecord]:
    """Wait until processes have ended; return those that have not.

    Not psutil.wait_procs: that waits for the pid to vanish, which it does not before the parent
    asks, and the parent may be another fgctl, or an init that never does.
    """
    wait_until(
        lambda: " ".join(record.name for record in records if find(record) is not None),
        timeout_s=timeout_s,
        clock=SystemClock(),
    )
    return [record for record in records if find(record) is not None]


def log_bytes(log: Path) -> int:
    """Return how long a log is; 0 when there is none."""
    return log.stat().st_size if log.exists() else 0


def log_tail(log: Path, *, since: int = 0) -> str:
    """Return the last lines that a log got after its first `since` bytes."""
    size = log_bytes(log)
    if size <= since:
        return ""
    with log.open("rb") as file:
        file.seek(max(since, size - LOG_TAIL_BYTES))
        lines = file.read().decode(errors="replace").splitlines()
    return "\n".join(lines[-LOG_TAIL_LINES:])


def wait_until(problem: Callable[[], str], *, timeout_s: float, clock: Clock) -> str:
    """Wait until there is no problem any more, or the time is over.

    Returns:
        The last problem; empty when there is none.
    """
    end_s = clock.now_s() + timeout_s
    while True:
        last = problem()
        if not last or clock.now_s() >= end_s:
            return last
        time.sleep(POLL_INTERVAL_S)  # noqa: TID251 - waits for another process, outside any loop
