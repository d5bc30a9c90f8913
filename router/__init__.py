"""The router: fans probes out, merges the answers, sends writes to the primaries."""
