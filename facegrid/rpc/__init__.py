"""gRPC plumbing shared by every process and the client."""
