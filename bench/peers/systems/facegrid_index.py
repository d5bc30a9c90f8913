"""facegrid in process: what a node searches one shard with."""

from collections.abc import Sequence

from typing_extensions import override

from bench.peers.peer import Float32, Gallery, Int64, Library, Settings, Variant, filled
from facegrid import vectors
from facegrid.tuning import Effort, Profile
from indexd.ann.effort import effort_of
from indexd.ann.index import ShardIndex
from indexd.ann.threads import set_threads
from indexd.ann.train import train

SEED = 1
EVERY_SCORE = -2.0


class FacegridIndex(Library):
    """A trained `ShardIndex`, searched by profile: training finds how hard, not the run."""

    component_bits = vectors.BITS_DEFAULT
    _index: ShardIndex
    _effort: Effort

    def variants(self, rows: int, dim: int) -> Sequence[Variant]:  # noqa: ARG002 - the same for all
        """Return the only way; the profiles by rising effort."""
        profiles = (Profile.BALANCED, Profile.EXHAUSTIVE)
        return [Variant({}, (tuple({"profile": profile.value} for profile in profiles),))]

    def build(self, gallery: Gallery, settings: Settings) -> None:  # noqa: ARG002 - there are none
        """Store the rows, train, and code them."""
        codes = vectors.quantize(gallery.templates, self.component_bits)
        self._index = ShardIndex(codes.shape[1], self.component_bits)
        self._index.append(codes, gallery.subjects)
        codebook = train(codes, seed=SEED, threads=self.threads)
        set_threads(self.threads)
        self._index.swap(self._index.rebuilt(codebook))

    @override
    def use(self, settings: Settings) -> None:
        codebook = self._index.codebook
        assert codebook is not None, "built"
        self._effort = effort_of(codebook, "", Profile(str(settings["profile"])), None)

    def search(self, probes: Float32, k: int) -> Int64:
        """Return the best row of each of the best subjects."""
        hits = self._index.search(vectors.prepare_probes(probes), k, EVERY_SCORE, self._effort)
        ends = hits.counts.cumsum()
        rows = hits.rows.tolist()
        pairs = zip((ends - hits.counts).tolist(), ends.tolist(), strict=True)
        return filled([rows[first:last] for first, last in pairs], k)


class FacegridPackedIndex(FacegridIndex):
    """The same of a gallery that keeps four bits of a component."""

    component_bits = vectors.BITS_PACKED
