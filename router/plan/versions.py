"""Which nodes are too old for maps that change their shape. Pure."""

from collections.abc import Iterable
from typing import Final

from facegrid.errors import PreconditionError
from facegrid.model import NodeInfo

RESHAPES_FROM: Final = (0, 1)
"""The first version whose nodes know of joining copies and pending shards. An older one refuses
such a map, and lets go of what it holds of the gallery."""


def check_versions(nodes: Iterable[NodeInfo]) -> None:
    """Refuse a change of shape while a node is registered that would refuse the map.

    Raises:
        PreconditionError: a node is too old (NODE_TOO_OLD).
    """
    for node in sorted(nodes, key=lambda node: node.node_id):
        version = _parsed(node.version)
        if version is not None and version < RESHAPES_FROM:
            raise PreconditionError(
                "a node runs a version that cannot read a changing map; finish the upgrade first"
                f" node={node.node_id} version={node.version}",
                reason="NODE_TOO_OLD",
                node=node.node_id,
            )


def _parsed(version: str) -> tuple[int, ...] | None:
    """Return major and minor number; None of what has none, as builds of developers."""
    parts = version.split(".")[:2]
    return tuple(map(int, parts)) if len(parts) == 2 and all(map(str.isdecimal, parts)) else None
