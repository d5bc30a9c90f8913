"""A power cut: what a directory store was never told to sync is gone, or torn."""

from pathlib import Path


def cut(store: Path, journal: Path) -> list[str]:
    """Do to a store what a power cut does, by the journal that `other_node --disk` has kept.

    A file whose content was not synced is cut in half; one whose name was not is gone. The node
    must be dead. Returns the names of the objects that were hurt.
    """
    lines = journal.read_text(encoding="utf-8").splitlines() if journal.exists() else []
    kept = set(lines)
    hurt = []
    for path in sorted(store.rglob("*")):
        if not path.is_file() or ".tmp" in path.parts:
            continue
        name = path.relative_to(store).as_posix()
        if f"entry {path.parent.stat().st_ino} {path.name}" not in kept:
            path.unlink()
            hurt.append(name)
        elif f"file {path.stat().st_ino}" not in kept:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
            hurt.append(name)
    return hurt
