"""What fgctl knows about a cluster that it started: DIR/cluster.json.

The file says which processes belong to the cluster, on which addresses, and how to tell that a
process with the recorded pid is still the one that was started: pids are reused, so the time of
creation and the command line are kept as well.
"""

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, Self

from facegrid.errors import CorruptError, NotFoundError

FILE_NAME = "cluster.json"
VERSION = 1

Kind = Literal["etcd", "node", "router"]


@dataclass(frozen=True, slots=True)
class ProcessRecord:
    """One process of a local cluster.

    Attributes:
        name: unique in the cluster, for instance "n1"; a node's id.
        kind: what it is.
        address: host:port where it serves; kept over restarts while the port is free.
        peer_address: host:port for other members; etcd only.
        advertise: host:port that the others are told, where something stands in between; nodes
            only; empty: as address.
        etcd: host:port,... of the etcd members as this process reaches them, where something
            stands in between; empty: their own addresses.
        pid: 0 when it was stopped on purpose or never started.
        created_s: when the process was created, Unix seconds, as the operating system says.
        argv: its whole command line.
    """

    name: str
    kind: Kind
    address: str
    peer_address: str = ""
    pid: int = 0
    created_s: float = 0.0
    argv: tuple[str, ...] = ()
    advertise: str = ""
    etcd: str = ""


@dataclass(frozen=True, slots=True)
class ClusterRecord:
    """A whole local cluster.

    Attributes:
        replicas: what `fgctl gallery create --dir` takes when nothing else is said.
        search_threads: per node.
        store: URL of the object store; empty for a folder beside this file.
        processes: etcd members, nodes and routers, in the order in which they start.
    """

    replicas: int
    search_threads: int
    store: str = ""
    processes: tuple[ProcessRecord, ...] = ()

    def of_kind(self, kind: Kind) -> tuple[ProcessRecord, ...]:
        """Return the processes of one kind."""
        return tuple(process for process in self.processes if process.kind == kind)

    def named(self, name: str) -> ProcessRecord:
        """Return one process.

        Raises:
            NotFoundError: the cluster has none of this name (PROCESS_UNKNOWN).
        """
        for process in self.processes:
            if process.name == name:
                return process
        known = " ".join(process.name for process in self.processes)
        raise NotFoundError(
            f"the cluster has no such process id={name} known={known}", reason="PROCESS_UNKNOWN"
        )

    def with_process(self, changed: ProcessRecord) -> Self:
        """Return the cluster with the process of the same name replaced."""
        return replace(
            self,
            processes=tuple(
                changed if process.name == changed.name else process for process in self.processes
            ),
        )

    def store_in(self, directory: Path) -> str:
        """Return the URL of the store that the nodes share, of a cluster in this folder."""
        return self.store or f"dir:{directory / 'store'}"

    @property
    def router_targets(self) -> tuple[str, ...]:
        """Where clients connect."""
        return tuple(router.address for router in self.of_kind("router"))


def path_in(directory: Path) -> Path:
    """Return where the file lies in a cluster's folder."""
    return directory / FILE_NAME


def load(directory: Path) -> ClusterRecord:
    """Read the cluster of a folder.

    Raises:
        NotFoundError: no cluster was started there (CLUSTER_UNKNOWN).
        CorruptError: the file is not what `save` wrote (CLUSTER_FILE).
    """
    path = path_in(directory)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NotFoundError(
            f"no local cluster here, start one with fgctl local up dir={directory}",
            reason="CLUSTER_UNKNOWN",
        ) from None
    try:
        document = json.loads(text)
        if document["version"] != VERSION:
            raise CorruptError(
                f"written by another version of fgctl path={path} version={document['version']}",
                reason="CLUSTER_FILE",
            )
        processes = tuple(
            ProcessRecord(**{**fields, "argv": tuple(fields["argv"])})
            for fields in document["processes"]
        )
        return ClusterRecord(
            replicas=int(document["replicas"]),
            search_threads=int(document["search_threads"]),
            store=str(document.get("store", "")),
            processes=processes,
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptError(
            f"cannot be read as a cluster file path={path} problem={error}", reason="CLUSTER_FILE"
        ) from None


def save(directory: Path, cluster: ClusterRecord) -> None:
    """Write the cluster of a folder so that a reader sees the old or the new file, never half."""
    path = path_in(directory)
    text = json.dumps({"version": VERSION, **asdict(cluster)}, indent=2)
    partial = path.with_suffix(".json.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
