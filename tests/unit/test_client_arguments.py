"""Arguments of another type than the signatures say: the client raises nothing but its own errors.

No router runs here: nothing may be asked.
"""

import inspect
import math
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from facegrid import AsyncClient, Client, EnrolBatch, InvalidError, TlsFiles, Token
from facegrid.client import arguments
from facegrid.ids import ShardId

X = np.eye(8, dtype=np.float32)
IDS = [f"t-{row}" for row in range(8)]
ENORMOUS = 10**5000
Ask = Callable[[Any], Any]
Case = tuple[Ask, str, dict[str, str]]


def create(**changed: Any) -> Ask:
    given: dict[str, Any] = {"name": "staff", "dim": 512, "extractor": "e@1"} | changed
    return lambda client: client.create_gallery(**given)


def enrol(**changed: Any) -> Ask:
    given: dict[str, Any] = {"template_ids": IDS, "subject_ids": IDS, "vectors": X} | changed
    return lambda client: client.enrol("staff", **given)


def stream(batches: Any, **more: Any) -> Ask:
    return lambda client: client.enrol_stream("staff", batches, **more)


def call(method: str, *given: Any, **named: Any) -> Ask:
    return lambda client: getattr(client, method)(*given, **named)


def malformed(reason: str, field: str, asks: list[Ask], **facts: str) -> list[Case]:
    return [(ask, reason, facts | {"field": field}) for ask in asks]


def out_of_bounds(field: str, asks: list[Ask]) -> list[Case]:
    return malformed("OUT_OF_BOUNDS", field, asks)


NO_NAMES = [None, 5, b"staff", ["staff"]]
NAMED = [
    ("get_gallery", ()),
    ("drop_gallery", ()),
    ("train", ()),
    ("tune", ()),
    ("update_gallery", ()),
    ("enrol_stream", ([],)),
    ("get_template", ("t",)),
    ("identify", (X,)),
    ("verify", ("s", X[0])),
]
NO_COUNTS = [None, 1.5, 512.0, "512", True, np.ones(1, bool)[0], -1, 2**31, ENORMOUS, [1]]
NO_TOKENS = ["x", 5, {}, [], Token({ShardId("s"): 2**63}), Token({5: 5}), Token(None)]  # type: ignore[dict-item, arg-type]  # what is refused
READS: list[tuple[str, tuple[Any, ...]]] = [
    ("get_template", ("t",)),
    ("identify", (X,)),
    ("verify", ("s", X[0])),
]

REFUSED: list[Case] = [
    *malformed("NAME_MALFORMED", "gallery", [create(name=name) for name in NO_NAMES]),
    *malformed("NAME_MALFORMED", "gallery", [call(m, None, *more) for m, more in NAMED]),
    *malformed("NAME_MALFORMED", "gallery", [call("erase", 5, subject_ids=["s"])]),
    *out_of_bounds("dim", [create(dim=value) for value in NO_COUNTS]),
    *out_of_bounds("shards", [create(shards=value) for value in NO_COUNTS]),
    *out_of_bounds("replicas", [create(replicas=value) for value in NO_COUNTS]),
    *out_of_bounds("train_at", [create(train_at=v) for v in (2**63, -1, 1.5, "5", True)]),
    *out_of_bounds("extractor", [create(extractor=v) for v in (5, None, "", "\ud800", "x" * 129)]),
    *out_of_bounds("miss_rate_max", [create(miss_rate_max=v) for v in (0, 0.2, "x", math.nan)]),
    *out_of_bounds(
        "miss_rate_max", [call("update_gallery", "staff", miss_rate_max=v) for v in (0, True)]
    ),
    *malformed("PROFILE_UNKNOWN", "profile", [create(profile=v) for v in ("", "best", 3)]),
    *malformed(
        "PROFILE_UNKNOWN", "profile", [call("update_gallery", "staff", profile="unspecified")]
    ),
    *out_of_bounds("mates", [call("tune", "staff", mates=v) for v in (0, 1.5, 1_000_001, "3")]),
    *out_of_bounds("k", [call("identify", "staff", X, k=v) for v in (1.5, "3", None, True)]),
    *out_of_bounds("k", [call("identify", "staff", X, k=v) for v in (ENORMOUS, 10.0, [1])]),
    *out_of_bounds(
        "threshold",
        [call("identify", "staff", X, threshold=v) for v in ("x", True, [0.5], Decimal(0), 1j)],
    ),
    *out_of_bounds("threshold", [call("identify", "staff", X, threshold=ENORMOUS)]),
    *out_of_bounds(
        "coverage_min", [call("identify", "staff", X, coverage_min=v) for v in ("x", False)]
    ),
    *out_of_bounds(
        "unconfirmed_max",
        [
            call("identify", "staff", X, unconfirmed_max=v)
            for v in ("x", True, -0.1, 1.1, math.nan)
        ],
    ),
    *out_of_bounds(
        "confirmed_only",
        [
            call(method, "staff", *more, confirmed_only=value)
            for method, more in (READS[0], READS[2])
            for value in (1, None, "yes")
        ],
    ),
    *out_of_bounds("timeout_s", [call("train", "staff", timeout_s=v) for v in (None, "x", 0)]),
    *malformed(
        "TOKEN_MALFORMED",
        "after",
        [call(m, "staff", *more, after=token) for token in NO_TOKENS for m, more in READS],
    ),
    *malformed("REQUEST_ID_MALFORMED", "request_id", [enrol(request_id=v) for v in (5, b"x", "")]),
    *malformed(
        "REQUEST_ID_MALFORMED",
        "request_id",
        [call("erase", "staff", subject_ids=["s"], request_id=v) for v in (5, b"x")],
    ),
    *malformed(
        "REQUEST_ID_MALFORMED",
        "request_id",
        [stream([EnrolBatch(IDS, IDS, X, request_id=5)])],  # type: ignore[arg-type]  # what is refused
        batch="0",
    ),
    *malformed(
        "ID_MALFORMED", "subject_ids", [call("erase", "staff", subject_ids=v) for v in ("s", b"s")]
    ),
    *malformed(
        "ID_MALFORMED", "template_ids", [call("erase", "staff", template_ids=v) for v in ("t", 5)]
    ),
    *malformed("ID_MALFORMED", "template_ids", [call("erase", "staff", template_ids=None)]),
    *malformed("ID_MALFORMED", "subject_ids", [call("erase", "staff", subject_ids=[5])], row="0"),
    *malformed("ID_MALFORMED", "template_ids", [enrol(template_ids=v) for v in (None, 5, b"12")]),
    *malformed(
        "ID_MALFORMED", "template_id", [call("get_template", "g", v) for v in (None, 5)], row="0"
    ),
    *malformed(
        "ID_MALFORMED", "subject_id", [call("get_template", "g", "t", subject_id=5)], row="0"
    ),
    *malformed(
        "ID_MALFORMED", "subject_id", [call("verify", "g", v, X[0]) for v in (None, 5)], row="0"
    ),
    *malformed("SHAPE", "vectors", [enrol(vectors=[[1.0], [1.0, 2.0]])]),
    *malformed("DTYPE_UNKNOWN", "vectors", [enrol(vectors=v) for v in (None, "x", [["x"]])]),
    *malformed("DTYPE_UNKNOWN", "probes", [call("identify", "g", v) for v in (None, 5, b"x")]),
    *malformed("DTYPE_UNKNOWN", "probe", [call("verify", "g", "s", v) for v in (None, "x")]),
    *malformed("BATCH_MALFORMED", "batches", [stream(v) for v in (None, 5)]),
    *malformed("BATCH_MALFORMED", "batches", [stream(EnrolBatch(IDS, IDS, X))]),
    *malformed("BATCH_MALFORMED", "batches", [stream([(IDS, IDS, X)]), stream("x")], batch="0"),
    *malformed("NOT_CALLABLE", "on_ack", [stream([], on_ack=5)]),
]


def refused(error: InvalidError) -> tuple[str, dict[str, str]]:
    return error.reason, error.facts


@pytest.mark.parametrize(("ask", "reason", "facts"), REFUSED)
async def test_the_asynchronous_client_refuses_other_types(
    ask: Ask, reason: str, facts: dict[str, str]
) -> None:
    async with AsyncClient("127.0.0.1:1") as client:
        with pytest.raises(InvalidError) as caught:
            await ask(client)
    assert refused(caught.value) == (reason, facts)


def test_the_blocking_client_refuses_the_same() -> None:
    with Client("127.0.0.1:1") as client:
        for ask, reason, facts in REFUSED:
            with pytest.raises(InvalidError) as caught:
                ask(client)
            assert refused(caught.value) == (reason, facts)


def test_the_blocking_client_cannot_read_an_asynchronous_stream() -> None:
    async def batches() -> Any:
        yield EnrolBatch(IDS, IDS, X)

    with Client("127.0.0.1:1") as client, pytest.raises(InvalidError) as caught:
        stream(batches())(client)
    assert refused(caught.value) == ("BATCH_MALFORMED", {"field": "batches"})


@pytest.mark.parametrize("client", [Client, AsyncClient])
@pytest.mark.parametrize(
    ("given", "named", "reason", "field"),
    [
        *[
            (target, {}, "TARGET_MALFORMED", "target")
            for target in (None, 5, b"a:1", [5], ["a:1", None], "a:1\n", "\ud800", [X], [], "")
        ],
        *[
            ("a:1", {"timeout_s": value}, "OUT_OF_BOUNDS", "timeout_s")
            for value in (None, "x", True, [1], ENORMOUS, float("inf"))
        ],
        ("a:1", {"tls": "ca.pem"}, "TLS_FILE", "tls"),
        ("a:1", {"tls": TlsFiles(Path("a"), "b", Path("c"))}, "TLS_FILE", "tls"),  # type: ignore[arg-type]  # what is refused
    ],
)
def test_a_client_is_not_made_of_other_types(
    client: Callable[..., object], given: object, named: dict[str, Any], reason: str, field: str
) -> None:
    with pytest.raises(InvalidError) as caught:
        client(given, **named)
    assert refused(caught.value) == (reason, {"field": field})


def test_numbers_of_numpy_are_numbers() -> None:
    assert [
        arguments.checked_k(np.int64(10)),
        arguments.checked_count(np.uint16(512), field="dim"),
        arguments.checked_train_at(np.int32(0)),
        arguments.checked_threshold(np.float32(0.5)),
        arguments.checked_threshold(1),
        arguments.checked_coverage_min(np.float64(1)),
        arguments.checked_unconfirmed_max(np.float32(0)),
        arguments.checked_timeout(np.int8(5)),
    ] == [10, 512, 0, 0.5, 1.0, 1.0, 0.0, 5.0]


def test_every_method_with_arguments_is_tried_here() -> None:
    def with_arguments(kind: type) -> set[str]:
        public = inspect.getmembers(kind, inspect.isfunction)
        return {
            name
            for name, method in public
            if not name.startswith("_") and len(inspect.signature(method).parameters) > 1
        }

    tried = {*(name for name, _ in NAMED), "create_gallery", "enrol", "erase"}
    assert with_arguments(Client) == tried
    assert with_arguments(AsyncClient) == tried | {"open_session"}
