"""What rebalancing cannot put right, in words."""

from collections import Counter
from collections.abc import Iterator
from typing import Final

from facegrid.ids import GalleryName, NodeId
from router.plan.layout import Layout, Placed

BALANCED_SHARE: Final = 0.1
"""Nodes are balanced when the fullest and the emptiest differ by this share of the mean."""


def size_text(count: float) -> str:
    """Return a number of bytes for people.

    >>> size_text(3 * 1024**2)
    '3.0 MiB'
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def _many(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def problems(layout: Layout) -> tuple[str, ...]:
    """Return what is not as it should be and stays so."""
    return (
        *_away(layout),
        *_too_few(layout),
        *_not_left(layout),
        *_zones(layout),
        *_uneven(layout),
    )


def _away(layout: Layout) -> Iterator[str]:
    for host in layout.hosts.values():
        count = sum(host.node_id in placed.node_ids for placed in layout.placed)
        if count and not host.registered and not host.left:
            yield (
                f"{host.node_id} is not registered and may come back: it keeps"
                f" {_many(count, 'shard')}, unless you drain it or say that it is lost"
            )


def _why_nowhere(layout: Layout, placed: Placed) -> str:
    free = [host for host in layout.usable if host.node_id not in placed.node_ids]
    if not free:
        return f"fewer nodes than copies, {_many(len(layout.usable), 'node')} can take any"
    return f"no room for {size_text(placed.bytes)} on {', '.join(one.node_id for one in free)}"


def _too_few(layout: Layout) -> Iterator[str]:
    found: Counter[tuple[GalleryName, int, int, str]] = Counter()
    for placed in layout.movable:
        count = len(placed.node_ids)
        if count < placed.wanted_count:
            why = _why_nowhere(layout, placed)
            found[placed.gallery, count, placed.wanted_count, why] += 1
    for (gallery, count, wanted, why), shards in sorted(found.items()):
        yield f"{count} of {wanted} copies: {_many(shards, 'shard')} of gallery {gallery}; {why}"


def _not_left(layout: Layout) -> Iterator[str]:
    found: Counter[tuple[NodeId, str]] = Counter()
    for placed in layout.movable:
        for node_id in placed.node_ids:
            if layout.hosts[node_id].left:
                found[node_id, _why_nowhere(layout, placed)] += 1
    for (node_id, why), count in sorted(found.items()):
        yield f"nowhere to go: {_many(count, 'shard')} of {node_id}; {why}"


def _zones(layout: Layout) -> Iterator[str]:
    zones_count = layout.zones_count([host.node_id for host in layout.usable])
    found = Counter(
        placed.gallery
        for placed in layout.movable
        if layout.zones_count(placed.node_ids) < min(zones_count, len(placed.node_ids))
    )
    for gallery, count in sorted(found.items()):
        yield (
            f"copies share a zone: {_many(count, 'shard')} of gallery {gallery}; no node of"
            " another zone has room"
        )


def _uneven(layout: Layout) -> Iterator[str]:
    held = {host.node_id: layout.weight(host.node_id) for host in layout.usable}
    if not held:
        return
    full = max(held, key=lambda node_id: (held[node_id], node_id))
    spare = min(held, key=lambda node_id: (held[node_id], node_id))
    mean = layout.mean
    if held[full] - held[spare] <= mean * BALANCED_SHARE:
        return
    told = f"{full} holds {size_text(held[full])}, {spare} {size_text(held[spare])}"
    largest = max(
        (placed for placed in layout.movable if full in placed.node_ids),
        key=lambda placed: (placed.weight, placed.shard_id),
        default=None,
    )
    if largest is None:
        yield f"{told}: operations have all shards of {full}"
    elif largest.weight > mean * BALANCED_SHARE:
        yield (
            f"{told}: shard {largest.shard_id} alone is {largest.weight / mean:.0%} of what a node"
            " holds on average; split it to come closer"
        )
    else:
        yield f"{told}: zones, room and copies that they have already allow nothing closer"
