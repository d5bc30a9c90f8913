"""The object store: its port and adapters."""
