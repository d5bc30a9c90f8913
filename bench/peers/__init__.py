"""facegrid beside what people would use instead: `make bench-peers`."""
