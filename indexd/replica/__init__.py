"""Replicas of shards: who may write, how writes are committed, what a node holds."""
