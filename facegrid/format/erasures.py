"""The erasure journal of a gallery: which ids were erased, for ever, without naming them.

One object is one frame of kind ERASURE_JOURNAL. The objects of a shard form a chain by the sha256
of the predecessor, as those of the log do; the manifest names its end, and when a gallery is
dropped a closing object ends it. So an object that is lost is missed, and nothing that was erased
comes back because nobody remembers.

Ids are kept as hashes keyed by the gallery's uid: a list of all who asked to be forgotten must not
be what facegrid keeps for longest. Whoever knows an id can still find out whether it was erased.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from facegrid import limits
from facegrid.api.storage.v1 import storage_pb2
from facegrid.format.checks import Buffer, parse, require, serialized, sha256_problem
from facegrid.format.frame import Kind, encode_frame, expect_frames
from facegrid.format.inventory import gallery_of
from facegrid.format.log import EraseRecord
from facegrid.ids import ShardId

ID_HASH_BYTES: Final = 16
JOURNAL_IDS_MAX: Final = 262_144
"""Hashes in one object, at least one record's: a flush writes as many objects as it takes."""
JOURNAL_RAW_BYTES_MAX: Final = 64 * limits.MIB
"""Room for JOURNAL_IDS_MAX hashes, each in a record of its own, and one full record more."""

_WHAT: Final = "erasure journal"
_NAME: Final = re.compile(r"journal/([^/]+)/([^/]+)/(\d{19})-([0-9a-f]{64})")

IdKind = Literal["subject", "template"]


@dataclass(frozen=True, slots=True)
class JournalRef:
    """Names one object of a shard's journal.

    Attributes:
        last_position: the last record that it speaks for.
        sha256: of the whole object, 64 hex digits.
    """

    last_position: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Erasure:
    """What one record of the log erased: hashes of ID_HASH_BYTES each, one after the other."""

    position: int
    erased_unix_ms: int
    subjects: bytes
    templates: bytes

    @property
    def ids_count(self) -> int:
        """Number of hashes."""
        return (len(self.subjects) + len(self.templates)) // ID_HASH_BYTES


@dataclass(frozen=True, slots=True)
class ErasureJournal:
    """One object: what was erased behind its predecessor, up to a position.

    Attributes:
        predecessor: None: this speaks for all records from the first.
        erasures: by rising position.
        last_position: the last record that this speaks for.
        closing: the gallery was dropped; no record follows.
    """

    gallery_uid: str
    shard_id: ShardId
    predecessor: JournalRef | None
    erasures: tuple[Erasure, ...]
    last_position: int
    closing: bool = False


@dataclass(frozen=True, slots=True)
class JournalObject:
    """An object to be stored, and what will name it."""

    name: str
    data: bytes
    ref: JournalRef


def id_hash(gallery_uid: str, kind: IdKind, value: str) -> bytes:
    """Return the hash that stands for an id: blake2b-128, keyed by the uid, personal by kind."""
    data = hashlib.blake2b(
        value.encode(), digest_size=ID_HASH_BYTES, key=gallery_uid.encode(), person=kind.encode()
    )
    return data.digest()


def erasure_of(gallery_uid: str, record: EraseRecord) -> Erasure:
    """Return what a record erased, without its ids."""
    return Erasure(
        record.position,
        record.written_unix_ms,
        b"".join(id_hash(gallery_uid, "subject", one) for one in record.subject_ids),
        b"".join(id_hash(gallery_uid, "template", one) for one in record.template_ids),
    )


def journal_prefix(gallery_uid: str) -> str:
    """Return what the names of a gallery's journal begin with."""
    return f"journal/{gallery_uid}/"


def journal_name(shard_id: str, ref: JournalRef) -> str:
    """Return an object's name. Sorted, the names of a shard are in the order written."""
    uid = gallery_of(shard_id)[1]
    return f"{journal_prefix(uid)}{shard_id}/{ref.last_position:019d}-{ref.sha256}"


def parse_journal_name(name: str) -> tuple[str, ShardId, JournalRef] | None:
    """Return uid, shard and reference of a journal object's name; None for other names."""
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    return found[1], ShardId(found[2]), JournalRef(int(found[3]), found[4])


def journal_objects(
    shard_id: ShardId,
    predecessor: JournalRef | None,
    erasures: Sequence[Erasure],
    *,
    last_position: int,
    closing: bool = False,
) -> list[JournalObject]:
    """Return the objects that continue a journal up to a position, in their order.

    None where nothing was erased and the journal goes on.
    """
    parts = list(_parts(erasures))
    if closing and not parts:
        parts = [()]
    made: list[JournalObject] = []
    for number, part in enumerate(parts, 1):
        ends = number == len(parts)
        journal = ErasureJournal(
            gallery_uid=gallery_of(shard_id)[1],
            shard_id=shard_id,
            predecessor=made[-1].ref if made else predecessor,
            erasures=part,
            last_position=last_position if ends else part[-1].position,
            closing=closing and ends,
        )
        data = encode_journal(journal)
        ref = JournalRef(journal.last_position, hashlib.sha256(data).hexdigest())
        made.append(JournalObject(journal_name(shard_id, ref), data, ref))
    return made


def _parts(erasures: Iterable[Erasure]) -> Iterable[tuple[Erasure, ...]]:
    part: list[Erasure] = []
    count = 0
    for erasure in erasures:
        if part and count + erasure.ids_count > JOURNAL_IDS_MAX:
            yield tuple(part)
            part, count = [], 0
        part.append(erasure)
        count += erasure.ids_count
    if part:
        yield tuple(part)


def encode_journal(journal: ErasureJournal) -> bytes:
    """Return a journal object's bytes."""
    problem = journal_problem(journal)
    assert not problem, problem
    before = journal.predecessor
    message = storage_pb2.ErasureJournal(
        gallery_uid=journal.gallery_uid,
        shard_id=journal.shard_id,
        predecessor=None if before is None else journal_ref_to_message(before),
        erasures=[
            storage_pb2.ErasureJournal.Erasure(
                position=one.position,
                erased_unix_ms=one.erased_unix_ms,
                subjects=one.subjects,
                templates=one.templates,
            )
            for one in journal.erasures
        ],
        last_position=journal.last_position,
        closing=journal.closing,
    )
    return encode_frame(Kind.ERASURE_JOURNAL, serialized(message), compress="lz4")


def decode_journal(data: Buffer) -> ErasureJournal:
    """Return what a journal object holds.

    Raises:
        CorruptError: damaged, or made by a version that writes what this one cannot read.
    """
    kinds = [Kind.ERASURE_JOURNAL]
    (payload,) = expect_frames(data, kinds, what=_WHAT, raw_bytes_max=JOURNAL_RAW_BYTES_MAX)
    message = parse(storage_pb2.ErasureJournal(), payload, what=_WHAT)
    journal = ErasureJournal(
        gallery_uid=message.gallery_uid,
        shard_id=ShardId(message.shard_id),
        predecessor=(
            journal_ref_from_message(message.predecessor)
            if message.HasField("predecessor")
            else None
        ),
        erasures=tuple(
            Erasure(one.position, one.erased_unix_ms, one.subjects, one.templates)
            for one in message.erasures
        ),
        last_position=message.last_position,
        closing=message.closing,
    )
    problem = journal_problem(journal)
    require(not problem, _WHAT, problem)
    return journal


def journal_problem(journal: ErasureJournal) -> str:
    """Say what is wrong with a journal object; empty when nothing is.

    The invariant: it speaks for the records right behind its predecessor, up to its last position,
    and every erasure in it lies there. Else one could be forgotten without anybody noticing.
    """
    if not journal.shard_id or gallery_of(journal.shard_id)[1] != journal.gallery_uid:
        return f"shard and gallery disagree shard={journal.shard_id} uid={journal.gallery_uid}"
    if not journal.erasures and not journal.closing:
        return "nothing was erased, and it closes nothing"
    at = 0 if journal.predecessor is None else journal.predecessor.last_position
    if journal.last_position < at:
        return f"it ends before it begins last={journal.last_position} before={at}"
    for one in journal.erasures:
        if not at < one.position <= journal.last_position:
            return f"an erasure does not lie there position={one.position} behind={at}"
        if len(one.subjects) % ID_HASH_BYTES or len(one.templates) % ID_HASH_BYTES:
            return f"hashes have another length position={one.position}"
        at = one.position
    return ""


def journal_ref_to_message(ref: JournalRef) -> storage_pb2.JournalRef:
    """Return a reference as it is stored."""
    problem = _ref_problem(ref)
    assert not problem, problem
    return storage_pb2.JournalRef(
        last_position=ref.last_position, sha256=bytes.fromhex(ref.sha256)
    )


def journal_ref_from_message(message: storage_pb2.JournalRef) -> JournalRef:
    """Return a stored reference; CorruptError if it cannot be one."""
    ref = JournalRef(message.last_position, message.sha256.hex())
    problem = _ref_problem(ref)
    require(not problem, "journal reference", problem)
    return ref


def _ref_problem(ref: JournalRef) -> str:
    if ref.last_position < 1:
        return f"last_position={ref.last_position}"
    return sha256_problem(ref.sha256)
