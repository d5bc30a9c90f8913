"""scalable-vs: a graph over compressed rows."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import svs
from typing_extensions import override

from bench.peers.peer import Float32, Gallery, Int64, Library, Settings, Variant, powers, rungs

WINDOW_MAX = 4096
SCAN_ROWS = 16_384


class ScalableVs(Library):
    """Vamana over LVQ, over LeanVec, or over plain rows."""

    _index: Any

    def variants(self, rows: int, dim: int) -> Sequence[Variant]:
        """Return compressed rows first: they are the faster ones."""
        window = rungs("window", powers(16, max(16, min(WINDOW_MAX, rows // 2))))
        shared: Settings = {"graph_max_degree": 64, "window_size": 128}
        return [
            Variant({"rows": "lvq4x8", **shared}, (window,)),
            Variant({"rows": "float32", **shared}, (window,)),
            Variant({"rows": "leanvec", "leanvec_dims": dim // 2, **shared}, (window,)),
        ]

    def build(self, gallery: Gallery, settings: Settings) -> None:
        """Compress the rows and link them."""
        parameters = svs.VamanaBuildParameters(
            alpha=0.95,
            graph_max_degree=settings["graph_max_degree"],
            window_size=settings["window_size"],
        )
        data: Any = self._loader(gallery.templates, settings)
        self._index = svs.Vamana.build(
            parameters, data, svs.DistanceType.MIP, num_threads=self.threads
        )
        self._index.num_threads = self.threads

    def _loader(self, templates: Float32, settings: Settings) -> Any:
        """Return what Vamana builds from: it compresses files only."""
        if settings["rows"] == "float32":
            return np.ascontiguousarray(templates)
        path = self.folder / "rows.fvecs"
        # Every row behind its length, as int32.
        with path.open("wb") as file:
            for first in range(0, len(templates), SCAN_ROWS):
                x = templates[first : first + SCAN_ROWS]
                heads = np.full((len(x), 1), x.shape[1], np.int32).view(np.float32)
                file.write(np.hstack([heads, x]).tobytes())
        folder = self.folder / "rows.svs"
        svs.convert_vecs_to_svs(str(path), str(folder), svs.DataType.float32)
        path.unlink()
        plain = svs.VectorDataLoader(str(folder), svs.DataType.float32, dims=templates.shape[1])
        if settings["rows"] == "leanvec":
            return svs.LeanVecLoader(plain, settings["leanvec_dims"])
        return svs.LVQLoader(plain, primary=4, residual=8)

    @override
    def use(self, settings: Settings) -> None:
        self._index.search_window_size = settings["window"]

    def search(self, probes: Float32, k: int) -> Int64:
        """Return the best rows that the walk has met."""
        found = self._index.search(probes, k)[0]
        return np.asarray(found).astype(np.int64)

    @override
    def save(self) -> None:
        parts = [str(self.folder / name) for name in ("config", "graph", "data")]
        self._index.save(*parts)
