"""A small S3 server in a thread, which refuses, loses answers or stays silent as a script says."""

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

BUCKET = "facegrid"


@dataclass(frozen=True, slots=True)
class Status:
    """Answer a request with a status and S3's code; it has no effect."""

    status: int
    code: str = ""


@dataclass(frozen=True, slots=True)
class LoseAnswer:
    """Do what is asked and hang up."""


@dataclass(frozen=True, slots=True)
class HangUp:
    """Hang up at once."""


@dataclass(frozen=True, slots=True)
class StaySilent:
    """Do nothing and say nothing."""


@dataclass(frozen=True, slots=True)
class Serve:
    """Do what is asked."""


Step = Status | LoseAnswer | HangUp | StaySilent | Serve


class FaultyS3(ThreadingHTTPServer):
    """Puts with conditions, gets and deletions. Sound when the script has ended.

    Attributes:
        objects: what is stored, by name.
        requests: method and name of each request, in order.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, script: Iterable[Step]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script = deque(script)
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.lock = threading.Lock()
        self.closing = threading.Event()

    @property
    def url(self) -> str:
        """The address of its bucket."""
        host, port = self.server_address[:2]
        return f"s3://{BUCKET}?endpoint=http://{host!s}:{port}&allow_http=1"


class _Handler(BaseHTTPRequestHandler):
    server: FaultyS3
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm: ClassVar[bool] = True

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _serve(self) -> None:
        data = self.rfile.read(int(self.headers.get("content-length") or 0))
        name = self.path.partition("?")[0].removeprefix(f"/{BUCKET}/")
        with self.server.lock:
            self.server.requests.append(f"{self.command} {name}")
            step = self.server.script.popleft() if self.server.script else Serve()
        match step:
            case Status():
                self._answer(step.status, f"<Error><Code>{step.code}</Code></Error>".encode())
            case LoseAnswer():
                self._done(name, data)
                self.close_connection = True
            case HangUp():
                self.close_connection = True
            case StaySilent():
                self.server.closing.wait()
                self.close_connection = True
            case Serve():
                self._answer(*self._done(name, data))

    do_GET = do_PUT = do_DELETE = _serve  # noqa: N815 - the standard library wants these names

    def _done(self, name: str, data: bytes) -> tuple[int, bytes]:
        objects = self.server.objects
        with self.server.lock:
            match self.command:
                case "PUT" if name in objects and self.headers.get("if-none-match") == "*":
                    return 412, b"<Error><Code>PreconditionFailed</Code></Error>"
                case "PUT":
                    objects[name] = data
                    return 200, b""
                case "GET" if name in objects:
                    return 200, objects[name]
                case "GET":
                    return 404, b"<Error><Code>NoSuchKey</Code></Error>"
                case _:
                    objects.pop(name, None)
                    return 204, b""

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("etag", '"1"')
        self.send_header("last-modified", "Sun, 22 Nov 2026 12:00:00 GMT")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def faulty_s3(*script: Step) -> Iterator[FaultyS3]:
    """Run a server that plays a script."""
    with FaultyS3(script) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.closing.set()
            server.shutdown()
            thread.join()
