"""What a transaction may look like, checked before it is sent, alike for etcd and its twin."""

from collections.abc import Sequence

from facegrid import limits
from facegrid.coord.port import Delete, Guard, Put, ValueGuard
from facegrid.errors import InvalidError


def check_transaction(
    guards: Sequence[Guard | ValueGuard], operations: Sequence[Put | Delete]
) -> None:
    """Raise InvalidError if etcd would refuse the transaction's form: too long, or a key twice."""
    longest = max(len(guards), len(operations))
    if longest > limits.ETCD_TXN_OPERATIONS_MAX:
        raise InvalidError(
            f"transaction is too long operations={longest} limit={limits.ETCD_TXN_OPERATIONS_MAX}",
            reason="TXN_TOO_LONG",
            limit="ETCD_TXN_OPERATIONS_MAX",
        )
    seen: set[str] = set()
    for operation in operations:
        if operation.key in seen:
            raise InvalidError(
                f"transaction writes a key twice key={operation.key}", reason="TXN_KEY_TWICE"
            )
        seen.add(operation.key)


def check_names(names: Sequence[str]) -> None:
    """Raise InvalidError if these are more keys than one transaction reads."""
    if len(names) > limits.ETCD_TXN_OPERATIONS_MAX:
        raise InvalidError(
            f"too many keys in one read keys={len(names)} limit={limits.ETCD_TXN_OPERATIONS_MAX}",
            reason="TXN_TOO_LONG",
            limit="ETCD_TXN_OPERATIONS_MAX",
        )
