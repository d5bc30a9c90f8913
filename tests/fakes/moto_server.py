"""moto's S3 server, one request at a time: `python tests/fakes/moto_server.py PORT`.

moto looks whether a name is free and then writes, without a lock: of several requests that ask for
one new name, two may be told that they have it. A store that does so is one that facegrid refuses,
and rightly; so the requests wait here for each other.
"""

import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, run_simple

HOST = "127.0.0.1"


class OneByOne:
    """Hands requests to an application one after the other."""

    def __init__(self, app: Callable[..., Iterable[bytes]]) -> None:
        self._app = app
        self._lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        """Answer a request, with all of its body."""
        with self._lock:
            return list(self._app(environ, start_response))


class Quiet(WSGIRequestHandler):
    """Says nothing of each request."""

    def log_request(self, *_: object) -> None:
        """Say nothing."""


if __name__ == "__main__":
    run_simple(
        HOST,
        int(sys.argv[1]),
        OneByOne(DomainDispatcherApplication(create_backend_app)),
        threaded=True,
        request_handler=Quiet,
    )
