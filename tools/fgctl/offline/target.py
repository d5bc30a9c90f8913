"""Which store a command reads, and the options that say so."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from facegrid.blob.open import S3_SCHEME, connect
from facegrid.blob.reader import BlobReader, DirectoryReader
from facegrid.errors import InvalidError


def store_argument(command: Callable[..., None]) -> Callable[..., None]:
    """Add STORE; the command gets a reader of it first."""

    @click.argument("store", metavar="STORE")
    @functools.wraps(command)
    def with_store(store: str, **rest: Any) -> None:
        command(open_reader(store), **rest)

    return with_store


def open_reader(store: str) -> BlobReader:
    """Return a reader of the store at PATH, dir:PATH or s3://BUCKET/PREFIX. Nothing is written.

    Raises:
        InvalidError: no such kind of store (STORE_URL_MALFORMED).
        UnavailableError: the folder cannot be read.
    """
    if store.startswith(S3_SCHEME):
        return connect(store)
    kind, colon, where = store.partition(":")
    if not colon:
        return DirectoryReader(Path(store))
    if kind != "dir" or not where:
        raise InvalidError(
            f"store must be PATH, dir:PATH or s3://BUCKET/PREFIX store={store!r}",
            reason="STORE_URL_MALFORMED",
        )
    return DirectoryReader(Path(where))


def ids_option(command: Callable[..., None]) -> Callable[..., None]:
    """Add --ids: who is enrolled is shown only to those who ask for it."""
    return click.option(
        "--ids", "with_ids", is_flag=True, help="Show subject, template and request ids too."
    )(command)
