"""faiss alone with the codebook that facegrid trained on the same rows (`bench.raw`)."""

from collections.abc import Sequence

from bench.peers.peer import Float32, Gallery, Int64, Library, Settings, Variant
from bench.raw import RawFaiss, use_threads
from facegrid import vectors
from indexd.ann.train import train

SEED = 1


class SameIndex(Library):
    """What is left of facegrid when all that makes it a service is taken away."""

    _raw: RawFaiss

    def variants(self, rows: int, dim: int) -> Sequence[Variant]:  # noqa: ARG002 - the same for all
        """Return the only way: as training found."""
        return [Variant({"effort": "as trained"}, (({},),))]

    def build(self, gallery: Gallery, settings: Settings) -> None:  # noqa: ARG002 - there are none
        """Train a codebook as a node does, and fill faiss with it."""
        codes = vectors.quantize(gallery.templates)
        codebook = train(codes, seed=SEED, threads=self.threads)
        use_threads(self.threads)
        self._raw = RawFaiss(codebook, codes)

    def search(self, probes: Float32, k: int) -> Int64:
        """Return the best rows after rescoring."""
        return self._raw.search(probes, k)
