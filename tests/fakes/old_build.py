"""A node or router as it was before galleries could change their shape.

    python -m tests.fakes.old_build indexd|router SETTINGS...

It is started in the place of indexd or router. It serves none of the rpcs that came with that,
says nothing in the fields that did, heeds none of them, and refuses records that need it.
"""

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import grpc

import facegrid

OLD_VERSION = "0.0.9"
OLD_RPCS = {
    "facegrid.api.shard.v1.ShardService": {
        *("Append", "Check", "Erase", "Load", "Search", "Compare", "Get", "Sample", "Train"),
        *("Reach", "Status"),
    },
    "facegrid.api.v1.IdentificationService": {"Identify", "Verify"},
    "facegrid.api.admin.v1.AdminService": {"ClusterStatus", "TakeOver", "Load"},
}
NEW_FIELDS = {
    "StatusResponse": ("memory_total_bytes", "memory_available_bytes", "zone", "cpu_ms"),
    "ShardStatus": ("confirmed", "map_version", "sources", "stored_bytes"),
    "Refused": ("map_version",),
}


def forget(message: Any) -> None:
    """Clear the fields of a message that an old process does not know."""
    for field in NEW_FIELDS.get(type(message).__name__, ()):
        message.ClearField(field)
    for descriptor, value in message.ListFields():
        if descriptor.message_type is not None:
            for one in value if descriptor.is_repeated else (value,):
                forget(one)


class OldServer:
    """Stands for a server, and takes only what there was."""

    def __init__(self, server: Any) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, _handlers: object) -> None:
        """Wait for them under their names."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """Add those that an old process has."""
        known = {
            name: handler._replace(response_serializer=forgetful(handler.response_serializer))
            for name, handler in handlers.items()
            if name in OLD_RPCS[service]
        }
        generic = grpc.method_handlers_generic_handler(service, known)
        self._server.add_generic_rpc_handlers((generic,))


def forgetful(serialize: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
    """Return what serializes messages without new fields."""

    def old(message: Any) -> bytes:
        forget(message)
        return serialize(message)

    return old


@contextmanager
def telling_nothing(*_: object) -> Iterator[None]:
    """Add nothing to errors."""
    yield


def put(module: str, **values: object) -> None:
    """Put something else in the place of names of a module."""
    loaded = importlib.import_module(module)
    for name, value in values.items():
        assert hasattr(loaded, name), f"{module} has no {name} any more"
        setattr(loaded, name, value)


def old_adder(module: str, name: str) -> None:
    """Let a composition root add a service as it was."""
    real = getattr(importlib.import_module(module), name)
    put(module, **{name: lambda servicer, server: real(servicer, OldServer(server))})


def main() -> None:
    """Run an old process."""
    kind = sys.argv.pop(1)
    facegrid.__version__ = OLD_VERSION
    put("facegrid.format.checks", FEATURES_KNOWN=frozenset())
    if kind == "indexd":
        put("indexd.service.shard_service", telling_map=telling_nothing)
        old_adder("indexd.server", "add_ShardServiceServicer_to_server")
    else:
        for module in ("router.dispatch.map_news", "router.dispatch.primaries"):
            put(module, told_version=lambda _errors: 0)
        old_adder("router.server", "add_AdminServiceServicer_to_server")
        old_adder("router.server", "add_IdentificationServiceServicer_to_server")
    sys.exit(importlib.import_module(f"{kind}.__main__").main())


if __name__ == "__main__":
    main()
