"""Tells routers with an old map which one this node knows."""

from collections.abc import Iterator
from contextlib import contextmanager

from facegrid.errors import FencedError, NotFoundError
from indexd.replica.view import View

MAP_VERSION = "map_version"
"""Fact of an error: the version of the gallery's map that this node knows."""


def map_version(view: View, gallery: str) -> int:
    """Return the version of a gallery's map that this node knows; 0: it knows none."""
    shard_map = view.shard_map(gallery)
    return 0 if shard_map is None else shard_map.version


@contextmanager
def telling_map(view: View, shard_id: str) -> Iterator[None]:
    """Add the version of the map to errors which say that a shard is not served or not here."""
    try:
        yield
    except (NotFoundError, FencedError) as error:
        # A shard's id begins with its gallery's name, which holds no dot.
        if version := map_version(view, shard_id.partition(".")[0]):
            error.facts.setdefault(MAP_VERSION, str(version))
        raise
