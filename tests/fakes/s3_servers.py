"""Real S3 servers for tests: moto, which keeps conditions, and s3rver, which ignores them."""

import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest

from facegrid.clock import SystemClock
from fgctl.local.etcd import free_ports
from fgctl.local.processes import wait_until

BUCKET = "facegrid"
START_S = 60.0
INSTALL_S = 100.0
MOTO = Path(__file__).with_name("moto_server.py")
UNREACHABLE = ("ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ETIMEDOUT")
"""What npm says when it has no network."""

_prefixes = count(1)


@dataclass(frozen=True, slots=True)
class S3Server:
    """A running server with one bucket."""

    endpoint: str

    def url(self, prefix: str = "", **options: object) -> str:
        """Return the address of a part of the bucket; without a prefix one that nobody had."""
        more = "".join(f"&{name}={value}" for name, value in options.items())
        prefix = prefix or f"test{next(_prefixes)}"
        return f"s3://{BUCKET}/{prefix}?endpoint={self.endpoint}&allow_http=1{more}"


@contextmanager
def moto(folder: Path) -> Iterator[S3Server]:
    """Run moto's server, which answers one request at a time, with a bucket."""
    port = next(free_ports())
    argv = [sys.executable, str(MOTO), str(port)]
    with _running(argv, port, folder / "moto.log") as endpoint:
        put = urllib.request.Request(f"{endpoint}/{BUCKET}", method="PUT")
        with urllib.request.urlopen(put, timeout=START_S):
            pass
        yield S3Server(endpoint)


@contextmanager
def s3rver(folder: Path) -> Iterator[S3Server]:
    """Install s3rver from npm into a folder and run it, with a bucket; skip without npm."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("needs npm, which brings s3rver")
    quiet = ("--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error")
    install = [npm, "install", *quiet, "--prefix", str(folder)]
    installed = subprocess.run(
        [*install, "s3rver@3.7.1"], capture_output=True, text=True, timeout=INSTALL_S, check=False
    )
    if any(code in installed.stderr for code in UNREACHABLE):
        pytest.skip("needs npm's registry, which cannot be reached from here")
    assert installed.returncode == 0, f"npm could not install s3rver: {installed.stderr}"
    port = next(free_ports())
    argv = [
        str(folder / "node_modules" / ".bin" / "s3rver"),
        *("--directory", str(folder / "objects"), "--address", "127.0.0.1", "--port", str(port)),
        *("--allow-mismatched-signatures", "--no-vhost-buckets", "--configure-bucket", BUCKET),
    ]
    with _running(argv, port, folder / "s3rver.log") as endpoint:
        yield S3Server(endpoint)


@contextmanager
def _running(argv: Sequence[str], port: int, log: Path) -> Iterator[str]:
    """Run a server until the end of the block; it has answered once when the block begins."""
    with log.open("wb") as said, subprocess.Popen(argv, stdout=said, stderr=said) as server:
        try:

            def problem() -> str:
                if server.poll() is not None:
                    return ""
                with socket.socket() as trial:
                    return "starting" if trial.connect_ex(("127.0.0.1", port)) else ""

            late = wait_until(problem, timeout_s=START_S, clock=SystemClock())
            ended = server.poll() is not None
            assert not late, f"{argv[0]} did not start in time"
            assert not ended, f"{argv[0]} ended: {log.read_text()}"
            yield f"http://127.0.0.1:{port}"
        finally:
            server.kill()
