"""Rebalancing: the fewest moves after which copies lie where they should.

In this order of weight: draining and lost nodes are left, galleries have as many copies as they
shall have, copies of a shard lie in different zones, nodes hold about equally many bytes, and are
primaries of about equally many shards. No step gives up what an earlier one won, each makes its
own measure smaller, and where no step does so any more nothing is proposed. So a proposal is never
worse than what is there, and its outcome is left alone.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Final

from facegrid.ids import NodeId, ShardId
from router.plan.hosts import Holding, Host, HostChange, Move, Proposal, Spread
from router.plan.layout import Layout, Placed
from router.plan.unsolved import BALANCED_SHARE, problems, size_text

__all__ = ["Holding", "Host", "HostChange", "Move", "Proposal", "Spread", "propose"]

WORTH_SHARE: Final = 0.02
"""A move must bring two nodes closer together by this share of what a node holds on average."""
ROLES: Final = "roles"
ROLES_URGENCY: Final = 5
"""Stands for the cause of changes of roles, which is told once all of them are known."""
NEIGHBOURS: Final = 3
"""Shards of about the right size that are looked at as partners of one in an exchange."""


def propose(
    hosts: Sequence[Host],
    spreads: Sequence[Spread],
    *,
    bytes_of: Mapping[ShardId, int],
    busy: Collection[ShardId] = (),
) -> Proposal:
    """Return the fewest moves found after which copies lie where they should.

    Deterministic, whatever the order of the arguments.

    Args:
        hosts: all nodes that are registered, marked, or named by a map; one that only a map names
            counts as not registered.
        spreads: all galleries.
        bytes_of: of each shard, what one copy takes on a node; 0 where it is not told.
        busy: shards that an operation has; those with joining copies, and those that pending ones
            are filled from, are busy anyway. They are counted and stay as they are.
    """
    layout = Layout(hosts, spreads, bytes_of=bytes_of, busy=busy)
    seen = -1
    while seen != layout.steps_count:
        seen = layout.steps_count
        for placed in layout.movable:
            _drop_surplus(layout, placed)
            _leave(layout, placed)
            _fill(layout, placed)
        for placed in layout.movable:
            _part_zones(layout, placed)
        while _level(layout):
            pass
        for placed in layout.movable:
            _hand_on(layout, placed)
        while _share_primaries(layout):
            pass
    before, after = layout.holdings(former=True), layout.holdings(former=False)
    return Proposal(
        moves=_moves(layout),
        hosts=tuple(
            HostChange(host, before[host.node_id], after[host.node_id])
            for host in layout.hosts.values()
        ),
        problems=problems(layout),
    )


def _moves(layout: Layout) -> tuple[Move, ...]:
    moves = []
    for placed in layout.placed:
        causes = _causes(layout, placed)
        if causes:
            moves.append((min(causes.values()), placed.shard_id, _move(placed, causes)))
    return tuple(move for _, _, move in sorted(moves, key=lambda ranked: ranked[:2]))


def _move(placed: Placed, causes: Mapping[str, int]) -> Move:
    return Move(
        gallery=placed.gallery,
        shard_id=placed.shard_id,
        node_ids=tuple(placed.node_ids),
        former_node_ids=placed.former,
        moved_bytes=placed.bytes * len({*placed.node_ids} - {*placed.former}),
        cause="; ".join(causes),
    )


def _causes(layout: Layout, placed: Placed) -> dict[str, int]:
    """Return why a shard is to be changed; nothing where only followers would change places."""
    before, after = placed.former[0], placed.node_ids[0]
    if {*placed.former} == {*placed.node_ids} and before == after:
        return {}
    causes = {cause: urgency for cause, urgency in placed.causes.items() if cause != ROLES}
    if not causes or (before != after and before in placed.node_ids and ROLES in placed.causes):
        counts = layout.first_primaries
        told = f"{before} is the primary of {counts[before]} shards, {after} of {counts[after]}"
        causes[told] = ROLES_URGENCY
    return causes


def _drop_surplus(layout: Layout, placed: Placed) -> None:
    """Take copies away while there are too many: of nodes to be left first, the primary last."""
    while len(placed.node_ids) > placed.wanted_count:
        count = len(placed.node_ids)

        def rank(node_id: NodeId) -> tuple[object, ...]:
            host = layout.hosts[node_id]
            others = [one for one in placed.node_ids if one != node_id]
            return (
                not host.left,
                host.registered,
                node_id == placed.node_ids[0],
                -layout.zones_count(others),
                -layout.weight(node_id),
                node_id,
            )

        layout.drop(placed, min(placed.node_ids, key=rank))
        placed.causes.setdefault(f"it has {count} copies and shall have {placed.wanted_count}", 2)


def _leave(layout: Layout, placed: Placed) -> None:
    """Replace copies on nodes that are to be left."""
    for gone in [one for one in placed.node_ids if layout.hosts[one].left]:
        new = layout.target(placed, gone=gone)
        if new is not None:
            layout.exchange(placed, gone, new)
            _blame_leaving(layout.hosts[gone], placed)


def _blame_leaving(host: Host, placed: Placed) -> None:
    if host.lost:
        placed.causes.setdefault(f"{host.node_id} is lost", 0)
    else:
        placed.causes.setdefault(f"{host.node_id} is draining", 1)


def _fill(layout: Layout, placed: Placed) -> None:
    """Add copies while there are too few."""
    while len(placed.node_ids) < placed.wanted_count:
        count = len(placed.node_ids)
        new = layout.target(placed)
        if new is None:
            return
        layout.add(placed, new)
        placed.causes.setdefault(f"it has {count} of {placed.wanted_count} copies", 0)


def _part_zones(layout: Layout, placed: Placed) -> None:
    """Move copies that share a zone into zones without one."""
    while (step := _parting(layout, placed)) is not None:
        gone, new = step
        layout.exchange(placed, gone, new)
        zone = layout.hosts[gone].zone or "without a name"
        placed.causes.setdefault(f"more than one of its copies is in zone {zone}", 3)


def _parting(layout: Layout, placed: Placed) -> tuple[NodeId, NodeId] | None:
    zones = [layout.hosts[node_id].zone for node_id in placed.node_ids]
    twice = [
        node_id
        for node_id, zone in zip(placed.node_ids, zones, strict=True)
        if zones.count(zone) > 1 and layout.hosts[node_id].usable
    ]
    # Followers first, since nobody waits for them; then those on the fullest nodes.
    twice.sort(key=lambda one: (one == placed.node_ids[0], -layout.weight(one), one))
    for gone in twice:
        new = layout.target(placed, gone=gone)
        if new is not None and layout.hosts[new].zone not in zones:
            return gone, new
    return None


def _level(layout: Layout) -> bool:
    """Bring two nodes closer together by bytes, with one move or an exchange of two shards."""
    usable = layout.usable
    if not usable:
        return False
    full = sorted(
        usable, key=lambda host: (-layout.weight(host.node_id), -host.load, host.node_id)
    )
    spare = sorted(usable, key=lambda host: (layout.weight(host.node_id), host.load, host.node_id))
    extremes = layout.weight(full[0].node_id) - layout.weight(spare[0].node_id)
    if extremes <= layout.mean * BALANCED_SHARE:
        return False
    pairs = [
        (giver.node_id, taker.node_id)
        for giver in full
        for taker in spare
        if layout.weight(giver.node_id) > layout.weight(taker.node_id)
    ]
    return any(_give(layout, *pair) for pair in pairs) or any(
        _swap(layout, *pair) for pair in pairs
    )


def _wanted(layout: Layout, giver: NodeId, taker: NodeId) -> float:
    """Return the weight that would best go from one node to the other: neither passes the mean,
    where they lie on both sides of it.
    """
    above, below = layout.weight(giver) - layout.mean, layout.mean - layout.weight(taker)
    if above > 0 and below > 0:
        return min(above, below)
    return (above + below) / 2


def _most(layout: Layout, giver: NodeId, taker: NodeId) -> float:
    """Return the weight up to which a transfer is worth it."""
    return layout.weight(giver) - layout.weight(taker) - layout.mean * WORTH_SHARE


def _between(layout: Layout, giver: NodeId, taker: NodeId) -> list[Placed]:
    """Return the shards that may go from one node to another, the zones considered."""
    return [
        placed
        for placed in layout.movable
        if giver in placed.node_ids
        and taker not in placed.node_ids
        and layout.has_room(placed, taker)
        and layout.zones_count([taker, *(one for one in placed.node_ids if one != giver)])
        >= layout.zones_count(placed.node_ids)
    ]


def _give(layout: Layout, giver: NodeId, taker: NodeId) -> bool:
    wanted, most = _wanted(layout, giver, taker), _most(layout, giver, taker)
    best = min(
        (placed for placed in _between(layout, giver, taker) if placed.weight <= most),
        key=lambda placed: (
            abs(placed.weight - wanted),
            placed.node_ids[0] == giver,
            placed.shard_id,
        ),
        default=None,
    )
    if best is None:
        return False
    _blame_bytes(layout, best, giver, taker)
    layout.exchange(best, giver, taker)
    return True


def _swap(layout: Layout, giver: NodeId, taker: NodeId) -> bool:
    wanted, most = _wanted(layout, giver, taker), _most(layout, giver, taker)
    backs = sorted(
        _between(layout, taker, giver), key=lambda placed: (placed.weight, placed.shard_id)
    )
    weights = [placed.weight for placed in backs]
    best: tuple[float, ShardId, ShardId] | None = None
    chosen: tuple[Placed, Placed] | None = None
    for there in _between(layout, giver, taker):
        middle = bisect_left(weights, there.weight - wanted)
        for back in backs[max(middle - NEIGHBOURS, 0) : middle + NEIGHBOURS]:
            difference = there.weight - back.weight
            rank = (abs(difference - wanted), there.shard_id, back.shard_id)
            if 0 < difference <= most and (best is None or rank < best):
                best, chosen = rank, (there, back)
    if chosen is None:
        return False
    there, back = chosen
    _blame_bytes(layout, there, giver, taker)
    back.causes.setdefault(f"in exchange for {there.shard_id}", 4)
    layout.exchange(there, giver, taker)
    layout.exchange(back, taker, giver)
    return True


def _blame_bytes(layout: Layout, placed: Placed, giver: NodeId, taker: NodeId) -> None:
    # As it is before anything moves, since that is what the operator sees; where that does not
    # explain it, as it would be without this move.
    held, less = layout.first_weights[giver], layout.first_weights[taker]
    verb = "holds"
    if held <= less:
        held, less, verb = layout.weight(giver), layout.weight(taker), "would hold"
    placed.causes.setdefault(f"{giver} {verb} {size_text(held)}, {taker} {size_text(less)}", 4)


def _hand_on(layout: Layout, placed: Placed) -> None:
    """Make another copy the primary where the node is to be left and cannot be."""
    host = layout.hosts[placed.node_ids[0]]
    heirs = [one for one in placed.node_ids if layout.hosts[one].usable]
    if host.left and heirs:
        layout.promote(placed, min(heirs, key=lambda one: (layout.primaries_count(one), one)))
        _blame_leaving(host, placed)


def _share_primaries(layout: Layout) -> bool:
    """Give roles on from a node with many to one with few, over others between them if need be."""
    counts = {host.node_id: layout.primaries_count(host.node_id) for host in layout.usable}
    spread = max(counts.values(), default=0) - min(counts.values(), default=0)
    if spread <= max(1.0, BALANCED_SHARE * sum(counts.values()) / max(len(counts), 1)):
        return False
    heirs = _heirs(layout, counts)
    for giver in sorted(counts, key=lambda node_id: (-counts[node_id], node_id)):
        path = _path(heirs, counts, giver)
        if path:
            for placed, heir in path:
                placed.causes.setdefault(ROLES, ROLES_URGENCY)
                layout.promote(placed, heir)
            return True
    return False


def _heirs(layout: Layout, counts: Mapping[NodeId, int]) -> dict[NodeId, dict[NodeId, Placed]]:
    """Return of each node which others could take a shard over from it, and which shard."""
    heirs: dict[NodeId, dict[NodeId, Placed]] = {node_id: {} for node_id in counts}
    for placed in sorted(layout.movable, key=lambda placed: placed.shard_id):
        primary = placed.node_ids[0]
        if primary in counts:
            for node_id in placed.node_ids[1:]:
                if node_id in counts:
                    heirs[primary].setdefault(node_id, placed)
    return heirs


def _path(
    heirs: Mapping[NodeId, Mapping[NodeId, Placed]], counts: Mapping[NodeId, int], giver: NodeId
) -> list[tuple[Placed, NodeId]]:
    """Return the shortest way to a node with at least two primaries less; empty: there is none."""
    came: dict[NodeId, NodeId] = {giver: giver}
    waiting = deque([giver])
    while waiting:
        reached = waiting.popleft()
        if counts[reached] <= counts[giver] - 2:
            return [*_way(heirs, came, reached)][::-1]
        for heir in sorted(heirs[reached], key=lambda node_id: (counts[node_id], node_id)):
            if heir not in came:
                came[heir] = reached
                waiting.append(heir)
    return []


def _way(
    heirs: Mapping[NodeId, Mapping[NodeId, Placed]], came: Mapping[NodeId, NodeId], end: NodeId
) -> Iterator[tuple[Placed, NodeId]]:
    while came[end] != end:
        yield heirs[came[end]][end], end
        end = came[end]
