"""What a router tells of the cluster, as tables of at most 80 columns and as sentences."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from rich.console import RenderableType

from facegrid.api.admin.v1 import admin_service_pb2 as pb
from facegrid.api.shard.v1 import shard_service_pb2
from facegrid.api.v1 import types_pb2
from fgctl import render

Status = pb.ClusterStatusResponse
ShardStatus = shard_service_pb2.ShardStatus
RECOVERY: Final = 'docs/OPERATIONS.md, "etcd was lost or restored from a backup"'
UNUSED: Final = f"nothing of it is served ({RECOVERY})"
NODE_COLUMNS: Final = ("node", "state", "zone", "memory", "free", "copies", "primaries")
DEVICE_COLUMNS: Final = (
    *("node", "device", "state", "taken", "of", "shards", "searches", "failures"),
)
SHARD_COLUMNS: Final = ("shard", "copies", "position", "templates", "idx")


@dataclass(frozen=True, slots=True)
class Copy:
    """A copy of a shard, as the map has it and as its node tells of it."""

    shard: Status.Shard
    node_id: str
    report: ShardStatus | None
    behind: int

    @property
    def odd(self) -> str:
        """What is not as it is with most copies; empty: nothing."""
        told = []
        if self.node_id in self.shard.joining_node_ids:
            told.append("joining")
        if self.report is None:
            told.append("no report")
        elif state_name(self.report) != "serving":
            told.append(state_name(self.report))
        elif self.is_first and role_name(self.report) != "primary":
            told.append("no primary yet")
        if self.behind:
            told.append(f"{self.behind:,} behind")
        return " ".join(told)

    @property
    def is_first(self) -> bool:
        """Whether the map makes it the primary."""
        return self.node_id in self.shard.node_ids[:1]

    @property
    def text(self) -> str:
        """The node, and what is odd, for instance "n3 joining"."""
        return f"{self.node_id} {self.odd}" if self.odd else self.node_id


def state_name(report: ShardStatus) -> str:
    """Return a shard's state as a word, for instance "serving"."""
    name: str = shard_service_pb2.ShardState.Name(report.state)
    return name.removeprefix("SHARD_STATE_").lower()


def role_name(report: ShardStatus) -> str:
    """Return a shard's role as a word."""
    name: str = shard_service_pb2.ShardRole.Name(report.role)
    return name.removeprefix("SHARD_ROLE_").lower()


def node_state(*, registered: bool, draining: bool, problem: str = "") -> str:
    """Return the state of a node as a word or two."""
    state = "ready" if registered else "gone"
    if registered and problem:
        state = "silent"
    if not draining:
        return state
    return "draining" if state == "ready" else f"{state}, draining"


def held_by(answer: Status, node_id: str) -> list[str]:
    """Return the shards of which a node has a copy, or is to have one."""
    return [
        shard.id
        for shard in answer.shards
        if node_id in shard.node_ids or node_id in shard.joining_node_ids
    ]


def primaries_of(answer: Status, node_id: str) -> int:
    """Return of how many shards a node is the primary by the map."""
    return sum(shard.node_ids[0] == node_id for shard in answer.shards if shard.node_ids)


def reports_of(one: Status.Shard, answer: Status) -> dict[str, ShardStatus]:
    """Return what each node that holds a shard says of it; those that say nothing are left out."""
    return {
        node.id: report
        for node in answer.nodes
        for report in node.shards
        if report.shard_id == one.id
    }


def copies_of(answer: Status) -> list[Copy]:
    """Return all copies that maps name, the primary of each shard first."""
    reports: dict[tuple[str, str], ShardStatus] = {
        (node.id, report.shard_id): report for node in answer.nodes for report in node.shards
    }
    copies = []
    for shard in answer.shards:
        primary = reports.get((shard.node_ids[0], shard.id)) if shard.node_ids else None
        for node_id in (*shard.node_ids, *shard.joining_node_ids):
            report = reports.get((node_id, shard.id))
            behind = 0
            if primary is not None and report is not None:
                behind = max(primary.position - report.position, 0)
            copies.append(Copy(shard, node_id, report, behind))
    return copies


def nodes_table(answer: Status, loads: Mapping[str, float] | None = None) -> RenderableType:
    """Return a table of nodes. Loads, where given, are processors kept busy, by node."""
    rows = [
        (
            one.id,
            node_state(registered=one.registered, draining=one.draining, problem=one.problem),
            one.zone,
            render.size_text(one.memory_bytes) if one.memory_bytes else "",
            render.size_text(one.memory_available_bytes) if one.memory_total_bytes else "",
            len(held_by(answer, one.id)),
            primaries_of(answer, one.id),
            *(() if loads is None else (f"{loads[one.id]:.1f}" if one.id in loads else "",)),
        )
        for one in answer.nodes
    ]
    columns = NODE_COLUMNS if loads is None else (*NODE_COLUMNS, "load")
    return render.table_of("nodes", columns, rows, narrow=True)


def devices_table(answer: Status) -> RenderableType | None:
    """Return a table of the GPUs of all nodes; None where no node has one."""
    rows = [
        (
            node.id,
            one.name,
            "lost" if one.lost else "searching",
            render.size_text(one.memory_taken_bytes),
            render.size_text(one.memory_total_bytes),
            one.shards_count,
            f"{one.searches_count:,}",
            f"{one.failures_count:,}",
        )
        for node in answer.nodes
        for one in node.devices
    ]
    return render.table_of("devices", DEVICE_COLUMNS, rows, narrow=True) if rows else None


def shards_of(copies: Sequence[Copy]) -> dict[str, list[Copy]]:
    """Return the copies of each shard, the primary first."""
    found: defaultdict[str, list[Copy]] = defaultdict(list)
    for copy in copies:
        found[copy.shard.id].append(copy)
    return found


def shards_table(shards: Mapping[str, Sequence[Copy]], *, caption: str = "") -> RenderableType:
    """Return a table of shards: their copies, the primary first, and what the primary tells."""
    rows: list[tuple[object, ...]] = []
    for shard_id, copies in shards.items():
        texts = ", ".join(copy.text for copy in copies)
        if copies[0].shard.source_shard_ids:
            texts = f"pending: {texts}"
        report = copies[0].report
        if report is None:
            rows.append((shard_id, texts, "", "", ""))
            continue
        share = report.indexed_count / report.templates_count if report.templates_count else 0
        indexed = f"{share:.0%}" if report.indexed_count else ""
        rows.append((shard_id, texts, report.position, report.templates_count, indexed))
    table = render.table_of("shards", SHARD_COLUMNS, rows, narrow=True)
    table.columns[0].no_wrap = True
    table.caption = caption or None
    table.caption_justify = "left"
    return table


def notes(answer: Status) -> list[str]:
    """Return what an operator has to know, a sentence each."""
    return [
        *_lost_records(answer),
        *(f"in etcd, {problem}: {UNUSED}" for problem in answer.problems),
        *_unmapped(answer),
        *_of_nodes(answer),
        *_of_shards(answer),
    ]


def _lost_records(answer: Status) -> Iterator[str]:
    """Tell of signs that etcd has lost what it knew."""
    if not answer.etcd_reachable:
        return
    if not answer.nodes and not answer.galleries:
        yield (
            "etcd knows no node and no gallery: the cluster is new, or the routers have another"
            f" etcd_prefix than the nodes, or etcd was wiped ({RECOVERY})"
        )
    elif not answer.galleries:
        yield f"etcd knows no gallery: if there was one, etcd lost its records ({RECOVERY})"
    known = {one.name for one in answer.galleries} | {one.gallery for one in answer.shards}
    held: defaultdict[str, list[str]] = defaultdict(list)
    for node in answer.nodes:
        for gallery in sorted({report.gallery for report in node.shards} - known):
            held[gallery].append(node.id)
    for gallery, node_ids in held.items():
        yield (
            f"{' '.join(node_ids)} still hold gallery {gallery}, which etcd does not know: it was"
            f" dropped a moment ago, or etcd lost its records ({RECOVERY})"
        )


def _unmapped(answer: Status) -> Iterator[str]:
    mapped = {shard.gallery for shard in answer.shards}
    for one in answer.galleries:
        if one.name not in mapped:
            yield f"gallery {one.name} has no map: {UNUSED}"


def _of_nodes(answer: Status) -> Iterator[str]:
    for one in answer.nodes:
        count = len(held_by(answer, one.id))
        if one.problem:
            yield f"{one.id}: {one.problem}"
        for device in one.devices:
            if device.lost:
                yield f"{one.id}: {device.name} failed, and the processor searches what it had"
        if one.draining and count:
            yield f"{one.id} is draining, with {count} copies; fgctl rebalance apply moves them"
        elif one.draining:
            yield f"{one.id} is empty: it can be stopped"


def _of_shards(answer: Status) -> Iterator[str]:
    wanted = {one.name: one.replicas_count for one in answer.galleries}
    lacking: defaultdict[str, int] = defaultdict(int)
    for shard in answer.shards:
        if shard.joining_node_ids:
            yield f"{shard.id}: {' '.join(shard.joining_node_ids)} joining"
        if shard.source_shard_ids:
            yield f"{shard.id}: being filled from {' '.join(shard.source_shard_ids)}"
        elif len(shard.node_ids) < wanted.get(shard.gallery, 0):
            lacking[shard.gallery] += 1
        digests = {
            report.digest
            for report in reports_of(shard, answer).values()
            if state_name(report) == "serving" and report.digest
        }
        positions = {report.position for report in reports_of(shard, answer).values()}
        if len(digests) > 1 and len(positions) == 1:
            yield f"{shard.id}: copies at the same position DIFFER; compare fgctl shard show"
    yield from _alarms(answer)
    for gallery, count in lacking.items():
        yield (
            f"gallery {gallery}: fewer than {wanted[gallery]} copies of"
            f" {render.many(count, 'shard')};"
            " fgctl rebalance apply adds them"
        )
    for copy in copies_of(answer):
        if copy.report is not None and copy.report.problem:
            yield f"{copy.shard.id} on {copy.node_id}: {copy.report.problem}"


def _alarms(answer: Status) -> Iterator[str]:
    """Tell of profiles that miss more than they may, each with the nodes that found out."""
    found: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for node in answer.nodes:
        raised = {(one.gallery, number) for one in node.shards for number in one.canary_alarms}
        for gallery, number in sorted(raised):
            name = types_pb2.Profile.Name(number).removeprefix("PROFILE_").lower()
            found[gallery, name].append(node.id)
    for (gallery, profile), node_ids in found.items():
        yield (
            f"gallery {gallery}: searches with profile {profile} miss more than they may, found"
            f' by {" ".join(node_ids)}; docs/OPERATIONS.md, "Canaries"'
        )
