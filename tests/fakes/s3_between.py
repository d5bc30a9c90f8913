"""A gateway in front of an S3 server that refuses, loses answers, dawdles or drops conditions."""

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

BUSY = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
HOP_BY_HOP = frozenset({"connection", "transfer-encoding", "content-length", "keep-alive"})


@dataclass
class Faults:
    """What the gateway does to requests; tests change it while it serves.

    Attributes:
        refuse: answer every request with 503.
        lose_puts: carry out so many puts and hang up instead of answering.
        delay_s: let each request wait before it is handed on.
        careless: take away the condition that a name be new.
        away: hang up on every connection.
    """

    refuse: bool = False
    lose_puts: int = 0
    delay_s: float = 0.0
    careless: bool = False
    away: bool = False


class Between(ThreadingHTTPServer):
    """Hands requests on to another server, as far as its faults let it.

    Attributes:
        faults: see Faults.
        lost: names of the puts whose answers were lost.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, endpoint: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = endpoint.removeprefix("http://")
        self.faults = Faults()
        self.lost: list[str] = []
        self.lock = threading.Lock()
        self.hurried = threading.Event()

    @property
    def endpoint(self) -> str:
        """Where it is reached."""
        host, port = self.server_address[:2]
        return f"http://{host!s}:{port}"

    def hurry(self) -> None:
        """Let all requests that wait be handed on now, as if their time had passed."""
        with self.lock:
            before, self.hurried = self.hurried, threading.Event()
        before.set()

    def loses(self, name: str) -> bool:
        """Tell whether the answer to this put is to be lost, and count it."""
        with self.lock:
            if not self.faults.lose_puts:
                return False
            self.faults.lose_puts -= 1
            self.lost.append(name)
            return True


class _Handler(BaseHTTPRequestHandler):
    server: Between
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm: ClassVar[bool] = True

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _serve(self) -> None:
        faults = self.server.faults
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        if faults.away:
            self.close_connection = True
            return
        if faults.delay_s:
            self.server.hurried.wait(faults.delay_s)
        if faults.refuse:
            self._answer(503, [], BUSY)
            return
        status, headers, answer = self._handed_on(body)
        if self.command == "PUT" and status == 200 and self.server.loses(self.path):
            self.close_connection = True
            return
        self._answer(status, headers, answer)

    do_GET = do_PUT = do_DELETE = do_HEAD = do_POST = _serve  # noqa: N815 - names of the library

    def _handed_on(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        headers = dict(self.headers.items())
        if self.server.faults.careless:
            headers = {k: v for k, v in headers.items() if k.lower() != "if-none-match"}
        upstream = http.client.HTTPConnection(self.server.upstream, timeout=60)
        try:
            upstream.request(self.command, self.path, body=body, headers=headers)
            answer = upstream.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            upstream.close()

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers:
            if name.lower() not in HOP_BY_HOP:
                self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def between(endpoint: str) -> Iterator[Between]:
    """Run a gateway in front of an S3 server."""
    with Between(endpoint) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.hurry()
            server.shutdown()
            thread.join()
