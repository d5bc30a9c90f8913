"""The context of a call that nobody made over the network."""

from typing import Any


class Caller:
    """Has no deadline."""

    def time_remaining(self) -> None:
        return None

    def peer(self) -> str:
        return "test"


CALLER: Any = Caller()
