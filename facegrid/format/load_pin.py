"""Load pins: objects that keep the segments of a bulk load until a record of the log names them.

One object is one frame of kind LOAD_PIN. Its name says all of it, so that whoever sweeps needs
only a listing; the content repeats it, so that a pin in another's place is noticed.
"""

import re
from dataclasses import dataclass
from typing import Final

from facegrid.api.storage.v1 import storage_pb2
from facegrid.errors import InvalidError
from facegrid.format.checks import Buffer, parse, require, serialized, sha256_problem
from facegrid.format.frame import Kind, encode_frame, expect_frames
from facegrid.ids import ShardId

_WHAT: Final = "load pin"
_RAW_BYTES_MAX: Final = 4096
_LOAD_ID: Final = re.compile(r"[0-9a-z]{8,64}")
_NAME: Final = re.compile(r"shards/([^/]+)/loads/([0-9a-z]{8,64})-([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class LoadPin:
    """One segment of one load. `sha256` is that of the segment object, 64 hex digits."""

    shard_id: ShardId
    load_id: str
    sha256: str


def check_load_id(load_id: str) -> None:
    """Raise InvalidError unless an id is 8 to 64 of 0-9 and a-z."""
    if _LOAD_ID.fullmatch(load_id) is None:
        raise InvalidError(
            f"load id must be 8 to 64 digits and small letters load={load_id[:80]!r}",
            reason="LOAD_ID_MALFORMED",
            field="load_id",
        )


def pin_prefix(shard_id: str, load_id: str = "") -> str:
    """Return what the names of a shard's pins begin with, all of them or those of one load."""
    return f"shards/{shard_id}/loads/{load_id + '-' if load_id else ''}"


def pin_name(pin: LoadPin) -> str:
    """Return the name of a pin's object."""
    return f"{pin_prefix(pin.shard_id, pin.load_id)}{pin.sha256}"


def parse_pin_name(name: str) -> LoadPin | None:
    """Return the pin that has this name; None for names of other objects."""
    found = _NAME.fullmatch(name)
    return LoadPin(ShardId(found[1]), found[2], found[3]) if found else None


def encode_pin(pin: LoadPin) -> bytes:
    """Return a pin as the bytes of its object."""
    problem = sha256_problem(pin.sha256)
    assert not problem, problem
    message = storage_pb2.LoadPin(
        shard_id=pin.shard_id, load_id=pin.load_id, sha256=bytes.fromhex(pin.sha256)
    )
    return encode_frame(Kind.LOAD_PIN, serialized(message), compress="none")


def decode_pin(data: Buffer) -> LoadPin:
    """Return a pin.

    Raises:
        CorruptError: damaged, or made by a version that writes what this one cannot read.
    """
    kinds = [Kind.LOAD_PIN]
    (payload,) = expect_frames(data, kinds, what=_WHAT, raw_bytes_max=_RAW_BYTES_MAX)
    message = parse(storage_pb2.LoadPin(), payload, what=_WHAT)
    pin = LoadPin(ShardId(message.shard_id), message.load_id, message.sha256.hex())
    require(parse_pin_name(pin_name(pin)) == pin, _WHAT, "no pin has such a name")
    return pin
