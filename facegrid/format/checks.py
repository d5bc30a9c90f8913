"""What every format shares: refusals, messages with features, hashes, and values with arrays."""

import dataclasses
import hashlib
import re
from collections.abc import Iterable
from typing import Any, Final, TypeVar

import numpy as np
from google.protobuf.message import DecodeError, Message
from typing_extensions import override

from facegrid.errors import CorruptError

Buffer = bytes | memoryview

DIGEST_BYTES: Final = 16
"""Digests of requests and rows are blake2b-128."""

_SHA256_HEX = re.compile(r"[0-9a-f]{64}")

M = TypeVar("M", bound=Message)


class ArrayValue:
    """Base of dataclasses that hold arrays: equal when every field is, dtype and shape too."""

    __slots__ = ()

    @override
    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        fields = dataclasses.fields(self)  # type: ignore[arg-type]  # every subclass is a dataclass
        return all(
            _same(getattr(self, field.name), getattr(other, field.name)) for field in fields
        )

    __hash__ = None  # type: ignore[assignment]  # arrays have no hash


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        return False
    return bool(one == other)


def require(holds: bool, what: str, problem: str) -> None:  # noqa: FBT001 - reads as an assertion
    """Raise CorruptError saying what is damaged and how, unless the condition holds."""
    if not holds:
        raise CorruptError(f"{what} is damaged: {problem}", what=what)


def parse(message: M, data: Buffer, *, what: str) -> M:
    """Return the message filled from bytes, once its required features are known to be known.

    Raises:
        CorruptError: not such a message, or it needs a feature that this reader lacks
            (FEATURE_UNKNOWN).
    """
    try:
        message.ParseFromString(bytes(data))
    except DecodeError as error:
        raise CorruptError(f"{what} is damaged: {error}", what=what) from error
    features: Iterable[str] = getattr(message, "required_features", ())
    unknown = sorted(set(features) - FEATURES_KNOWN)
    if unknown:
        raise CorruptError(
            f"{what} needs features that this version does not have features={','.join(unknown)}",
            reason="FEATURE_UNKNOWN",
            what=what,
            features=",".join(unknown),
        )
    return message


MAP_JOINING: Final = "map-joining"
"""A map has nodes that join: a primary that does not wait for them could have what it erased found
there, and whoever changes the map must keep them."""
MAP_PENDING: Final = "map-pending"
"""A map has shards that are being filled: nodes hold them, whoever changes the map keeps them."""
MAP_MADE_COUNT: Final = "map-made-count"
"""A gallery had more shards than it has: whoever changes the map must keep count, since the names
of shards are used once."""
SOURCES: Final = "sources"
"""An object says how far other shards were brought in."""
GALLERY_LIVES: Final = "gallery-lives"
"""A shard goes while its gallery stays: less is deleted than with a gallery."""
COMPONENT_BITS: Final = "component-bits"
"""A gallery's templates are rounded more coarsely: a router that does not know would enrol others
among them."""
FEATURES_KNOWN: Final = frozenset(
    {MAP_JOINING, MAP_PENDING, MAP_MADE_COUNT, SOURCES, GALLERY_LIVES, COMPONENT_BITS}
)
"""Features that this version can read."""


def serialized(message: Message) -> bytes:
    """Return the message as bytes; equal messages give equal bytes."""
    return message.SerializeToString(deterministic=True)


def sha256_hex(data: Buffer) -> str:
    """Return the sha256 of an object, as 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_problem(value: str) -> str:
    """Say what is wrong with a sha256 in hex; empty when nothing is."""
    return "" if _SHA256_HEX.fullmatch(value) else f"no sha256 in hex value={value[:80]!r}"


def array_bytes(array: np.ndarray[Any, Any], dtype: str) -> memoryview:
    """Return an array's bytes, row-major, in a stated byte order, copying only if need be."""
    return np.ascontiguousarray(array, dtype=np.dtype(dtype)).reshape(-1).view(np.uint8).data


def array_from(data: Buffer, dtype: str, shape: tuple[int, ...], *, what: str) -> Any:
    """Return a read-only array over the bytes, without copying.

    Raises:
        CorruptError: the bytes are not exactly such an array.
    """
    kind = np.dtype(dtype)
    wanted = kind.itemsize
    for length in shape:
        wanted *= length
    require(len(data) == wanted, what, f"bytes={len(data)} wanted={wanted}")
    return np.frombuffer(data, kind).reshape(shape)
