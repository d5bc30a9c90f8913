"""The last known keys of etcd on disk, so that a process can serve reads from a start without it.

A cache of etcd and nothing more: a file that is absent or damaged costs nothing but that ability.
Two lines: a header with version and sha256 of what follows, and the keys as JSON.
"""

import base64
import binascii
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from facegrid.coord.port import KeyValue
from facegrid.errors import CorruptError, UnavailableError

FILE_NAME: Final = "topology"
_MAGIC: Final = "facegrid-topology-1"


def encode_state(items: Iterable[KeyValue]) -> bytes:
    """Return keys as the content of the file."""
    rows = [[item.key, base64.b64encode(item.value).decode(), item.mod_revision] for item in items]
    body = json.dumps(rows).encode()
    return f"{_MAGIC} {hashlib.sha256(body).hexdigest()}\n".encode() + body


def decode_state(data: bytes) -> tuple[KeyValue, ...]:
    """Return the keys in a file's content.

    Raises:
        CorruptError: it is damaged, or of another version (STATE_DAMAGED).
    """
    header, _, body = data.partition(b"\n")
    if header != f"{_MAGIC} {hashlib.sha256(body).hexdigest()}".encode():
        raise CorruptError("topology file is damaged", reason="STATE_DAMAGED")
    try:
        return tuple(
            KeyValue(str(key), base64.b64decode(value), int(revision))
            for key, value, revision in json.loads(body)
        )
    except (ValueError, TypeError, binascii.Error) as error:
        raise CorruptError(
            f"topology file cannot be read: {error}", reason="STATE_DAMAGED"
        ) from error


def load(folder: Path) -> tuple[KeyValue, ...]:
    """Return the keys saved in a folder, none if nothing was saved.

    Raises:
        CorruptError: the file is damaged.
        OSError: it cannot be read.
    """
    path = folder / FILE_NAME
    return decode_state(path.read_bytes()) if path.exists() else ()


def probe(folder: Path) -> None:
    """Find out whether a folder can be used, which is made if it is not there.

    Raises:
        UnavailableError: nothing can be written there (STATE_DIR_UNUSABLE).
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".topology-") as file:
            file.write(b"\0")
            file.flush()
    except OSError as error:
        raise UnavailableError(
            f"state folder cannot be written path={folder}: {error.strerror}",
            reason="STATE_DIR_UNUSABLE",
            path=folder,
        ) from error


def save(folder: Path, items: Iterable[KeyValue]) -> None:
    """Replace the keys saved in a folder; after a crash the old or the new ones are there."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".topology-", delete=False) as file:
        file.write(encode_state(items))
        file.flush()
        os.fsync(file.fileno())
    Path(file.name).replace(folder / FILE_NAME)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
