"""What the client refuses before anything is sent. No router runs here: nothing may be asked."""

from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest

from facegrid import AsyncClient, Client, InvalidError, limits

X = np.eye(8, dtype=np.float32)
IDS = [f"t-{row}" for row in range(8)]
Ask = Callable[[AsyncClient], Awaitable[object]]


def enrol(
    *, template_ids: Any = IDS, subject_ids: Any = IDS, vectors: Any = X, request_id: Any = None
) -> Ask:
    return lambda client: client.enrol(
        "staff",
        template_ids=template_ids,
        subject_ids=subject_ids,
        vectors=vectors,
        request_id=request_id,
    )


def identify(probes: Any = X, **arguments: Any) -> Ask:
    return lambda client: client.identify("staff", probes, **arguments)


def with_row(row: int, value: float) -> np.ndarray[Any, Any]:
    x = X.copy()
    x[row] = value
    return x


REFUSED: list[tuple[Ask, str, dict[str, str]]] = [
    (enrol(vectors=X.astype(np.int32)), "DTYPE_UNKNOWN", {"field": "vectors"}),
    (enrol(vectors=X.astype(object)), "DTYPE_UNKNOWN", {"field": "vectors"}),
    (enrol(vectors=X.astype(np.longdouble)), "DTYPE_UNKNOWN", {"field": "vectors"}),
    (enrol(vectors=X[0]), "SHAPE", {"field": "vectors"}),
    (enrol(vectors=X[None]), "SHAPE", {"field": "vectors"}),
    (enrol(vectors=X[:0]), "OUT_OF_BOUNDS", {"field": "vectors"}),
    (enrol(vectors=with_row(3, np.nan)), "VECTOR_NOT_FINITE", {"row": "3", "field": "vectors"}),
    (enrol(vectors=with_row(4, np.inf)), "VECTOR_NOT_FINITE", {"row": "4", "field": "vectors"}),
    (enrol(vectors=with_row(5, 0)), "VECTOR_NORM", {"row": "5", "field": "vectors"}),
    (enrol(vectors=with_row(6, 9)), "VECTOR_NORM", {"row": "6", "field": "vectors"}),
    (
        enrol(vectors=X.astype(np.float64) * 1e300),
        "VECTOR_NOT_FINITE",
        {"row": "0", "field": "vectors"},
    ),
    (enrol(template_ids=IDS[:7]), "ROWS_DIFFER", {"field": "template_ids"}),
    (enrol(subject_ids=[*IDS, "more"]), "ROWS_DIFFER", {"field": "subject_ids"}),
    (enrol(template_ids="abcdefgh"), "ID_MALFORMED", {"field": "template_ids"}),
    (
        enrol(subject_ids=[*IDS[:7], 7]),
        "ID_MALFORMED",
        {"row": "7", "field": "subject_ids"},
    ),
    (
        enrol(template_ids=["", *IDS[1:]]),
        "ID_MALFORMED",
        {"row": "0", "field": "template_ids"},
    ),
    (
        enrol(template_ids=["\ud800", *IDS[1:]]),
        "ID_MALFORMED",
        {"row": "0", "field": "template_ids"},
    ),
    (enrol(request_id="r" * 65), "REQUEST_ID_MALFORMED", {"field": "request_id"}),
    (
        enrol(
            template_ids=["t"] * 4097,
            subject_ids=["s"] * 4097,
            vectors=np.tile(X[0], (4097, 1)),
        ),
        "OUT_OF_BOUNDS",
        {"field": "vectors", "limit": "4096"},
    ),
    (lambda c: c.get_gallery("Staff"), "NAME_MALFORMED", {"field": "gallery"}),
    (identify(k=0), "OUT_OF_BOUNDS", {"field": "k"}),
    (identify(k=limits.K_MAX + 1), "OUT_OF_BOUNDS", {"field": "k"}),
    (identify(threshold=float("nan")), "OUT_OF_BOUNDS", {"field": "threshold"}),
    (identify(threshold=1.5), "OUT_OF_BOUNDS", {"field": "threshold"}),
    (identify(coverage_min=0.0), "OUT_OF_BOUNDS", {"field": "coverage_min"}),
    (identify(with_row(2, 0)), "VECTOR_NORM", {"row": "2", "field": "probes"}),
    (
        identify(np.tile(X[0], (1025, 1))),
        "OUT_OF_BOUNDS",
        {"field": "probes", "limit": "1024"},
    ),
    (lambda c: c.verify("staff", "s", X), "OUT_OF_BOUNDS", {"field": "probe"}),
    (lambda c: c.verify("staff", "", X[0]), "ID_MALFORMED", {"row": "0", "field": "subject_id"}),
    (lambda c: c.erase("staff"), "OUT_OF_BOUNDS", {"field": "ids"}),
    (
        lambda c: c.erase("staff", subject_ids=["s"] * 4097),
        "OUT_OF_BOUNDS",
        {"field": "ids"},
    ),
    (
        lambda c: c.create_gallery("staff", dim=-8, extractor="e"),
        "OUT_OF_BOUNDS",
        {"field": "dim"},
    ),
]


@pytest.mark.parametrize(("ask", "reason", "facts"), REFUSED)
async def test_bad_input_is_refused_at_once_with_row_and_reason(
    ask: Ask, reason: str, facts: dict[str, str]
) -> None:
    async with AsyncClient("127.0.0.1:1") as client:
        with pytest.raises(InvalidError) as caught:
            await ask(client)
    assert (caught.value.reason, caught.value.facts) == (reason, facts)


@pytest.mark.parametrize("target", ["", [], ["127.0.0.1:1", ""]])
def test_a_client_without_a_target_is_refused(target: str | list[str]) -> None:
    with pytest.raises(InvalidError, match="no target"):
        Client(target)


@pytest.mark.parametrize("timeout_s", [0, -1, 3601, float("nan")])
def test_a_client_with_an_absurd_timeout_is_refused(timeout_s: float) -> None:
    with pytest.raises(InvalidError, match="timeout_s"):
        Client("127.0.0.1:1", timeout_s=timeout_s)
