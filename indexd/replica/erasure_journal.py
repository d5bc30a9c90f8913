"""Ends the erasure journal of a shard that was dropped, and tells whether one has ended."""

from facegrid.blob.port import BlobStore
from facegrid.coord import keys
from facegrid.coord.port import Delete
from facegrid.errors import ConflictError, CorruptError
from facegrid.format.erasures import (
    Erasure,
    JournalObject,
    decode_journal,
    erasure_of,
    journal_objects,
    journal_prefix,
    parse_journal_name,
)
from facegrid.format.inventory import gallery_of
from facegrid.format.log import EraseRecord
from facegrid.format.records import decode_manifest_pointer, decode_tip
from facegrid.ids import ShardId
from indexd.engine import recovery
from indexd.replica.shard_copy import NodePorts


async def close_journal(
    ports: NodePorts, shard_id: ShardId, *, order_revision: int | None = None
) -> None:
    """Store what the log of a dropped shard erased, and that nothing follows.

    To be called before the first object of the shard is deleted. Takes the shard's generation away
    first, so that nobody commits any more, whoever believes to be the primary. It may be called
    again: once something is deleted there is nothing left to do. Where the log cannot be read the
    journal stays open, and a restore of an old snapshot says so.

    Args:
        ports: what the node stands on.
        shard_id: the shard.
        order_revision: of the record that orders the deletion. Nothing is stored if it is another
            by now: another node is through, and tip and manifest read as if there had been none.

    Raises:
        UnavailableError: etcd or the store cannot be reached.
    """
    await ports.coord.txn([], [Delete(keys.generation(shard_id))])
    try:
        closing = await _closing(ports, shard_id)
        if order_revision is not None:
            order = await ports.coord.get(keys.dropped(shard_id))
            if order is None or order.mod_revision != order_revision:
                return
        for item in closing:
            await _put(ports, item)
    except CorruptError as error:
        ports.logger.warning(
            "erasure journal not closed",
            shard=shard_id,
            reason=error.reason,
            problem=error.message,
        )


async def journal_closed(store: BlobStore, shard_id: ShardId) -> bool:
    """Tell whether the journal says that nothing follows: only that of a dropped shard does. It is
    so before the first object of the shard is deleted.

    Raises:
        CorruptError: the journal is damaged.
        UnavailableError: the store cannot be reached.
    """
    prefix = f"{journal_prefix(gallery_of(shard_id)[1])}{shard_id}/"
    found = {name: parse_journal_name(name) for name in await store.list(prefix)}
    refs = {name: parsed[2] for name, parsed in found.items() if parsed is not None}
    last_position = max((ref.last_position for ref in refs.values()), default=0)
    for name, ref in refs.items():
        # A primary that stood still may have stored another one of the same length.
        if ref.last_position == last_position:
            data = await recovery.fetch(store, name, ref.sha256)
            if decode_journal(data).closing:
                return True
    return False


async def _closing(ports: NodePorts, shard_id: ShardId) -> list[JournalObject]:
    """Return what is to be stored."""
    coord, store = ports.coord, ports.store
    item = await coord.get(keys.manifest(shard_id))
    pointer = None if item is None else decode_manifest_pointer(item.value)
    item = await coord.get(keys.tip(shard_id))
    tip = None if item is None else decode_tip(item.value).log
    manifest = await recovery.load_manifest(store, shard_id, pointer)
    covered = None if manifest is None else manifest.log
    erasures: list[Erasure] = []
    for group, _ in await recovery.read_chain(store, shard_id, after=covered, tip=tip):
        erasures += [
            erasure_of(gallery_of(shard_id)[1], record)
            for record in group.records
            # What came from another shard is in that one's journal, by its positions.
            if isinstance(record, EraseRecord) and record.source is None
        ]
    ends = [ref.last_position for ref in (covered, tip) if ref is not None]
    return journal_objects(
        shard_id,
        None if manifest is None else manifest.journal,
        erasures,
        last_position=max([0, *ends]),
        closing=True,
    )


async def _put(ports: NodePorts, item: JournalObject) -> None:
    """Store an object named by its hash; one that is there already is the same."""
    try:
        await ports.store.put_new(item.name, item.data)
    except ConflictError:
        await recovery.fetch(ports.store, item.name, item.ref.sha256)
