"""The node's gRPC face: check, call, translate."""
