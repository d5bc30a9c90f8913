"""fgctl cluster: what the routers know of the whole."""

import click

from facegrid.api.admin.v1 import admin_service_pb2
from facegrid.api.shard.v1 import shard_service_pb2
from facegrid.errors import UnavailableError
from fgctl import admin, render
from fgctl.target import TIMEOUT_S, Target, online

Status = admin_service_pb2.ClusterStatusResponse
ShardStatus = shard_service_pb2.ShardStatus
MIB = 1024 * 1024


@click.group()
def cluster() -> None:
    """Look at the cluster as a whole."""


@cluster.command()
@online
def status(target: Target) -> None:
    """Describe nodes, galleries and shards."""
    answer = _first_answer(target)
    if target.as_json:
        render.show_json(status_json(answer))
        return
    render.show_table("nodes", _NODE_COLUMNS, [_node_row(node) for node in answer.nodes])
    render.show_table("shards", _SHARD_COLUMNS, _shard_rows(answer))
    reachable = "reachable" if answer.etcd_reachable else "NOT reachable: reads only"
    render.show_line(f"etcd {reachable}, map read {answer.map_age_ms / 1000:.1f} s ago")


def _first_answer(target: Target) -> Status:
    problems = []
    for router in target.routers:
        try:
            return admin.cluster_status(router, timeout_s=target.timeout_or(TIMEOUT_S))
        except UnavailableError as error:
            problems.append(f"{router}: {error.message}")
    raise UnavailableError(f"no router answers problems={'; '.join(problems)}")


_NODE_COLUMNS = ("node", "address", "registered", "shards", "templates", "MiB", "problem")
_SHARD_COLUMNS = (
    "gallery", "shard", "node", "role", "state", "gen", "position", "templates", "indexed",
    "problem",
)  # fmt: skip


def _node_row(node: Status.Node) -> tuple[object, ...]:
    return (
        node.id,
        node.address,
        node.registered,
        len(node.shards),
        sum(shard.templates_count for shard in node.shards),
        node.memory_bytes // MIB,
        node.problem,
    )


def _shard_rows(answer: Status) -> list[tuple[object, ...]]:
    reports = {(node.id, shard.shard_id): shard for node in answer.nodes for shard in node.shards}
    return [
        (shard.gallery, shard.id, node_id, *_report_row(reports.get((node_id, shard.id))))
        for shard in answer.shards
        for node_id in shard.node_ids
    ]


def _report_row(report: ShardStatus | None) -> tuple[object, ...]:
    if report is None:
        return ("", "no report", 0, 0, 0, 0, "")
    return (
        role_name(report),
        state_name(report),
        report.generation,
        report.position,
        report.templates_count,
        report.indexed_count,
        report.problem,
    )


def state_name(report: ShardStatus) -> str:
    """Return a shard's state as a word, for instance "serving"."""
    name: str = shard_service_pb2.ShardState.Name(report.state)
    return name.removeprefix("SHARD_STATE_").lower()


def role_name(report: ShardStatus) -> str:
    """Return a shard's role as a word."""
    name: str = shard_service_pb2.ShardRole.Name(report.role)
    return name.removeprefix("SHARD_ROLE_").lower()


def status_json(answer: Status) -> render.Json:
    """Return the whole answer as JSON. Keys of the key space are hexadecimal text, since JSON
    numbers do not hold 64 bits.
    """
    return {
        "etcd_reachable": answer.etcd_reachable,
        "map_age_ms": answer.map_age_ms,
        "nodes": [
            {
                "id": node.id,
                "address": node.address,
                "registered": node.registered,
                "problem": node.problem,
                "memory_bytes": node.memory_bytes,
                "version": node.version,
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
            }
            for shard in answer.shards
        ],
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
        "problem": report.problem,
    }
