"""What a local cluster consists of, and how its processes are started."""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

from facegrid.errors import InvalidError
from facegrid.limits import REPLICAS_MAX
from fgctl.cluster_file import ClusterRecord, Kind, ProcessRecord
from fgctl.local.etcd import EtcdMember, member_argv

NODES_DEFAULT = 2
NODES_MAX = 64
ETCD_SIZES = (1, 3)

_PREFIX: dict[Kind, str] = {"etcd": "etcd", "node": "n", "router": "router"}
_ORDER: tuple[Kind, ...] = ("etcd", "node", "router")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What somebody asks for; None means: as it was, or else the default."""

    nodes: int | None = None
    replicas: int | None = None
    etcd: int | None = None
    routers: int | None = None
    search_threads: int | None = None
    store: str | None = None


def planned(wanted: Wanted, before: ClusterRecord | None, *, cores: int) -> ClusterRecord:
    """Return the cluster that is wanted, given the one that was there before.

    Processes that were there stay as they are; new ones have no address yet.

    Raises:
        InvalidError: it cannot be had: fewer nodes than before, another number of etcd members,
            more replicas than nodes, another store.
    """
    if before is None:
        before = ClusterRecord(replicas=1, search_threads=0)
    nodes = wanted.nodes or len(before.of_kind("node")) or NODES_DEFAULT
    etcd = wanted.etcd or len(before.of_kind("etcd")) or 1
    routers = wanted.routers or len(before.of_kind("router")) or 1
    replicas = wanted.replicas or before.replicas
    if nodes > NODES_MAX:
        raise _refused(f"too many nodes nodes={nodes} limit={NODES_MAX}", "nodes")
    if etcd not in ETCD_SIZES:
        raise _refused(f"etcd has one member or three etcd={etcd}", "etcd")
    if replicas > min(nodes, REPLICAS_MAX):
        raise _refused(
            f"each replica needs a node of its own replicas={replicas} nodes={nodes}", "replicas"
        )
    if wanted.store is not None and before.processes and wanted.store != before.store:
        raise _refused("the data of a local cluster cannot move to another store", "store")
    sizes: dict[Kind, int] = {"etcd": etcd, "node": nodes, "router": routers}
    grown = tuple(
        process for kind in _ORDER for process in _grown(before.of_kind(kind), kind, sizes[kind])
    )
    same_nodes = nodes == len(before.of_kind("node"))
    threads = wanted.search_threads or (before.search_threads if same_nodes else 0)
    return ClusterRecord(
        replicas=replicas,
        search_threads=threads or max(1, cores // nodes),
        store=wanted.store or before.store,
        processes=grown,
    )


def _grown(present: tuple[ProcessRecord, ...], kind: Kind, size: int) -> tuple[ProcessRecord, ...]:
    if size < len(present):
        raise _refused(
            f"a local cluster cannot shrink {kind}s={size} before={len(present)}", f"{kind}s"
        )
    if kind == "etcd" and present and size > len(present):
        raise _refused(f"etcd cannot grow etcd={size} before={len(present)}", "etcd")
    numbers = range(len(present) + 1, size + 1)
    return present + tuple(
        ProcessRecord(name=f"{_PREFIX[kind]}{number}", kind=kind, address="") for number in numbers
    )


def _refused(message: str, field: str) -> InvalidError:
    return InvalidError(message, reason="CLUSTER_SHAPE", field=field)


def with_command(process: ProcessRecord, cluster: ClusterRecord, directory: Path) -> ProcessRecord:
    """Return a process with the command line that starts it; all addresses must be known."""
    return replace(process, argv=_argv(process, cluster, directory))


def _argv(process: ProcessRecord, cluster: ClusterRecord, directory: Path) -> tuple[str, ...]:
    match process.kind:
        case "etcd":
            members = [_member(one) for one in cluster.of_kind("etcd")]
            return member_argv(_member(process), members, etcd_folder(directory))
        case "node":
            return (*_module("indexd"), *_node_flags(process, cluster, directory))
        case "router":
            return (*_module("router"), *_router_flags(process, cluster, directory))


def etcd_folder(directory: Path) -> Path:
    """Return where the etcd members of a cluster keep their data."""
    return directory / "etcd"


def log_of(process: ProcessRecord, directory: Path) -> Path:
    """Return where a process writes what it has to say."""
    return directory / "log" / f"{process.name}.log"


def _member(process: ProcessRecord) -> EtcdMember:
    return EtcdMember(process.name, process.address, process.peer_address)


def _module(name: str) -> tuple[str, ...]:
    # -P: a file of that name in the folder where fgctl runs is never taken for it.
    return (sys.executable, "-P", "-m", name)


def _etcd_endpoints(cluster: ClusterRecord) -> str:
    return ",".join(member.address for member in cluster.of_kind("etcd"))


def _node_flags(
    process: ProcessRecord, cluster: ClusterRecord, directory: Path
) -> tuple[str, ...]:
    return (
        f"--node-id={process.name}",
        f"--listen={process.address}",
        f"--etcd={process.etcd or _etcd_endpoints(cluster)}",
        f"--store={cluster.store_in(directory)}",
        f"--search-threads={cluster.search_threads}",
        f"--state-dir={directory / process.name}",
        *([f"--advertise={process.advertise}"] if process.advertise else []),
    )


def _router_flags(
    process: ProcessRecord, cluster: ClusterRecord, directory: Path
) -> tuple[str, ...]:
    # --dev: reflection, so that any gRPC tool can speak to a cluster that is here to be tried.
    return (
        f"--listen={process.address}",
        f"--etcd={process.etcd or _etcd_endpoints(cluster)}",
        f"--state-dir={directory / process.name}",
        "--dev",
    )
