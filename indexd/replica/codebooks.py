"""Codebooks in the object store: trained once for a gallery, shared by all its shards."""

from facegrid.blob.port import BlobStore
from facegrid.errors import ConflictError
from facegrid.format.codebook import codebook_name
from facegrid.model import Gallery
from indexd.ann.codebook import Codebook
from indexd.engine import coded
from indexd.engine.coded import NamedCodebook
from indexd.engine.recovery import fetch

LOADED_MAX = 8
"""Codebooks kept at hand; a gallery that is trained again leaves its old one behind."""


class Codebooks:
    """Loads codebooks by hash, and keeps the last few, which all shards of a gallery share."""

    def __init__(self, store: BlobStore) -> None:
        self._store = store
        self._loaded: dict[str, NamedCodebook] = {}

    async def get(self, gallery: Gallery) -> NamedCodebook | None:
        """Return the codebook that a gallery names, or None while it has none.

        Raises:
            CorruptError: the object is missing or its bytes changed.
            UnavailableError: the store cannot be reached.
        """
        if not gallery.codebook:
            return None
        codebook = self._loaded.get(gallery.codebook)
        if codebook is None:
            name = codebook_name(gallery.uid, gallery.codebook)
            data = await fetch(self._store, name, gallery.codebook)
            codebook = coded.decode(data, gallery.codebook)
            self._loaded[gallery.codebook] = codebook
            if len(self._loaded) > LOADED_MAX:
                del self._loaded[next(iter(self._loaded))]
        return codebook

    async def delete(self, gallery_uid: str, sha256: str) -> None:
        """Delete a codebook that did not become the gallery's."""
        await self._store.delete(codebook_name(gallery_uid, sha256))

    async def put(self, gallery_uid: str, codebook: Codebook) -> str:
        """Store a codebook; return its sha256 in hex."""
        data, sha256 = coded.encode(codebook)
        try:
            await self._store.put_new(codebook_name(gallery_uid, sha256), data)
        except ConflictError:
            # Named by its content: training the same sample again gives the same object.
            await fetch(self._store, codebook_name(gallery_uid, sha256), sha256)
        return sha256
