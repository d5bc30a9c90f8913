"""Names of things, as distinct types, and how subjects fall into the key space."""

import hashlib
import re
from collections.abc import Sequence
from typing import NewType

import numpy as np
import numpy.typing as npt

from facegrid.errors import InvalidError

NodeId = NewType("NodeId", str)
ShardId = NewType("ShardId", str)
GalleryName = NewType("GalleryName", str)
SubjectId = NewType("SubjectId", str)
TemplateId = NewType("TemplateId", str)

KEY_LAST = 2**64 - 1
"""The key space is 0 to KEY_LAST, both included."""

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
ID_BYTES_MAX = 128


def subject_key(subject_id: str) -> int:
    """Return where a subject lies in the key space: 0 to 2**64 - 1.

    The first eight bytes of blake2b, big-endian. Part of the stored format: changing it would
    send every subject to another shard.
    """
    return int.from_bytes(hashlib.blake2b(subject_id.encode(), digest_size=8).digest(), "big")


def subject_keys(encoded: Sequence[bytes]) -> npt.NDArray[np.uint64]:
    """Return `subject_key` of many subject ids, given in UTF-8, as uint64 [n]."""
    # A copy costs a third less than an object made anew.
    fresh = hashlib.blake2b(digest_size=8)
    hashed = bytearray()
    for one in encoded:
        state = fresh.copy()
        state.update(one)
        hashed += state.digest()
    return np.frombuffer(hashed, ">u8").astype(np.uint64)


def shard_number(shard_id: str) -> int:
    """Return the number that ends a shard's id; -1 where it has none.

    >>> shard_number("staff.1f00aa23.0003")
    3
    """
    number = shard_id.rpartition(".")[2]
    return int(number) if number.isdecimal() else -1


def check_gallery_name(name: str) -> GalleryName:
    """Return the name if it is well-formed, else raise InvalidError."""
    if _NAME.fullmatch(name) is None:
        raise InvalidError(
            f"gallery name must match ^[a-z0-9][a-z0-9_-]{{0,62}}$ name={name[:80]!r}",
            reason="NAME_MALFORMED",
            field="gallery",
        )
    return GalleryName(name)


def id_problem(value: str) -> str:
    """Say what is wrong with a subject, template or request id; empty when nothing is."""
    if not value:
        return "empty"
    if not value.isprintable():
        return "contains control characters"
    if len(value) > ID_BYTES_MAX or len(value.encode()) > ID_BYTES_MAX:
        return f"longer than {ID_BYTES_MAX} bytes"
    return ""


def first_bad_id(values: Sequence[str], encoded: Sequence[bytes]) -> int | None:
    """Return the place of the first malformed id among many, or None. `encoded`: in UTF-8."""
    # Together first, since that costs a tenth of looking at each.
    if not values or (
        "".join(values).isprintable()
        and min(map(len, encoded)) > 0
        and max(map(len, encoded)) <= ID_BYTES_MAX
    ):
        return None
    return next(place for place, value in enumerate(values) if id_problem(value))


def check_ids(values: list[str], *, field: str) -> None:
    """Raise InvalidError naming the first row whose id is malformed."""
    joined = "".join(values)
    # Together first, since that costs a tenth of looking at each; ASCII has a byte per character.
    if not values or (
        joined.isascii()
        and joined.isprintable()
        and min(map(len, values)) > 0
        and max(map(len, values)) <= ID_BYTES_MAX
    ):
        return
    for row, value in enumerate(values):
        problem = id_problem(value)
        if problem:
            raise InvalidError(
                f"{field} is malformed: {problem} row={row}",
                reason="ID_MALFORMED",
                row=row,
                field=field,
            )


def check_request_id(value: str) -> None:
    """Raise InvalidError unless the request id has 1 to 64 printable characters."""
    if id_problem(value) or len(value) > 64:
        raise InvalidError(
            "request_id must have 1 to 64 printable characters",
            reason="REQUEST_ID_MALFORMED",
            field="request_id",
        )
