"""Rows brought into a gallery around the log: segments are stored, then committed by shard.

For `fgctl load`, and for whatever else makes segments by itself. docs/rfcs/0007-bulk-load.md has
the protocol. In short, for each shard: `build_segment` for the rows, `LoadStore.put` for each
segment, `LoadCommitter.commit` for all of them, `LoadStore.unpin`. Each of these may be repeated.
"""
