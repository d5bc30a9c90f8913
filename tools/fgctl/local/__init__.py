"""Starts and stops a whole cluster on this machine."""
