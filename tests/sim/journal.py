"""Whether an erasure journal in the store has every erasure that was committed."""

from collections.abc import Mapping, Sequence

from facegrid.format.erasures import (
    Erasure,
    JournalRef,
    decode_journal,
    journal_name,
    parse_journal_name,
)


def problem(
    shard_id: str,
    committed: Sequence[Erasure],
    contents: Mapping[str, bytes],
    *,
    known: set[str],
    ref: JournalRef | None,
    position: int,
) -> str:
    """Say what a journal lacks up to a position; empty when nothing.

    Args:
        shard_id: whose it is.
        committed: erasures of the shard, by rising position.
        contents: every object that was ever stored, by name.
        known: objects found right before; the walk back ends there.
        ref: the journal's end.
        position: how far the log it stands for goes.
    """
    at = position
    while ref is not None or at:
        last = 0 if ref is None else ref.last_position
        if [one for one in committed if last < one.position <= at]:
            return f"erasures behind {last} up to {at} are not in it"
        if ref is None or ref.sha256 in known:
            return ""
        data = contents.get(journal_name(shard_id, ref))
        if data is None:
            return f"not stored: {ref}"
        journal = decode_journal(data)
        begins = 0 if journal.predecessor is None else journal.predecessor.last_position
        if list(journal.erasures) != [one for one in committed if begins < one.position <= last]:
            return f"other erasures than were committed: {journal}"
        known.add(ref.sha256)
        ref, at = journal.predecessor, begins
    return ""


def closing(contents: Mapping[str, bytes], shard_id: str) -> JournalRef | None:
    """Return the object that closes a shard's journal."""
    for name in sorted(contents, reverse=True):
        parsed = parse_journal_name(name)
        if parsed is not None and parsed[1] == shard_id and decode_journal(contents[name]).closing:
            return parsed[2]
    return None
