"""The object store in a bucket of Amazon S3, or of anything that speaks its protocol.

put_new sends If-None-Match: *, so the store itself refuses a name that is taken. Nothing is tried
twice here, also not by obstore beneath: a request that took effect and whose answer was lost would
be refused on its second try by its own first one, and who won could no longer be told. Trying
again is the business of `facegrid.blob.retrying`, which reads back.

obstore says what went wrong in prose alone; `_fault` is the one place that reads it, and
tests/unit/test_blob_s3.py holds it to the answers of a real HTTP server.
"""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final, Self

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import S3Store as Bucket

from facegrid import limits
from facegrid.blob.names import check_object_name, check_prefix, is_object_name
from facegrid.blob.s3_address import S3Address
from facegrid.errors import (
    ConflictError,
    FacegridError,
    InvalidError,
    NotFoundError,
    OverloadedError,
    UnavailableError,
)

if TYPE_CHECKING:  # obstore has this type in its stubs alone
    from obstore.store import S3Config

CONNECT_TIMEOUT_S: Final = 5

_STATUS: Final = re.compile(r"status code: (\d{3})")
_CODE: Final = re.compile(r"<Code>([A-Za-z]{1,64})</Code>")
_CAUSE: Final = re.compile(r'(?<=message: ")[^"]{1,100}|(?<=error: ")[^"]{1,100}|TimedOut')
_METADATA_PATH: Final = "/latest/api/token"
"""Where obstore looks for credentials when the environment has none."""
_NO_CREDENTIALS: Final = "NoCredentials"
_EXISTS: Final = 412
_MISSING_CODE: Final = "NoSuchKey"
"""Without it a 404 does not come from a store, and says nothing about an object."""
_REASON_OF_STATUS: Final = {429: "STORE_BUSY", 503: "STORE_BUSY", 507: "STORE_FULL"}
_REASON_OF_CODE: Final = {
    _NO_CREDENTIALS: "STORE_DENIED",
    "NoSuchBucket": "STORE_BUCKET_UNKNOWN",
    "QuotaExceeded": "STORE_FULL",
    "SlowDown": "STORE_BUSY",
    "XMinioStorageFull": "STORE_FULL",
}
_WORDS: Final = {
    "STORE_BUCKET_UNKNOWN": "has no such bucket",
    "STORE_BUSY": "asks to slow down",
    "STORE_CONTENDED": "works on this name already",
    "STORE_DENIED": "denies access",
    "STORE_FAILED": "does not serve",
    "STORE_FULL": "is full",
}


class S3Store:
    """A BlobStore in a bucket.

    Names may lie below other names here: S3 has no folders. Only the directory store and the twin
    refuse that, so that nobody comes to rely on it.

    obstore takes credentials from the environment: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
    AWS_SESSION_TOKEN, or those of a container, a web identity or the machine.

    Raises:
        InvalidError: obstore cannot do with what the environment says (STORE_SETTINGS).
    """

    def __init__(self, address: S3Address) -> None:
        self._address = address
        try:
            self._bucket = _bucket(address)
        except (BaseError, ValueError) as error:
            raise InvalidError(
                f"settings of the S3 store do not do: {str(error).splitlines()[0]}",
                reason="STORE_SETTINGS",
                field="store",
            ) from error
        self._slots = asyncio.Semaphore(limits.STORE_REQUESTS_MAX)
        self._waiting_count = 0

    async def put_new(self, name: str, data: bytes) -> None:
        """Store an object durably under a name never used before. See BlobStore.

        Raises:
            OverloadedError: the store asks to slow down, or too many requests wait here.
        """
        check_object_name(name)
        async with self._slot(), self._translated("put", name):
            await obstore.put_async(self._bucket, name, data, mode="create", use_multipart=False)

    async def get(self, name: str) -> bytes:
        """Return an object's bytes. See BlobStore."""
        check_object_name(name)
        async with self._slot(), self._translated("get", name):
            answer = await obstore.get_async(self._bucket, name)
            return bytes(await answer.bytes_async())

    async def list(self, prefix: str) -> Sequence[str]:
        """Return the names that begin with a prefix, sorted. See BlobStore."""
        check_prefix(prefix)
        # obstore matches whole segments only, so the folder is listed and its names are chosen.
        folder = prefix.rpartition("/")[0]
        found: list[str] = []
        async with self._slot(), self._translated("list", prefix):
            async for page in obstore.list(self._bucket, folder or None):
                found += [entry["path"] for entry in page]
        return sorted(name for name in found if name.startswith(prefix) and is_object_name(name))

    async def delete(self, name: str) -> None:
        """Delete an object durably. See BlobStore."""
        check_object_name(name)
        # Some stores say 404 for what is not there, and that is no error.
        with contextlib.suppress(NotFoundError):
            async with self._slot(), self._translated("delete", name):
                await obstore.delete_async(self._bucket, name)

    @contextlib.asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        """Wait for one of the requests that may run at once."""
        if self._waiting_count >= limits.STORE_WAITING_MAX:
            raise OverloadedError(
                f"too many requests wait for the store limit={limits.STORE_WAITING_MAX}",
                reason="STORE_QUEUE_FULL",
                limit="STORE_WAITING_MAX",
            )
        self._waiting_count += 1
        try:
            await self._slots.acquire()
        finally:
            self._waiting_count -= 1
        try:
            yield
        finally:
            self._slots.release()

    @contextlib.asynccontextmanager
    async def _translated(self, action: str, name: str) -> AsyncIterator[None]:
        """Turn errors of obstore into the port's."""
        try:
            yield
        except (BaseError, OSError) as error:
            raise _fault(error, action, name, self._address) from error


def _bucket(address: S3Address) -> Bucket:
    # What must hold is said here, so that no variable of the environment takes it away.
    config: S3Config = {
        "region": address.region,
        "virtual_hosted_style_request": address.virtual_hosted,
        "conditional_put": "etag",
        "disable_bulk_delete": True,
    }
    if address.endpoint:
        config["endpoint"] = address.endpoint
    return Bucket(
        bucket=address.bucket,
        prefix=address.prefix or None,
        config=config,
        client_options={
            "allow_http": address.allow_http,
            "connect_timeout": timedelta(seconds=min(CONNECT_TIMEOUT_S, address.timeout_s)),
            "timeout": timedelta(seconds=address.timeout_s),
        },
        retry_config={"max_retries": 0, "retry_timeout": timedelta(seconds=address.timeout_s)},
    )


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a store said when it refused: an HTTP status, 0 for none, and S3's own code."""

    status: int
    code: str
    sentence: str

    @classmethod
    def read_from(cls, error: Exception) -> Self:
        """Find the answer in obstore's prose."""
        # What follows is a dump of the request; the answer's body may repeat what was signed.
        text, _, dump = str(error).partition("\n\nDebug source")
        if _METADATA_PATH in text:
            return cls(0, _NO_CREDENTIALS, "no credentials, AWS_ACCESS_KEY_ID is not set")
        status, code = _STATUS.search(text), _CODE.search(text)
        said = [found[1] for found in (status, code) if found is not None]
        if not said:
            # Neither: the last words of the sentence, and the cause, which only the dump has.
            cause = _CAUSE.search(dump)
            said = [text.partition("\n")[0].rpartition(" - ")[2], cause[0] if cause else ""]
        return cls(
            status=int(status[1]) if status else 0,
            code=code[1] if code else "",
            sentence=" ".join(filter(None, said)),
        )


def _fault(error: Exception, action: str, name: str, address: S3Address) -> FacegridError:
    """Return the port's error for one of obstore's."""
    answer = _Answer.read_from(error)
    if isinstance(error, FileNotFoundError) and answer.code == _MISSING_CODE and action != "put":
        return NotFoundError(f"no such object name={name}", reason="OBJECT_UNKNOWN", name=name)
    exists = isinstance(error, AlreadyExistsError | PreconditionError)
    if exists and answer.status == _EXISTS:
        return ConflictError(f"object exists name={name}", reason="OBJECT_EXISTS", name=name)
    reason = _reason(error, answer)
    kind = OverloadedError if reason == "STORE_BUSY" else UnavailableError
    return kind(
        f"store {_WORDS[reason]} action={action} name={name} store={address.place}:"
        f" {answer.sentence}",
        reason=reason,
        store=address.place,
        name=name,
    )


def _reason(error: Exception, answer: _Answer) -> str:
    """Return what keeps a store from doing its work."""
    match error:
        case AlreadyExistsError() | PreconditionError():
            # 409: another request for the name is on its way, and nobody knows yet who wins.
            return "STORE_CONTENDED"
        case PermissionDeniedError() | UnauthenticatedError():
            return "STORE_DENIED"
        case _:
            by_status = _REASON_OF_STATUS.get(answer.status, "STORE_FAILED")
            return _REASON_OF_CODE.get(answer.code, by_status)
