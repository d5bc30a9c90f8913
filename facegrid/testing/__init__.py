"""Twins of the adapters and synthetic galleries, for tests and benchmarks."""
