"""Snapshots of galleries: docs/rfcs/0008-snapshots.md has the protocol."""
