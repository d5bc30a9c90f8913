"""The form of object names, checked by every adapter before it touches anything."""

import re

from facegrid.errors import InvalidError

NAME_CHARS_MAX = 512
SEGMENT_CHARS_MAX = 200

_NAME = re.compile(r"(?!\.)[a-zA-Z0-9._-]+(/(?!\.)[a-zA-Z0-9._-]+)*")


def is_object_name(name: str) -> bool:
    """Tell whether a name is well-formed.

    Segments of [a-zA-Z0-9._-], divided by single slashes. No segment begins with a dot, so that no
    name leads out of the store or to what the store keeps for itself.
    """
    if len(name) > NAME_CHARS_MAX or _NAME.fullmatch(name) is None:
        return False
    return max(map(len, name.split("/"))) <= SEGMENT_CHARS_MAX


def check_object_name(name: str) -> None:
    """Raise InvalidError unless the name is well-formed (OBJECT_NAME_MALFORMED)."""
    if not is_object_name(name):
        raise InvalidError(
            f"object name is malformed name={name[:80]!r}",
            reason="OBJECT_NAME_MALFORMED",
            field="name",
        )


def check_prefix(prefix: str) -> None:
    """Raise InvalidError unless the prefix can begin a name (OBJECT_NAME_MALFORMED)."""
    if prefix:
        check_object_name(prefix.removesuffix("/"))


def check_nesting(name: str, *, taken: bool) -> None:
    """Raise InvalidError if an object's name would also be a folder's (OBJECT_NAME_NESTED)."""
    if taken:
        raise InvalidError(
            f"object name lies below another object, or above one name={name[:80]!r}",
            reason="OBJECT_NAME_NESTED",
            field="name",
        )
