"""Carries searches and writes to the nodes and brings their answers together."""
