"""Decisions as pure functions: where shards go, whom to ask, what an answer amounts to."""
