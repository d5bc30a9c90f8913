"""fgctl cluster: what the routers know of the whole."""

import click

from facegrid.api.admin.v1 import admin_service_pb2 as pb
from facegrid.api.shard.v1 import shard_service_pb2
from facegrid.errors import FacegridError, NotFoundError
from fgctl import admin, render
from fgctl.online.overview import (
    ShardStatus,
    Status,
    copies_of,
    nodes_table,
    notes,
    role_name,
    shards_of,
    shards_table,
    state_name,
)
from fgctl.target import TIMEOUT_S, Target, online


@click.group()
def cluster() -> None:
    """Look at the cluster as a whole."""


@cluster.command()
@online
def status(target: Target) -> None:
    """Describe nodes, galleries and shards, and what is worth a look."""
    answer = first_answer(target)
    if target.as_json:
        render.show_json(status_json(answer))
        return
    render.show(nodes_table(answer))
    render.show(shards_table(shards_of(copies_of(answer))))
    for note in (*notes(answer), *_at_work(target)):
        render.show_line(f"! {note}")
    render.show_line(view_line(answer))


def _at_work(target: Target) -> list[str]:
    """Say how many operations are at work, if a router can tell."""
    try:
        answer = target.ask(lambda stub: stub.ListOperations, pb.ListOperationsRequest())
    except FacegridError:
        # A router of before operations, or one that etcd is away from, which is said anyway.
        return []
    if not answer.operations:
        return []
    names = " ".join(one.id for one in answer.operations)
    driver = "" if answer.driver else "; no router drives them at present"
    return [f"operations at work: {names}; fgctl ops list shows them{driver}"]


@cluster.command("takeover")
@click.argument("node")
@click.option("--yes", is_flag=True, help="Do it; without, only say what would be done.")
@online
def take_over(target: Target, node: str, *, yes: bool) -> None:
    """Give the shards of a node that died to others, now.

    Nodes do so by themselves, unless many vanished at once or etcd was in trouble. NODE may still
    live: it cannot write any more, and what it answers is not confirmed.
    """
    concerned = shards_of_primary(first_answer(target), node)
    if not concerned:
        if target.as_json:
            render.show_json({"node": node, "shards": []})
        else:
            render.show_line(f"{node} is the primary of no shard: there is nothing to take over")
        return
    if not yes:
        rows = [(shard.gallery, shard.id, ",".join(shard.node_ids[1:])) for shard in concerned]
        if target.as_json:
            render.show_json({"node": node, "shards": [shard.id for shard in concerned]})
        else:
            render.show_table(f"shards of {node}", ("gallery", "shard", "followers"), rows)
            render.show_line("nothing was changed: say --yes to give these shards to others")
        return
    answer = admin.take_over(target.routers[0], node, timeout_s=target.timeout_or(TIMEOUT_S))
    if target.as_json:
        taken = [{"id": one.id, "primary": one.primary} for one in answer.shards]
        render.show_json({"node": node, "shards": list(taken)})
        return
    rows = [(one.gallery, one.id, one.primary) for one in answer.shards]
    render.show_table("taken over", ("gallery", "shard", "primary"), rows)


def shards_of_primary(answer: Status, node_id: str) -> list[Status.Shard]:
    """Return the shards that a node is the primary of.

    Raises:
        NotFoundError: the node is not registered, and no map names it (NODE_UNKNOWN).
    """
    registered = {node.id for node in answer.nodes}
    if node_id not in registered.union(*(shard.node_ids for shard in answer.shards)):
        raise NotFoundError(
            f"no such node is registered, nor does a map name it node={node_id}",
            reason="NODE_UNKNOWN",
            node=node_id,
        )
    return [shard for shard in answer.shards if shard.node_ids[0] == node_id]


def view_line(answer: Status) -> str:
    """Return how far the router's view can be trusted, in words."""
    reachable = "reachable" if answer.etcd_reachable else "NOT reachable: reads only"
    read = "not read since the start"
    if answer.map_age_ms >= 0:
        read = f"read {answer.map_age_ms / 1000:.1f} s ago"
    confirmed = "confirmed" if answer.view_confirmed else "NOT confirmed: no primary vouched for"
    return f"etcd {reachable}, map {read}, {confirmed}"


def first_answer(target: Target) -> Status:
    """Return what the first router that answers says of the cluster."""
    return target.ask(lambda stub: stub.ClusterStatus, pb.ClusterStatusRequest())


def status_json(answer: Status) -> render.Json:
    """Return the whole answer as JSON. Keys of the key space are hexadecimal text, since JSON
    numbers do not hold 64 bits.
    """
    return {
        "etcd_reachable": answer.etcd_reachable,
        "map_age_ms": answer.map_age_ms,
        "view_confirmed": answer.view_confirmed,
        "nodes": [
            {
                "id": node.id,
                "address": node.address,
                "registered": node.registered,
                "problem": node.problem,
                "memory_bytes": node.memory_bytes,
                "memory_total_bytes": node.memory_total_bytes,
                "memory_available_bytes": node.memory_available_bytes,
                "version": node.version,
                "zone": node.zone,
                "draining": node.draining,
                "devices": [_device_json(one) for one in node.devices],
                "shards": [_report_json(shard) for shard in node.shards],
            }
            for node in answer.nodes
        ],
        "galleries": [one.name for one in answer.galleries],
        "shards": [
            {
                "id": shard.id,
                "gallery": shard.gallery,
                "first": f"{shard.first:016x}",
                "last": f"{shard.last:016x}",
                "node_ids": list(shard.node_ids),
                "joining_node_ids": list(shard.joining_node_ids),
                "source_shard_ids": list(shard.source_shard_ids),
            }
            for shard in answer.shards
        ],
        "notes": notes(answer),
    }


def _device_json(one: shard_service_pb2.DeviceStatus) -> render.Json:
    return {
        "name": one.name,
        "memory_total_bytes": one.memory_total_bytes,
        "memory_taken_bytes": one.memory_taken_bytes,
        "shards_count": one.shards_count,
        "searches_count": one.searches_count,
        "failures_count": one.failures_count,
        "shards_left_count": one.shards_left_count,
        "lost": one.lost,
    }


def _report_json(report: ShardStatus) -> render.Json:
    return {
        "shard_id": report.shard_id,
        "gallery": report.gallery,
        "state": state_name(report),
        "role": role_name(report),
        "generation": report.generation,
        "position": report.position,
        "templates_count": report.templates_count,
        "subjects_count": report.subjects_count,
        "erased_count": report.erased_count,
        "indexed_count": report.indexed_count,
        "codebook": report.codebook,
        "memory_bytes": report.memory_bytes,
        "digest": report.digest,
        "segments_count": report.segments_count,
        "confirmed": report.confirmed,
        "map_version": report.map_version,
        "stored_bytes": report.stored_bytes,
        "problem": report.problem,
    }
