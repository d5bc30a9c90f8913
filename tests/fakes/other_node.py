"""A node in another build: one safeguard taken out, or its disk watched and made to fail.

    python -m tests.fakes.other_node [--without SAFEGUARD] [--disk FILE] SETTINGS...

It is started in the place of indexd. Without a safeguard a named test must fail, else it shows
nothing. The file says what the disk has been told to keep, for `tests.fakes.power.cut`; while a
file of that name with `.eio` behind it exists, every fsync fails.
"""

import argparse
import errno
import os
import stat
import sys
from pathlib import Path

from facegrid.blob import directory
from facegrid.format import frame
from indexd.__main__ import main
from indexd.engine import loading, recovery
from indexd.engine.state import ShardState
from indexd.replica import bulk, writer


def without_fencing() -> None:
    """Commit whatever the generation and the tip are."""
    writer.PendingGroup.guards = lambda _: []  # type: ignore[method-assign]  # another build


def without_checksums() -> None:
    """Take stored bytes for what they claim to be."""

    class Agreeable(int):
        """A checksum that is right whatever it is compared with."""

        def __eq__(self, other: object) -> bool:
            return True

        def __ne__(self, other: object) -> bool:
            return False

        __hash__ = int.__hash__

    def no_check(data: bytes, sha256: str, name: str) -> None:
        del data, sha256, name

    real = frame.crc32c
    frame.crc32c = lambda data: Agreeable(real(data))
    for module in (loading, recovery, bulk):
        module.check_hash = no_check  # type: ignore[attr-defined]  # another build
    ShardState.verify_digest = lambda *_: None  # type: ignore[method-assign]  # another build


def without_fsync() -> None:
    """Promise what the disk was never told."""
    directory.Files.sync = lambda *_: None  # type: ignore[method-assign]  # another build


def on_disk(journal: Path) -> None:
    """Note what is synced: the inode of a file, or a folder's inode with each name in it."""
    real = directory.Files.sync
    failing = journal.with_name(f"{journal.name}.eio")

    def sync(files: directory.Files, fd: int) -> None:
        if failing.exists():
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(files, fd)
        found = os.fstat(fd)
        if stat.S_ISDIR(found.st_mode):
            lines = [f"entry {found.st_ino} {name}\n" for name in os.listdir(fd)]
        else:
            lines = [f"file {found.st_ino}\n"]
        with journal.open("a", encoding="utf-8") as file:
            file.write("".join(lines))

    directory.Files.sync = sync  # type: ignore[method-assign]  # another build


WITHOUT = {
    "fencing": without_fencing,
    "checksums": without_checksums,
    "fsync": without_fsync,
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--without", choices=WITHOUT)
    parser.add_argument("--disk", type=Path)
    given, settings = parser.parse_known_args()
    if given.disk is not None:
        on_disk(given.disk)
    if given.without is not None:
        WITHOUT[given.without]()
    sys.argv[1:] = settings
    main()
