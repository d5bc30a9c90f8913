"""Codebooks of a node: loaded once for all shards, and not kept for good."""

from dataclasses import replace

import numpy as np
from typing_extensions import override

from facegrid import vectors
from facegrid.ids import GalleryName
from facegrid.model import Gallery
from facegrid.testing.memory_blob import MemoryBlobStore
from indexd.ann.train import train
from indexd.replica.codebooks import LOADED_MAX, Codebooks

GALLERY = Gallery(GalleryName("g"), "1f00aa23", 16, "x@1", 1, 1, 0)


class CountingStore(MemoryBlobStore):
    """Counts what is read."""

    reads = 0

    @override
    async def get(self, name: str) -> bytes:
        self.reads += 1
        return await super().get(name)


async def test_a_codebook_is_read_once_and_old_ones_are_let_go() -> None:
    store = CountingStore()
    codebooks = Codebooks(store)
    x = np.random.default_rng(1).normal(size=(1100, 16)).astype(np.float32)
    trained = train(vectors.quantize(x), seed=1, threads=1)
    galleries = [
        replace(
            GALLERY,
            codebook=await codebooks.put(GALLERY.uid, replace(trained, rescore_factor=factor)),
        )
        for factor in range(1, LOADED_MAX + 2)
    ]

    for gallery in [*galleries, *galleries[1:]]:
        assert await codebooks.get(gallery) is not None
    each_once = store.reads
    await codebooks.get(galleries[0])

    assert (each_once, store.reads) == (LOADED_MAX + 1, LOADED_MAX + 2)
