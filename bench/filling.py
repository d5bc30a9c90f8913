"""A trained gallery of synthetic templates, to measure something with."""

import asyncio
from collections.abc import Callable, Sequence

import facegrid
from bench import measure
from facegrid import limits
from facegrid.clock import Clock
from facegrid.testing.synthetic import SyntheticGallery
from fgctl import admin
from fgctl.render import metered

TIMEOUT_S = 60.0
WAIT_S = 900.0
"""How long training, a stop or a start may take before a run is given up."""
TAIL_ROWS_MAX = 4096
"""So many of the newest rows of a shard may not be coded yet."""


class Filled:
    """One gallery of a cluster.

    Args:
        routers: host:port of each router.
        client: asks them.
        name: of the gallery.
        dim: length of its vectors.
        clock: for waiting.
    """

    def __init__(
        self, routers: Sequence[str], client: facegrid.Client, *, name: str, dim: int, clock: Clock
    ) -> None:
        self._router = routers[0]
        self._client = client
        self._name = name
        self._dim = dim
        self._clock = clock

    def create(self, *, shards: int, templates_count: int) -> None:
        """Create it; it trains by itself when about half of the templates are there."""
        self._client.create_gallery(
            self._name,
            dim=self._dim,
            extractor=f"{self._name}@1",
            shards=shards,
            train_at=max(
                limits.TRAIN_ROWS_MIN, min(limits.TRAIN_AT_DEFAULT, templates_count // 2)
            ),
        )

    def fill(self, templates_count: int, *, seed: int) -> None:
        """Enrol templates, and return when the index has them."""
        gallery = SyntheticGallery(self._dim, templates_count=templates_count, seed=seed)
        with metered("enrolling", templates_count, quiet=False) as meter:
            shown = 0

            def show(acked: int) -> None:
                nonlocal shown
                meter.advance(acked - shown)
                shown = acked

            batches = map(measure.batch, gallery.blocks(limits.ENROL_ROWS_MAX))
            self._client.enrol_stream(self._name, batches, on_ack=show)
        self.wait(lambda: self._client.get_gallery(self._name).codebook, "training")
        self.wait(lambda: self._indexed(templates_count), "coding")

    def wait(self, there: Callable[[], object], what: str) -> None:
        """Wait until something is so."""
        end_s = self._clock.now_s() + WAIT_S
        while not there():
            assert self._clock.now_s() < end_s, f"not done in time: {what}"
            asyncio.run(self._clock.sleep(0.5))

    def _indexed(self, templates_count: int) -> bool:
        """Tell whether nearly all rows are searched through the index."""
        status = admin.cluster_status(self._router, timeout_s=TIMEOUT_S)
        indexed = sum(shard.indexed_count for node in status.nodes for shard in node.shards)
        return indexed + len(status.shards) * TAIL_ROWS_MAX >= templates_count
