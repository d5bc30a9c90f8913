"""One shard in memory: what it holds, how it changes, and its form in the object store."""
