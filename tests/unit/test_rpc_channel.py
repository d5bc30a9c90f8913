"""Options that every connection has, and what they promise to etcd."""

from pathlib import Path

import pytest

from facegrid import InvalidError, TlsFiles, limits
from facegrid.rpc.channel import channel_options, open_channel
from facegrid.rpc.server import server_options


def test_a_dead_peer_is_noticed_within_seconds() -> None:
    """All three settings are needed: without the ping timeout it took 64 s."""
    options = dict(channel_options())
    assert options["grpc.keepalive_time_ms"] == 10_000
    assert options["grpc.keepalive_timeout_ms"] == 5_000
    assert options["grpc.http2.ping_timeout_ms"] == 5_000


def test_channels_never_ping_more_often_than_servers_and_etcd_permit() -> None:
    interval_ms = dict(channel_options())["grpc.keepalive_time_ms"]
    permitted_ms = dict(server_options())["grpc.http2.min_ping_interval_without_data_ms"]
    assert int(interval_ms) > int(permitted_ms) >= 5_000


def test_messages_up_to_the_channel_limit_pass_both_ends() -> None:
    for options in (dict(channel_options()), dict(server_options())):
        assert options["grpc.max_send_message_length"] == limits.CHANNEL_BYTES_MAX
        assert options["grpc.max_receive_message_length"] == limits.CHANNEL_BYTES_MAX


async def test_a_tls_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "ca.pem"
    with pytest.raises(InvalidError, match=f"path={missing}"):
        open_channel("127.0.0.1:1", tls=TlsFiles(missing, missing, missing))
