"""Frames: the envelope of all bytes in the object store. docs/FORMATS.md draws it.

A frame is a header of 24 bytes, the stored payload, and zeros up to a multiple of 8 bytes:

    offset  bytes  field            little-endian
         0      4  magic            "FGRD"
         4      1  version          1
         5      1  flags            bit 0: payload is one lz4 frame; all others must be 0
         6      2  kind             what the payload is, see Kind
         8      4  stored_bytes     length of the stored payload, without padding
        12      4  raw_bytes        length of the payload after decompression
        16      4  payload_crc      CRC32C of the stored payload
        20      4  header_crc       CRC32C of the 20 bytes before

An object is a sequence of frames. Which kinds follow each other is the object's affair.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Literal

import google_crc32c
import lz4.frame

from facegrid import limits
from facegrid.errors import CorruptError, InvalidError
from facegrid.format.checks import Buffer
from facegrid.steps import Steps, finished

MAGIC: Final = b"FGRD"
VERSION: Final = 1
FLAG_LZ4: Final = 0x01
FLAGS_KNOWN: Final = FLAG_LZ4
ALIGNMENT: Final = 8
"""Payloads begin and end at multiples of this, so that arrays in them can be used in place."""

_HEADER: Final = struct.Struct("<4sBBHIII")
_CRC: Final = struct.Struct("<I")
HEADER_BYTES: Final = _HEADER.size + _CRC.size

_LZ4_RATIO_MAX: Final = 256
"""An lz4 block cannot grow by more: a match of 255 more bytes costs at least one byte."""
_PIECE_BYTES: Final = 256 * 1024
_STEP_PIECES: Final = 16

assert HEADER_BYTES % ALIGNMENT == 0

Compression = Literal["none", "lz4"]


class Kind(IntEnum):
    """What a frame's payload is. Numbers are never used again for something else."""

    LOG = 1
    SEGMENT_HEADER = 16
    SEGMENT_IDS = 17
    SEGMENT_SUBJECT_ROWS = 18
    SEGMENT_CODES = 19
    SEGMENT_LISTS = 20
    SEGMENT_PQ_CODES = 21
    MANIFEST = 32
    CODEBOOK_HEADER = 48
    CODEBOOK_CENTROIDS = 49
    CODEBOOK_PQ = 50
    STORED_GALLERY = 64
    LOAD_PIN = 65
    ERASURE_JOURNAL = 80
    SNAPSHOT = 96
    REPOSITORY_MARK = 97


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame, checked. The payload is a view of the object where it was not compressed."""

    kind: int
    payload: memoryview


def encode_frame(kind: int, payload: Buffer, *, compress: Compression) -> bytes:
    """Return the payload framed. Compression is left out where it would not make it smaller."""
    return b"".join(frame_parts(kind, payload, compress=compress))


def frame_parts(kind: int, payload: Buffer, *, compress: Compression) -> list[bytes]:
    """Return the pieces of a frame.

    Raises:
        InvalidError: the payload is longer than a frame may be (FRAME_TOO_LARGE).
    """
    return finished(framing(kind, payload, compress=compress))


def framing(kind: int, payload: Buffer, *, compress: Compression) -> Steps[list[bytes]]:
    """Do what `frame_parts` does in steps; a small payload takes one.

    A large one comes in small pieces, all of them bytes: then joining them, which takes tens of
    milliseconds, holds up no other thread.
    """
    raw_bytes = len(payload)
    if raw_bytes > limits.FRAME_BYTES_MAX:
        raise InvalidError(
            f"payload is too long for a frame bytes={raw_bytes} limit={limits.FRAME_BYTES_MAX}",
            reason="FRAME_TOO_LARGE",
            limit="FRAME_BYTES_MAX",
        )
    stored, flags = payload, 0
    if compress == "lz4":
        packed = lz4.frame.compress(payload, store_size=False)
        if len(packed) < raw_bytes:
            stored, flags = packed, FLAG_LZ4
    pieces: list[bytes] = []
    crc = 0
    for piece in _pieces(stored):
        if pieces and len(pieces) % _STEP_PIECES == 0:
            yield
        pieces.append(piece)
        crc = int(google_crc32c.extend(crc, piece))
    head = _HEADER.pack(MAGIC, VERSION, flags, kind, len(stored), raw_bytes, crc)
    return [head, _CRC.pack(crc32c(head)), *pieces, bytes(-len(stored) % ALIGNMENT)]


def decode_frames(data: Buffer, *, raw_bytes_max: int = limits.FRAME_BYTES_MAX) -> list[Frame]:
    """Return the frames of an object.

    Args:
        data: the whole object.
        raw_bytes_max: most bytes that one payload may have after decompression. Memory grows
            with what is really there, never with what a header claims.

    Raises:
        CorruptError: the bytes are not whole frames of a known version with known flags
            (facts: offset, what).
    """
    view = memoryview(data)
    frames: list[Frame] = []
    offset = 0
    while offset < len(view):
        frame, offset = _decode_frame(view, offset, raw_bytes_max)
        frames.append(frame)
    return frames


def expect_frames(
    data: Buffer, kinds: Sequence[int], *, what: str, raw_bytes_max: int = limits.FRAME_BYTES_MAX
) -> list[memoryview]:
    """Return the payloads of an object that consists of exactly these kinds of frames.

    Raises:
        CorruptError: as `decode_frames`, or other kinds are there.
    """
    frames = decode_frames(data, raw_bytes_max=raw_bytes_max)
    check_kinds(frames, kinds, what=what)
    return [frame.payload for frame in frames]


def check_kinds(frames: Sequence[Frame], kinds: Sequence[int], *, what: str) -> None:
    """Raise CorruptError unless the frames are of exactly these kinds, in this order."""
    found = [frame.kind for frame in frames]
    if found != list(kinds):
        raise CorruptError(
            f"{what} is damaged: it consists of other frames kinds={found[:16]}",
            reason="FRAMES_UNEXPECTED",
            what=what,
        )


def crc32c(data: Buffer) -> int:
    """Return the CRC32C (Castagnoli) of the bytes."""
    crc = 0
    for piece in _pieces(data):
        crc = int(google_crc32c.extend(crc, piece))
    return crc


def _pieces(data: Buffer) -> Iterator[bytes]:
    """Yield bytes as they are, and a view in pieces: the library for checksums takes no views, and
    small pieces stay in the processor's cache while they are copied.
    """
    if isinstance(data, bytes):
        yield data
        return
    for start in range(0, len(data), _PIECE_BYTES):
        yield bytes(data[start : start + _PIECE_BYTES])


@dataclass(frozen=True, slots=True)
class _Header:
    flags: int
    kind: int
    stored_bytes: int
    raw_bytes: int
    payload_crc: int


def _decode_frame(view: memoryview, offset: int, raw_bytes_max: int) -> tuple[Frame, int]:
    """Return the frame that begins at the offset, and where the next one begins."""
    header = _decode_header(view, offset)
    start = offset + HEADER_BYTES
    end = start + header.stored_bytes
    padded = end + -header.stored_bytes % ALIGNMENT
    if len(view) < padded:
        raise _corrupt("payload is cut off", offset)
    if any(view[end:padded]):
        raise _corrupt("padding is not zero", offset)
    payload = view[start:end]
    if header.payload_crc != crc32c(payload):
        raise _corrupt("checksum of the payload is wrong", offset)
    raw_bytes = header.raw_bytes
    if raw_bytes > raw_bytes_max:
        raise _corrupt(f"payload is too long raw_bytes={raw_bytes}", offset, "FRAME_TOO_LARGE")
    if header.flags & FLAG_LZ4:
        payload = _decompress(payload, raw_bytes, offset)
    elif len(payload) != raw_bytes:
        raise _corrupt("lengths disagree", offset)
    return Frame(kind=header.kind, payload=payload), padded


def _decode_header(view: memoryview, offset: int) -> _Header:
    """Return the header at the offset, once its checksum, version and flags are known good."""
    if len(view) < offset + HEADER_BYTES:
        raise _corrupt("header is cut off", offset)
    head = bytes(view[offset : offset + _HEADER.size])
    magic, version, *fields = _HEADER.unpack(head)
    if magic != MAGIC:
        raise _corrupt("magic is wrong", offset)
    # Before the checksum, since another version may have another header.
    if version != VERSION:
        raise _corrupt(f"version is unknown version={version}", offset, "VERSION_UNKNOWN")
    if _CRC.unpack_from(view, offset + _HEADER.size) != (crc32c(head),):
        raise _corrupt("checksum of the header is wrong", offset)
    header = _Header(*fields)
    if header.flags & ~FLAGS_KNOWN:
        raise _corrupt(f"a flag is unknown flags={header.flags:#04x}", offset, "FLAG_UNKNOWN")
    return header


def _decompress(stored: memoryview, raw_bytes: int, offset: int) -> memoryview:
    """Return exactly raw_bytes bytes, never holding more than that and one piece."""
    if raw_bytes > len(stored) * _LZ4_RATIO_MAX:
        raise _corrupt("it claims more than lz4 can hold", offset, "LZ4_BOMB")
    out = bytearray()
    decompressor = lz4.frame.LZ4FrameDecompressor()
    try:
        # Fed in pieces, since the library copies what it has not read yet with every call.
        for start in range(0, len(stored), _PIECE_BYTES):
            source: Buffer = stored[start : start + _PIECE_BYTES]
            if decompressor.eof:
                raise _corrupt("something follows the lz4 frame", offset)
            _inflate(decompressor, source, out, raw_bytes)
    except RuntimeError as error:
        raise _corrupt(f"lz4 cannot read it: {error}", offset) from error
    if not decompressor.eof or decompressor.unused_data or len(out) != raw_bytes:
        raise _corrupt("decompressed length is wrong", offset)
    return memoryview(out).toreadonly()


def _inflate(
    decompressor: lz4.frame.LZ4FrameDecompressor, source: Buffer, out: bytearray, raw_bytes: int
) -> None:
    """Add to the output what this part of the input gives; stop once it is too much."""
    more = True
    while more and len(out) <= raw_bytes:
        room = raw_bytes + 1 - len(out)
        out += decompressor.decompress(source, max_length=min(_PIECE_BYTES, room))
        source = b""
        more = not (decompressor.eof or decompressor.needs_input)


def _corrupt(problem: str, offset: int, reason: str = "") -> CorruptError:
    return CorruptError(
        f"frame is damaged: {problem} offset={offset}", reason=reason, offset=offset, what="frame"
    )
