"""One channel per address, shared by everybody in the process."""

import asyncio
from collections.abc import Collection

import grpc.aio

from facegrid.errors import UnavailableError
from facegrid.rpc.channel import TlsFiles, open_channel

GRACE_S = 30.0
"""How long calls on their way may take to end when their channel is let go."""


class ChannelPool:
    """Opens a channel when an address is first asked for, and keeps it until closed or let go."""

    def __init__(self, tls: TlsFiles | None = None) -> None:
        self._tls = tls
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._unnamed: set[str] = set()
        self._closed = False

    def __len__(self) -> int:
        """Return how many channels there are."""
        return len(self._channels)

    def get(self, address: str) -> grpc.aio.Channel:
        """Return the channel to host:port.

        Raises:
            UnavailableError: the pool is closed (CLOSED).
        """
        if self._closed:
            raise UnavailableError("connections are closed", reason="CLOSED")
        channel = self._channels.get(address)
        if channel is None:
            channel = self._channels[address] = open_channel(address, tls=self._tls)
        return channel

    async def keep(self, addresses: Collection[str]) -> set[str]:
        """Let go of channels to addresses that are named neither now nor the last time; return
        those. Calls on their way may end. An address that is asked for again gets a new channel.
        """
        unnamed = self._channels.keys() - set(addresses)
        gone, self._unnamed = unnamed & self._unnamed, unnamed - self._unnamed
        channels = [self._channels.pop(address) for address in sorted(gone)]
        async with asyncio.TaskGroup() as group:
            for channel in channels:
                group.create_task(channel.close(GRACE_S))
        return gone

    async def aclose(self) -> None:
        """Close all channels and cancel their calls. Closing again does nothing."""
        self._closed = True
        channels, self._channels = self._channels, {}
        async with asyncio.TaskGroup() as group:
            for channel in channels.values():
                group.create_task(channel.close())
