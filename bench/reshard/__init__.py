"""Changing the shape of a cluster under load: `make reshard-check`."""
