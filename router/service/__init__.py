"""The gRPC faces: check, call, translate."""
