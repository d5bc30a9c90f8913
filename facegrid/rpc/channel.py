"""Channels: the one place that decides how facegrid's connections behave."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc
import grpc.aio

from facegrid import limits
from facegrid.errors import InvalidError

KEEPALIVE_INTERVAL_MS: Final = 10_000
"""How often a connection in use is asked whether its peer lives."""
KEEPALIVE_TIMEOUT_MS: Final = 5_000
PING_INTERVAL_MS_MIN: Final = 5_000
"""A server closes connections that ask more often; etcd has the same bound and cannot be told."""
RECONNECT_MS_MIN: Final = 100
RECONNECT_MS_MAX: Final = 2_000

assert KEEPALIVE_INTERVAL_MS >= 2 * PING_INTERVAL_MS_MIN, "etcd must never see too many pings"

Option = tuple[str, int | str]


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Where the PEM files of one identity lie."""

    ca: Path
    cert: Path
    key: Path


def channel_options() -> list[Option]:
    """Return the options of every channel, to etcd and to each other.

    Without `grpc.http2.ping_timeout_ms` a silent peer took 64 s to be noticed, whatever the two
    keepalive settings said. Retries belong to the caller, who knows what may be sent twice, and
    an HTTP proxy from the environment never stands between two processes of a cluster.
    """
    return [
        ("grpc.keepalive_time_ms", KEEPALIVE_INTERVAL_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.http2.ping_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", RECONNECT_MS_MIN),
        ("grpc.min_reconnect_backoff_ms", RECONNECT_MS_MAX),
        ("grpc.max_reconnect_backoff_ms", RECONNECT_MS_MAX),
        ("grpc.max_send_message_length", limits.CHANNEL_BYTES_MAX),
        ("grpc.max_receive_message_length", limits.CHANNEL_BYTES_MAX),
        ("grpc.enable_retries", 0),
        ("grpc.enable_http_proxy", 0),
        # Closing a channel closes its connection, and backoff is not shared with other channels.
        ("grpc.use_local_subchannel_pool", 1),
    ]


def open_channel(address: str, *, tls: TlsFiles | None = None) -> grpc.aio.Channel:
    """Return a channel to an address, host:port. It connects when first used.

    Raises:
        InvalidError: a TLS file cannot be read (TLS_FILE).
    """
    if tls is None:
        return grpc.aio.insecure_channel(address, options=channel_options())
    credentials = grpc.ssl_channel_credentials(_pem(tls.ca), _pem(tls.key), _pem(tls.cert))
    return grpc.aio.secure_channel(address, credentials, options=channel_options())


def _pem(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidError(
            f"tls file cannot be read: {error.strerror} path={path}",
            reason="TLS_FILE",
            field="tls",
        ) from error
