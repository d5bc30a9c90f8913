"""One channel per address, shared by everybody in the process."""

import asyncio

import grpc.aio

from facegrid.errors import UnavailableError
from facegrid.rpc.channel import TlsFiles, open_channel


class ChannelPool:
    """Opens a channel when an address is first asked for and keeps it until closed."""

    def __init__(self, tls: TlsFiles | None = None) -> None:
        self._tls = tls
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._closed = False

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

    async def aclose(self) -> None:
        """Close all channels and cancel their calls. Closing again does nothing."""
        self._closed = True
        channels, self._channels = self._channels, {}
        async with asyncio.TaskGroup() as group:
            for channel in channels.values():
                group.create_task(channel.close())
