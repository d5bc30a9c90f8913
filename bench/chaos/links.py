"""Puts a proxy of our own into every link of a cluster that is about to be started."""

from dataclasses import replace

from bench.chaos.proxy import Proxies
from fgctl.cluster_file import ClusterRecord, ProcessRecord
from fgctl.local.etcd import HOST, free_ports


def link(process: str, member: str) -> str:
    """Return the name of the link from a node or router to a member of etcd."""
    return f"{process}>{member}"


def linked(cluster: ClusterRecord, proxies: Proxies) -> ClusterRecord:
    """Return a cluster with an address for every process, and links that proxies carry.

    A node is reached through the link of its name: the address that it tells the others is the
    proxy's. Nodes and routers reach each member of etcd through links of their own, see `link`.
    """
    ports = (f"{HOST}:{port}" for port in free_ports())
    for member in cluster.of_kind("etcd"):
        cluster = cluster.with_process(
            replace(member, address=next(ports), peer_address=next(ports))
        )
    members = cluster.of_kind("etcd")
    for node in cluster.of_kind("node"):
        address = next(ports)
        through = proxies.open(node.name, address)
        cluster = cluster.with_process(
            replace(
                node, address=address, advertise=through, etcd=_through(node, members, proxies)
            )
        )
    for router in cluster.of_kind("router"):
        cluster = cluster.with_process(
            replace(router, address=next(ports), etcd=_through(router, members, proxies))
        )
    return cluster


def _through(process: ProcessRecord, members: tuple[ProcessRecord, ...], proxies: Proxies) -> str:
    """Open the links of a process to etcd; return their addresses as a setting."""
    return ",".join(
        proxies.open(link(process.name, member.name), member.address) for member in members
    )
