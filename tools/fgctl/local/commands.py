"""fgctl local: up, status, down, start, kill."""

import signal
import threading
from collections.abc import Callable
from pathlib import Path

import click

from facegrid.errors import InvalidError
from fgctl import render
from fgctl.cluster_file import ClusterRecord, ProcessRecord
from fgctl.local import plan, processes
from fgctl.local.cluster import GRACE_S, UP_TIMEOUT_S, LocalCluster
from fgctl.target import directory_option, json_option

WATCH_INTERVAL_S = 1.0

POSITIVE = click.IntRange(min=1)


@click.group()
def local() -> None:
    """Run a whole cluster on this machine: etcd, nodes and a router."""


def _timeout_option(default_s: float) -> Callable[..., Callable[..., None]]:
    return click.option(
        "--timeout",
        "timeout_s",
        default=default_s,
        show_default=True,
        type=click.FloatRange(min=0, min_open=True),
        metavar="SECONDS",
    )


@local.command()
@directory_option
@click.option("--nodes", type=POSITIVE, help=f"Default: as before, else {plan.NODES_DEFAULT}.")
@click.option("--replicas", type=POSITIVE, help="Default for new galleries. Default: 1.")
@click.option("--etcd", type=click.Choice(["1", "3"]), help="Members of etcd. Default: 1.")
@click.option("--routers", type=POSITIVE, help="Default: 1.")
@click.option("--search-threads", type=POSITIVE, help="Per node. Default: cores divided by nodes.")
@click.option("--store", metavar="URL", help="Object store. Default: a folder in --dir.")
@click.option("--detach", is_flag=True, help="Return when it serves; it goes on running.")
@_timeout_option(UP_TIMEOUT_S)
@json_option
def up(  # noqa: PLR0913 - one for each option
    *,
    directory: Path,
    nodes: int | None,
    replicas: int | None,
    etcd: str | None,
    routers: int | None,
    search_threads: int | None,
    store: str | None,
    detach: bool,
    timeout_s: float,
    as_json: bool,
) -> None:
    """Start a cluster, or what of it does not run. It has the data it had.

    Without --detach it runs until Ctrl-C.
    """
    wanted = plan.Wanted(
        nodes=nodes,
        replicas=replicas,
        etcd=None if etcd is None else int(etcd),
        routers=routers,
        search_threads=search_threads,
        store=store,
    )
    try:
        cluster = LocalCluster(directory, wanted=wanted)
    except InvalidError as error:
        raise click.UsageError(error.message) from None
    with render.waiting(f"starting a cluster in {cluster.directory}", quiet=as_json):
        record = cluster.up(timeout_s=timeout_s)
    _show_up(cluster, record, as_json=as_json)
    if not detach:
        _run_until_told(cluster)


def up_json(cluster: LocalCluster, record: ClusterRecord) -> render.Json:
    """Return what scripts need to use a cluster that is up."""
    return {
        "dir": str(cluster.directory),
        "routers": list(record.router_targets),
        "nodes": [
            {"id": node.name, "pid": node.pid, "address": node.address}
            for node in record.of_kind("node")
        ],
        "etcd": [
            {"pid": member.pid, "address": member.address} for member in record.of_kind("etcd")
        ],
    }


def _show_up(cluster: LocalCluster, record: ClusterRecord, *, as_json: bool) -> None:
    if as_json:
        render.show_json(up_json(cluster, record))
        return
    rows = [(one.name, one.kind, one.address, str(one.pid)) for one in record.processes]
    render.show_table(f"cluster in {cluster.directory}", ("id", "kind", "address", "pid"), rows)


def _run_until_told(cluster: LocalCluster) -> None:
    """Keep an eye on the processes until SIGINT or SIGTERM, then stop them."""
    told = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: told.set())
    render.show_note("running, Ctrl-C stops it")
    ended: set[str] = set()
    while not told.wait(WATCH_INTERVAL_S):
        for process in cluster.record.processes:
            # A pid of 0 was stopped on purpose, by another fgctl.
            if process.pid == 0 or processes.find(process) is not None:
                ended.discard(process.name)
            elif process.name not in ended:
                ended.add(process.name)
                _show_ended(cluster, process)
    render.show_note("stopping")
    cluster.down()


def _show_ended(cluster: LocalCluster, process: ProcessRecord) -> None:
    log = cluster.log(process.name)
    render.show_note(f"{process.name} ended by itself log={log}\n{processes.log_tail(log)}")


@local.command()
@directory_option
@json_option
def status(*, directory: Path, as_json: bool) -> None:
    """Tell of every process whether it lives and serves."""
    cluster = LocalCluster(directory)
    states = cluster.status()
    if as_json:
        listed: list[render.Json] = [
            {
                "id": state.process.name,
                "kind": state.process.kind,
                "pid": state.process.pid if state.alive else None,
                "address": state.process.address,
                "alive": state.alive,
                "problem": state.problem,
            }
            for state in states
        ]
        render.show_json(
            {
                "dir": str(cluster.directory),
                "replicas": cluster.record.replicas,
                "processes": listed,
            }
        )
        return
    rows = [
        (
            state.process.name,
            state.process.kind,
            state.process.address,
            str(state.process.pid) if state.alive else "",
            state.problem or "serving",
        )
        for state in states
    ]
    columns = ("id", "kind", "address", "pid", "state")
    render.show_table(f"cluster in {cluster.directory}", columns, rows)


@local.command()
@directory_option
@_timeout_option(GRACE_S)
@json_option
def down(*, directory: Path, timeout_s: float, as_json: bool) -> None:
    """Stop a cluster. Its data stays; `fgctl local up` brings it back."""
    cluster = LocalCluster(directory)
    with render.waiting(f"stopping the cluster in {cluster.directory}", quiet=as_json):
        stopped = cluster.down(grace_s=timeout_s)
    if as_json:
        render.show_json({"dir": str(cluster.directory), "stopped": stopped})
    else:
        render.show_line(f"stopped {' '.join(stopped)}" if stopped else "nothing was running")


@local.command()
@click.argument("node_id")
@directory_option
@_timeout_option(UP_TIMEOUT_S)
@json_option
def start(node_id: str, *, directory: Path, timeout_s: float, as_json: bool) -> None:
    """Start one process again, for instance n1."""
    process = LocalCluster(directory).start_node(node_id, timeout_s=timeout_s)
    _show_process(process, f"started {node_id}, pid {process.pid}", as_json=as_json)


@local.command()
@click.argument("node_id")
@directory_option
@json_option
def kill(node_id: str, *, directory: Path, as_json: bool) -> None:
    """End one process with SIGKILL, to see what becomes of the rest."""
    cluster = LocalCluster(directory)
    cluster.kill_node(node_id)
    _show_process(cluster.record.named(node_id), f"killed {node_id}", as_json=as_json)


def _show_process(process: ProcessRecord, text: str, *, as_json: bool) -> None:
    if as_json:
        pid = process.pid or None
        render.show_json({"id": process.name, "pid": pid, "address": process.address})
    else:
        render.show_line(text)
