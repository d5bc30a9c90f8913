"""The parts of a search and of a write, one by one, with pytest-benchmark: `make bench-parts`."""
