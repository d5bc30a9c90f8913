"""Errors, told apart by what the caller does next.

    FacegridError            something broke that should not; report it
    ├── InvalidError         the request is wrong: change it
    │   ├── ConflictError    it contradicts what is there already
    │   └── PreconditionError  it fits, but not as things stand: look what stands in its way
    ├── NotFoundError        what it names does not exist
    ├── FencedError          somebody newer took over: read the map again, then retry
    ├── UnavailableError     not now: retry
    │   └── DeadlineError    not in the time given
    ├── OverloadedError      too much at once: slow down, then retry
    └── CorruptError         stored bytes are damaged: nothing was served from them

Facts go into attributes, never only into the sentence. `facegrid.rpc.status` holds the one table
that turns these into gRPC status codes and back.
"""


class FacegridError(Exception):
    """Base of every error that facegrid raises.

    Args:
        message: one sentence, lowercase, no full stop, variables last as key=value.
        reason: a stable name in CAPITALS that programs may test.
        facts: what the message is about; keys used across facegrid are row, field, limit, gallery,
            shard, node. Values are text, since they travel as gRPC error metadata.
    """

    default_reason = "INTERNAL"

    def __init__(self, message: str, *, reason: str = "", **facts: object) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason
        self.facts: dict[str, str] = {key: str(value) for key, value in facts.items()}

    @property
    def row(self) -> int | None:
        """The 0-based row of the request that was refused, where one was."""
        return int(self.facts["row"]) if "row" in self.facts else None


class InvalidError(FacegridError):
    """The request is wrong; nothing was changed; the same request will be refused again."""

    default_reason = "INVALID"


class ConflictError(InvalidError):
    """The request contradicts what is stored; nothing was changed."""

    default_reason = "CONFLICT"


class PreconditionError(InvalidError):
    """The request makes sense, but not as things stand; nothing was changed."""

    default_reason = "FAILED_PRECONDITION"


class NotFoundError(FacegridError):
    """What the request names does not exist."""

    default_reason = "NOT_FOUND"


class FencedError(FacegridError):
    """A newer primary or a newer map rules; read the map again, retry with the same request id."""

    default_reason = "FENCED"


class UnavailableError(FacegridError):
    """A part of the cluster cannot be reached now; retrying may succeed."""

    default_reason = "UNAVAILABLE"


class DeadlineError(UnavailableError):
    """The time given was not enough. A write may or may not have happened: retry with its id."""

    default_reason = "DEADLINE_EXCEEDED"


class OverloadedError(FacegridError):
    """A bounded queue is full; slow down, then retry."""

    default_reason = "OVERLOADED"


class CorruptError(FacegridError):
    """Stored bytes do not match their checksum, their format or what names them."""

    default_reason = "CORRUPT"
