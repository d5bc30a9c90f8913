"""What is compiled: the same as its NumPy counterpart, bit for bit, and several times as fast."""
