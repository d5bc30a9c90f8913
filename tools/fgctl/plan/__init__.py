"""Capacity planning: what a gallery needs, computed from what was measured on a machine."""
