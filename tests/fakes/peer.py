"""Systems for the comparison with peers: one that finds everything slowly or little fast, one that
dies and one that never ends.
"""

import select
import sys
from collections.abc import Sequence

import numpy as np
from typing_extensions import override

from bench.peers.peer import Float32, Gallery, Int64, Library, Settings, Variant, rungs


class FakePeer(Library):
    """Compares the first rows only: how many is its effort."""

    _templates: Float32
    _share: float

    def variants(self, rows: int, dim: int) -> Sequence[Variant]:  # noqa: ARG002 - the same for all
        return [Variant({"kind": "fake"}, (rungs("percent", (10, 50, 100)),))]

    def build(self, gallery: Gallery, settings: Settings) -> None:
        assert settings == {"kind": "fake"}
        self._templates = np.array(gallery.templates)

    @override
    def use(self, settings: Settings) -> None:
        self._share = int(settings["percent"]) / 100

    def search(self, probes: Float32, k: int) -> Int64:
        seen = self._templates[: int(len(self._templates) * self._share)]
        return np.argsort(-(probes @ seen.T), axis=1, kind="stable")[:, :k].astype(np.int64)

    @override
    def save(self) -> None:
        np.save(self.folder / "rows.npy", self._templates)


class DyingPeer(FakePeer):
    """Cannot be built."""

    @override
    def build(self, gallery: Gallery, settings: Settings) -> None:
        raise MemoryError("no room for so many links")


class EndlessPeer(FakePeer):
    """Builds until it is stopped."""

    @override
    def build(self, gallery: Gallery, settings: Settings) -> None:
        sys.stdout.write("libraries print\n")
        select.select([], [], [])
