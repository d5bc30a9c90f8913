"""What to do instead, where a change of shape is refused."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from facegrid.errors import FacegridError

_ADVICE: Final = {
    "PLAN_STALE": "run the same command again and look at the new plan",
    "OPERATION_CONFLICT": (
        "wait for it (fgctl ops watch {operation}), or give it up (fgctl ops abort {operation})"
    ),
    "PAST_CUTOVER": (
        "let it end (fgctl ops watch {id}), then go back with another operation: fgctl shard move"
        " to the nodes of before, merge after a split, split after a merge"
    ),
    "OPERATION_ABORTING": "fgctl ops watch {id} shows when it is over",
    "OPERATION_OVER": "fgctl ops show {id} says how it ended",
    "OPERATION_UNKNOWN": "fgctl ops list --all shows those there are",
    "SHARD_UNKNOWN": (
        "fgctl shard list shows those there are; a shard that was split or merged is replaced by"
        " others"
    ),
    "NODE_UNKNOWN": "fgctl node list shows those there are",
    "GALLERY_UNKNOWN": "fgctl gallery list shows those there are",
    "NO_ROOM": "name another node, or move something away first",
    "TOO_FEW_NODES": "add a node first",
    "NOT_NEIGHBOURS": "fgctl shard list shows a gallery's shards in the order of their ranges",
    "UNIMPLEMENTED": "bring the routers to the version of this fgctl first",
}


@contextmanager
def advised(**facts: str) -> Iterator[None]:
    """Make refusals say what to do instead.

    Args:
        facts: what the advice may name, beside what the error tells.
    """
    try:
        yield
    except FacegridError as error:
        told = dict(error.facts)
        advice = _ADVICE.get(error.reason, "")
        try:
            advice = advice.format(**{**facts, **told})
        except KeyError:
            advice = ""
        if not advice or "fgctl" in error.message:
            raise
        raise type(error)(_joined(error.message, advice), reason=error.reason, **told) from None


def _joined(message: str, advice: str) -> str:
    """Return a message with the advice before its variables.

    It takes the place of what a router advises, who knows no commands.

    >>> _joined("no such shard; name another shard=g.1", "look for others")
    'no such shard; look for others shard=g.1'
    """
    found = re.search(r" \w+=", message)
    end = found.start() if found else len(message)
    fact = message[:end].partition("; ")[0]
    return f"{fact}; {advice}{message[end:]}"
