"""Adapters: one small class for each system, imported by its own worker process only."""
