"""Random faults under mixed load, and an audit of what was acknowledged: `make chaos`."""
