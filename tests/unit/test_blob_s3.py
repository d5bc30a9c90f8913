"""The S3 store against a real HTTP server that misbehaves, and what its URLs may say."""

import asyncio

import pytest

from facegrid import limits
from facegrid.blob.open import connect, open_store
from facegrid.blob.retrying import RetryingStore
from facegrid.blob.s3 import S3Store
from facegrid.blob.s3_address import S3Address, parse_s3_url
from facegrid.errors import (
    ConflictError,
    FacegridError,
    InvalidError,
    NotFoundError,
    OverloadedError,
    UnavailableError,
)
from facegrid.retry import Backoff
from facegrid.testing.skipping_clock import SkippingClock
from tests.fakes.faulty_s3 import (
    FaultyS3,
    HangUp,
    LoseAnswer,
    Serve,
    Status,
    StaySilent,
    Step,
    faulty_s3,
)
from tests.fakes.s3_servers import S3Server


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "S3RVER")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "S3RVER")


class Halfway:
    """Chance that always gives the middle."""

    def uniform(self, a: float, b: float) -> float:
        return (a + b) / 2


def plain(server: FaultyS3, more: str = "") -> S3Store:
    return S3Store(parse_s3_url(server.url + more))


def retrying(server: FaultyS3) -> RetryingStore:
    backoff = Backoff(0.1, 2.0, 1.0, Halfway())
    return RetryingStore(plain(server), clock=SkippingClock(), backoff=backoff, budget_s=30)


@pytest.mark.parametrize(
    ("step", "kind", "reason"),
    [
        (Status(503, "SlowDown"), OverloadedError, "STORE_BUSY"),
        (Status(503), OverloadedError, "STORE_BUSY"),
        (Status(429), OverloadedError, "STORE_BUSY"),
        (Status(409, "ConditionalRequestConflict"), UnavailableError, "STORE_CONTENDED"),
        (Status(412, "PreconditionFailed"), ConflictError, "OBJECT_EXISTS"),
        (Status(403, "AccessDenied"), UnavailableError, "STORE_DENIED"),
        (Status(401), UnavailableError, "STORE_DENIED"),
        (Status(404, "NoSuchBucket"), UnavailableError, "STORE_BUCKET_UNKNOWN"),
        (Status(404), UnavailableError, "STORE_FAILED"),
        (Status(507, "XMinioStorageFull"), UnavailableError, "STORE_FULL"),
        (Status(400, "QuotaExceeded"), UnavailableError, "STORE_FULL"),
        (Status(500, "InternalError"), UnavailableError, "STORE_FAILED"),
        (Status(501, "NotImplemented"), UnavailableError, "STORE_FAILED"),
        (HangUp(), UnavailableError, "STORE_FAILED"),
        (LoseAnswer(), UnavailableError, "STORE_FAILED"),
    ],
)
async def test_each_answer_to_a_put_becomes_the_error_of_the_port(
    step: Step, kind: type[FacegridError], reason: str
) -> None:
    with faulty_s3(step) as server:
        with pytest.raises(FacegridError) as refused:
            await plain(server).put_new("a/b", b"1")
        assert (type(refused.value), refused.value.reason) == (kind, reason)
        assert "name=a/b" in refused.value.message
        assert "S3RVER" not in refused.value.message  # neither the key nor the secret
        assert server.requests == ["PUT a/b"]  # nothing is tried twice beneath the port


@pytest.mark.parametrize(
    ("step", "kind", "reason"),
    [
        (Status(404, "NoSuchKey"), NotFoundError, "OBJECT_UNKNOWN"),
        (Status(404, "NoSuchBucket"), UnavailableError, "STORE_BUCKET_UNKNOWN"),
        # Of a proxy, or of a server that is none of S3: says nothing about the object.
        (Status(404), UnavailableError, "STORE_FAILED"),
        (Status(503, "SlowDown"), OverloadedError, "STORE_BUSY"),
        (HangUp(), UnavailableError, "STORE_FAILED"),
    ],
)
async def test_each_answer_to_a_get_becomes_the_error_of_the_port(
    step: Step, kind: type[FacegridError], reason: str
) -> None:
    with faulty_s3(step) as server:
        server.objects["a"] = b"1"
        with pytest.raises(FacegridError) as refused:
            await plain(server).get("a")
        assert (type(refused.value), refused.value.reason) == (kind, reason)


async def test_without_credentials_the_store_is_not_asked_and_the_message_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with faulty_s3(Status(403)) as metadata, faulty_s3() as server:
        host, port = metadata.server_address[:2]
        monkeypatch.setenv("AWS_METADATA_ENDPOINT", f"http://{host!s}:{port}")
        with pytest.raises(UnavailableError) as refused:
            await plain(server).get("a")
        assert refused.value.reason == "STORE_DENIED"
        assert "AWS_ACCESS_KEY_ID is not set" in refused.value.message
        assert metadata.requests == ["PUT /latest/api/token"]
        assert server.requests == []


def test_half_a_key_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(InvalidError, match="Missing AccessKeyId") as refused:
        connect("s3://bucket")
    assert refused.value.reason == "STORE_SETTINGS"


async def test_a_store_that_stays_silent_is_given_up_in_time() -> None:
    with faulty_s3(StaySilent()) as server:
        with pytest.raises(UnavailableError) as late:
            await plain(server, "&timeout_s=0.2").put_new("a", b"1")
        assert late.value.reason == "STORE_FAILED"


async def test_a_put_is_made_once_through_refusals_and_lost_answers() -> None:
    """1 busy; 2 contended; 3 stored, answer lost; 4 refused by its own; 5 read back."""
    script = [Status(503, "SlowDown"), Status(409), LoseAnswer(), Serve(), Serve()]
    with faulty_s3(*script) as server:
        await retrying(server).put_new("a", b"1")
        assert server.objects == {"a": b"1"}
        assert server.requests == ["PUT a"] * 4 + ["GET a"]


async def test_a_put_that_was_contended_loses_to_whoever_has_the_name() -> None:
    with faulty_s3(Status(409, "ConditionalRequestConflict")) as server:
        server.objects["a"] = b"of another"
        with pytest.raises(ConflictError):
            await retrying(server).put_new("a", b"1")
        assert server.objects == {"a": b"of another"}


async def test_what_is_deleted_twice_because_an_answer_was_lost_is_gone() -> None:
    with faulty_s3(LoseAnswer(), Status(404, "NoSuchKey")) as server:
        server.objects["a"] = b"1"
        await retrying(server).delete("a")
        assert server.objects == {}


async def test_requests_beyond_the_bound_wait_and_those_beyond_the_queue_are_refused() -> None:
    with faulty_s3(*[StaySilent()] * limits.STORE_REQUESTS_MAX) as server:
        store = plain(server, "&timeout_s=60")
        refused: list[str] = []

        async def put(number: int) -> None:
            try:
                await store.put_new(f"n{number}", b"")
            except OverloadedError as error:
                refused.append(error.reason)
            except UnavailableError:
                return

        async with asyncio.TaskGroup() as tasks:
            for number in range(limits.STORE_REQUESTS_MAX + limits.STORE_WAITING_MAX + 3):
                tasks.create_task(put(number))
            while len(server.requests) < limits.STORE_REQUESTS_MAX:
                await SkippingClock().sleep(0)
            assert refused == ["STORE_QUEUE_FULL"] * 3
            assert len(server.requests) == limits.STORE_REQUESTS_MAX
            server.closing.set()
        assert len(server.objects) >= limits.STORE_WAITING_MAX


def test_a_url_gives_bucket_prefix_and_how_to_reach_them() -> None:
    url = (
        "s3://bucket/a/b/?endpoint=http://127.0.0.1:9000/&region=eu-west-1&allow_http=1"
        "&virtual_hosted=true&timeout_s=2.5"
    )
    assert parse_s3_url(url) == S3Address(
        bucket="bucket",
        prefix="a/b",
        endpoint="http://127.0.0.1:9000",
        region="eu-west-1",
        allow_http=True,
        virtual_hosted=True,
        timeout_s=2.5,
    )
    assert parse_s3_url("s3://bucket") == S3Address(bucket="bucket")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("s3://", "must look like"),
        ("s3://b", "must look like"),
        ("s3://bucket/../x", "malformed prefix"),
        ("s3://bucket/a b", "malformed prefix"),
        ("s3://bucket#x", "must look like"),
        ("s3://bucket:x@", "must not hold credentials"),
        ("s3://SECRET:SECRET@bucket", "must not hold credentials"),
        ("s3://bucket?access_key_id=SECRET", "no such part: access_key_id"),
        ("s3://bucket?region", "cannot be read"),
        ("s3://bucket?region=a&region=b", "says something twice"),
        ("s3://bucket?region=EU", "malformed region"),
        ("s3://bucket?endpoint=ftp://x", "malformed endpoint"),
        ("s3://bucket?endpoint=https://u:SECRET@x", "malformed endpoint"),
        ("s3://bucket?endpoint=http://x", "endpoint without TLS"),
        ("s3://bucket?allow_http=yes", "must have 0 or 1 for allow_http"),
        ("s3://bucket?timeout_s=0", "timeout_s"),
        ("s3://bucket?timeout_s=x", "timeout_s"),
        ("s3://bucket?timeout_s=inf", "timeout_s"),
    ],
)
def test_a_malformed_url_is_refused_without_repeating_secrets(url: str, said: str) -> None:
    for opened in (open_store, connect):
        with pytest.raises(InvalidError) as refused:
            opened(url)
        assert refused.value.reason == "STORE_URL_MALFORMED"
        assert said in refused.value.message
        assert "SECRET" not in f"{refused.value.message} {refused.value.facts}"


async def test_a_store_that_keeps_the_conditions_is_opened_and_left_empty(s3: S3Server) -> None:
    store = open_store(s3.url())
    assert list(await store.list("")) == []


def test_a_bucket_that_does_not_exist_is_refused_at_once(s3: S3Server) -> None:
    with pytest.raises(UnavailableError) as refused:
        open_store(s3.url().replace("s3://facegrid", "s3://another"))
    assert refused.value.reason == "STORE_BUCKET_UNKNOWN"
    assert "s3://another/" in refused.value.message


def test_access_denied_is_refused_at_once() -> None:
    with faulty_s3(*[Status(403, "AccessDenied")] * 99) as server:
        with pytest.raises(UnavailableError) as refused:
            open_store(server.url)
        assert refused.value.reason == "STORE_DENIED"


def test_a_store_that_ignores_conditions_is_refused(careless_s3: S3Server) -> None:
    with pytest.raises(UnavailableError) as refused:
        open_store(careless_s3.url())
    assert refused.value.reason == "STORE_UNSAFE"
    assert "put-if-absent" in refused.value.message
    assert "s3://facegrid/" in refused.value.message
