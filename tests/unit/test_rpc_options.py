"""gRPC ignores options that it does not know, silently.

A misspelt one let routers close connections on which a training call had been quiet for 40 s.
"""

from pathlib import Path

from grpc._cython import cygrpc

from facegrid.rpc.channel import channel_options
from facegrid.rpc.server import server_options


def test_grpc_knows_every_option_that_is_set() -> None:
    known = Path(cygrpc.__file__).read_bytes()

    names = {name for name, _ in (*channel_options(), *server_options())}

    assert {name for name in names if name.encode() not in known} == set()
