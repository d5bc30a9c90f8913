"""How a node behaves, as its operator wants it."""

from dataclasses import dataclass
from pathlib import Path

from indexd.replica.dropping import DROP_RULES, DropRules
from indexd.replica.takeover import Rules


@dataclass(frozen=True, slots=True)
class NodePolicy:
    """How a node behaves.

    Attributes:
        erased_rewrite_s: how long the bytes of erased rows may lie in the store.
        takeover: how patient it is with primaries that have gone; None: it takes nothing over.
        dropping: how patient it is with others that are to delete dropped shards.
        state_dir: where it keeps what etcd told it last, to start from without; None: nowhere.
    """

    erased_rewrite_s: float
    takeover: Rules | None = None
    dropping: DropRules = DROP_RULES
    state_dir: Path | None = None
