"""Whether an address of this machine can be had."""

import socket


def is_free(address: str) -> bool:
    """Tell whether a process could listen at an address, host:port, of this machine now."""
    host, _, port = address.rpartition(":")
    with socket.socket() as trial:
        # As servers do: connections of a process that has ended do not count.
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((host, int(port)))
        except OSError:
            return False
    return True
