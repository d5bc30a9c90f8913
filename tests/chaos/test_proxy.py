"""The proxies of `make chaos`: what passes, and what does not."""

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from bench.chaos.proxy import Proxies


@pytest.fixture
def echo() -> Iterator[str]:
    """Serve one connection after the other: every byte comes back."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                # A link that is cut resets the connection, also under whoever waits here.
                with connection, contextlib.suppress(ConnectionError):
                    while data := connection.recv(100):
                        connection.sendall(data)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)
    thread.join()


@pytest.fixture
def proxies() -> Iterator[Proxies]:
    with Proxies() as proxies:
        yield proxies


def connect(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=5)


def test_bytes_pass_until_the_link_is_held_and_come_when_it_heals(
    proxies: Proxies, echo: str
) -> None:
    with connect(proxies.open("n1", echo)) as near:
        near.sendall(b"before")
        assert near.recv(100) == b"before"

        proxies.change("n1", lambda link: link.hold())
        near.sendall(b"during")
        near.settimeout(0.1)
        with pytest.raises(TimeoutError):
            near.recv(100)

        proxies.change("n1", lambda link: link.heal())
        near.settimeout(5)
        assert near.recv(100) == b"during"


def test_a_link_held_in_one_direction_lets_questions_pass_and_no_answers(
    proxies: Proxies, echo: str
) -> None:
    with connect(proxies.open("n1", echo)) as near:
        proxies.change("n1", lambda link: link.hold("back"))
        near.sendall(b"asked")
        near.settimeout(0.1)
        with pytest.raises(TimeoutError):
            near.recv(100)

        proxies.change("n1", lambda link: link.hold("there"))
        near.sendall(b" again")
        proxies.change("n1", lambda link: link.heal())
        near.settimeout(5)
        assert near.recv(5) == b"asked"


def test_a_cut_link_resets_what_is_open_and_refuses_what_is_new(
    proxies: Proxies, echo: str
) -> None:
    address = proxies.open("n1", echo)
    with connect(address) as near:
        near.sendall(b"x")
        assert near.recv(1) == b"x"
        proxies.change("n1", lambda link: link.cut())
        assert ended(near)
    with connect(address) as refused:
        assert ended(refused)

    proxies.change("n1", lambda link: link.heal())
    with connect(address) as again:
        again.sendall(b"y")
        assert again.recv(1) == b"y"


def ended(connection: socket.socket) -> bool:
    """Tell whether the other side ends the connection, orderly or not."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def test_a_link_to_where_nobody_listens_ends_at_once(proxies: Proxies) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        address = f"127.0.0.1:{gone.getsockname()[1]}"

    with connect(proxies.open("n1", address)) as near:
        assert ended(near)
