"""Bytes at rest as pure functions: bytes to values and back, no I/O."""
