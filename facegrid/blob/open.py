"""Opens the object store that a setting names."""

import asyncio
import importlib
import random  # noqa: TID251 - the edge: the store makes its own jitter
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from facegrid.blob.directory import DirectoryStore
from facegrid.blob.port import BlobStore
from facegrid.blob.probe import probe
from facegrid.blob.retrying import RetryingStore
from facegrid.blob.s3_address import S3Address, parse_s3_url
from facegrid.clock import SystemClock
from facegrid.errors import InvalidError
from facegrid.retry import Backoff

S3_SCHEME: Final = "s3://"

BUDGET_S: Final = 20.0
"""How long requests to S3 are tried again: longer than the store's bursts of 503, shorter than
clients wait for a write."""
TRIAL_BUDGET_S: Final = 5.0
"""The same at the start, where somebody waits to hear that the address is wrong."""
BACKOFF_FIRST_S: Final = 0.1
BACKOFF_LIMIT_S: Final = 3.0


def open_store(url: str) -> BlobStore:
    """Return the store at "dir:PATH" or "s3://BUCKET/PREFIX?…", once it is known to be writable
    and to let no name be taken twice. Blocking.

    Raises:
        InvalidError: no such kind of store (STORE_URL_MALFORMED), what it needs is not installed
            (OBSTORE_MISSING), or the environment says what no store can do with (STORE_SETTINGS).
        UnavailableError: the store cannot be used, or is not safe (STORE_UNSAFE); the message
            names it.
        OverloadedError: the store asks to slow down.
    """
    if url.startswith(S3_SCHEME):
        address = parse_s3_url(url)
        # In a thread, since this may be called in a running event loop.
        with ThreadPoolExecutor(1, "store-probe") as thread:
            thread.submit(_try_s3, address).result()
    return connect(url)


def connect(url: str, *, budget_s: float = BUDGET_S) -> BlobStore:
    """Return the store at a URL without trying an S3 store first: for those who only read, and for
    the probe. A directory store is always tried.

    Raises:
        InvalidError, UnavailableError: as for open_store.
    """
    if url.startswith(S3_SCHEME):
        return _s3(parse_s3_url(url), budget_s)
    kind, _, where = url.partition(":")
    if kind != "dir" or not where:
        raise InvalidError(
            f"store must be dir:PATH or s3://BUCKET/PREFIX store={url!r}",
            reason="STORE_URL_MALFORMED",
            field="store",
        )
    return DirectoryStore(Path(where))


def new_probe_name() -> str:
    """Return a segment of a name for `probe` that nobody had before."""
    return uuid.uuid4().hex  # noqa: TID251 - the edge: the probe's name is made here


def _try_s3(address: S3Address) -> None:
    report = asyncio.run(probe(_s3(address, TRIAL_BUDGET_S), new_probe_name()))
    report.check(address.place)


def _s3(address: S3Address, budget_s: float) -> BlobStore:
    try:
        # An extra, so it is looked for only where it is needed.
        s3 = importlib.import_module("facegrid.blob.s3")
    except ModuleNotFoundError as error:
        if error.name != "obstore":
            raise
        raise InvalidError(
            "S3 needs obstore: pip install 'facegrid[s3]'", reason="OBSTORE_MISSING", field="store"
        ) from None
    store: BlobStore = s3.S3Store(address)
    backoff = Backoff(BACKOFF_FIRST_S, 2.0, BACKOFF_LIMIT_S, random.Random())  # noqa: S311 - jitter
    return RetryingStore(store, clock=SystemClock(), backoff=backoff, budget_s=budget_s)
