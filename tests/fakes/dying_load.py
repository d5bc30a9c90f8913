"""fgctl, but a load ends by SIGKILL at a step: `python -m tests.fakes.dying_load STEP WHEN ARGS…`.

STEP is the name of a durable step, WHEN is before or after, and the how manieth of its kind, such
as before1. Chunks are of 1,500 rows, so that small inputs have several.
"""

import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from fgctl.bulk.journal import Journal
from fgctl.bulk.publish import Committed, LoadCommitter, LoadStore
from fgctl.bulk.segments import StoredSegment
from fgctl.cli import run
from fgctl.online import load

CHUNK_ROWS = 1500


class Death:
    """Kills this process when its step comes."""

    def __init__(self, step: str, when: str) -> None:
        self._step = step
        self._before = when.startswith("before")
        self._left = int(when.removeprefix("before").removeprefix("after"))

    def begin(self, step: str) -> bool:
        """Count a step down; die if it is the one. Tell whether to die after it."""
        if step != self._step:
            return False
        self._left -= 1
        if self._left == 0 and self._before:
            self.die()
        return self._left == 0

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    async def around(self, step: str, work: Callable[[], Awaitable[Any]]) -> Any:
        doomed = self.begin(step)
        result = await work()
        if doomed:
            self.die()
        return result


def main(arguments: Sequence[str]) -> int:
    """Run fgctl with a death in it."""
    death = Death(arguments[0], arguments[1])
    put, commit = LoadStore._put, LoadCommitter.commit
    unpin, append = LoadStore.unpin_all, Journal._append

    async def dying_put(self: LoadStore, name: str, data: bytes) -> None:
        await death.around(f"put {name.split('/')[2]}", lambda: put(self, name, data))

    async def dying_commit(
        self: LoadCommitter, gallery: str, load_id: str, segments: Sequence[StoredSegment]
    ) -> Committed:
        result: Committed = await death.around(
            "commit", lambda: commit(self, gallery, load_id, segments)
        )
        return result

    async def dying_unpin(self: LoadStore, shards: Any) -> int:
        count: int = await death.around("unpin", lambda: unpin(self, shards))
        return count

    def dying_append(self: Journal, kind: str, fields: Mapping[str, object]) -> None:
        doomed = death.begin(f"journal {kind}")
        append(self, kind, fields)
        if doomed:
            death.die()

    LoadStore._put = dying_put  # type: ignore[method-assign]  # the point of this module
    LoadStore.unpin_all = dying_unpin  # type: ignore[method-assign]  # likewise
    LoadCommitter.commit = dying_commit  # type: ignore[method-assign]  # likewise
    Journal._append = dying_append  # type: ignore[method-assign]  # likewise
    load.chunk_rows = lambda _dim, _shards: CHUNK_ROWS
    return run(arguments[2:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
