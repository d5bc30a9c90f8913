"""Bad input: a typed error with row and reason, and nothing changed."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from facegrid import limits
from facegrid.api.v1 import (
    enrolment_service_pb2,
    gallery_service_pb2,
    identification_service_pb2,
    types_pb2,
)
from facegrid.errors import ConflictError, InvalidError, NotFoundError
from facegrid.wire import to_wire_vectors
from tests.fakes.router_cluster import DIM, Cluster, cluster, enrol_request, faces, router

Enrol = enrolment_service_pb2.EnrolRequest
Identify = identification_service_pb2.IdentifyRequest


def enrol(change: Callable[[Enrol], Any]) -> Enrol:
    """Return a sound request of three rows, changed."""
    request = enrol_request(faces(3), ["a", "b", "c"])
    change(request)
    return request


def vectors_with(row: int, values: list[float]) -> types_pb2.Vectors:
    x = faces(3)
    x[row] = values
    return to_wire_vectors(x)


def put_vectors(vectors: types_pb2.Vectors) -> Callable[[Enrol], Any]:
    return lambda request: request.vectors.CopyFrom(vectors)


NAN, INF = float("nan"), float("inf")
ENROL_CASES: list[tuple[str, Callable[[Enrol], Any], int | None]] = [
    ("NAME_MALFORMED", lambda r: setattr(r, "gallery", "Staff!"), None),
    ("REQUEST_ID_MALFORMED", lambda r: setattr(r, "request_id", ""), None),
    ("REQUEST_ID_MALFORMED", lambda r: setattr(r, "request_id", "x" * 65), None),
    ("ID_MALFORMED", lambda r: r.template_ids.__setitem__(1, ""), 1),
    ("ID_MALFORMED", lambda r: r.subject_ids.__setitem__(2, "a\nb"), 2),
    ("ID_MALFORMED", lambda r: r.subject_ids.__setitem__(2, "é" * 65), 2),
    ("ROWS_DIFFER", lambda r: r.subject_ids.append("d"), None),
    ("ROWS_DIFFER", put_vectors(to_wire_vectors(faces(2))), None),
    ("OUT_OF_BOUNDS", lambda r: r.ClearField("template_ids"), None),
    ("OUT_OF_BOUNDS", lambda r: r.template_ids.extend(["x"] * limits.ENROL_ROWS_MAX), None),
    ("DTYPE_UNKNOWN", lambda r: setattr(r.vectors, "dtype", 0), None),
    ("DIM_MISMATCH", lambda r: setattr(r.vectors, "dim", DIM // 2), None),
    ("VECTOR_LENGTH", lambda r: setattr(r.vectors, "data", r.vectors.data[:-1]), None),
    ("VECTOR_NOT_FINITE", put_vectors(vectors_with(1, [NAN] * DIM)), 1),
    ("VECTOR_NOT_FINITE", put_vectors(vectors_with(2, [INF] + [0.0] * (DIM - 1))), 2),
    ("VECTOR_NORM", put_vectors(vectors_with(0, [0.0] * DIM)), 0),
    ("VECTOR_NORM", put_vectors(vectors_with(1, [1e30] * DIM)), 1),
]


async def rows_count(running: Cluster) -> int:
    return sum(len(shard.rows) for node in running.nodes for shard in node.shards.values())


async def test_malformed_enrolments_are_refused_and_change_nothing() -> None:
    found = []
    async with cluster() as running:
        await running.client.create()
        for _, change, _ in ENROL_CASES:
            with pytest.raises(InvalidError) as caught:
                await running.client.call(running.client.enrolment.Enrol, enrol(change))
            found.append((caught.value.reason, caught.value.row))
        left = await rows_count(running)

    assert found == [(reason, row) for reason, _, row in ENROL_CASES]
    assert left == 0


def too_many_candidates(request: Identify) -> None:
    """Ask for lists that are each allowed, and together are not."""
    request.probes.CopyFrom(to_wire_vectors(faces(65)))
    request.k = limits.K_MAX


IDENTIFY_CASES: list[tuple[str, Callable[[Identify], Any], str]] = [
    ("OUT_OF_BOUNDS", lambda r: setattr(r, "k", 0), "k"),
    ("OUT_OF_BOUNDS", lambda r: setattr(r, "k", limits.K_MAX + 1), "k"),
    ("OUT_OF_BOUNDS", lambda r: setattr(r, "threshold", 1.5), "threshold"),
    ("OUT_OF_BOUNDS", lambda r: setattr(r, "threshold", NAN), "threshold"),
    ("OUT_OF_BOUNDS", lambda r: setattr(r, "coverage_min", 0.0), "coverage_min"),
    ("OUT_OF_BOUNDS", lambda r: setattr(r, "coverage_min", NAN), "coverage_min"),
    ("OUT_OF_BOUNDS", lambda r: setattr(r.probes, "data", b""), "probes"),
    ("OUT_OF_BOUNDS", lambda r: r.probes.CopyFrom(to_wire_vectors(faces(1025))), "probes"),
    ("OUT_OF_BOUNDS", too_many_candidates, "candidates"),
    ("VECTOR_NOT_FINITE", lambda r: r.probes.CopyFrom(vectors_with(1, [NAN] * DIM)), "vectors"),
    ("TOKEN_MALFORMED", lambda r: r.after.positions.add(shard_id="s", position=-1), "after"),
]


async def test_malformed_probes_are_refused() -> None:
    found = []
    async with cluster() as running:
        await running.client.create()
        for _, change, _ in IDENTIFY_CASES:
            request = Identify(gallery="staff", probes=to_wire_vectors(faces(3)), k=3)
            change(request)
            with pytest.raises(InvalidError) as caught:
                await running.client.call(running.client.identification.Identify, request)
            found.append((caught.value.reason, caught.value.facts["field"]))
        searches = [len(node.searches) for node in running.nodes]

    assert found == [(reason, field) for reason, _, field in IDENTIFY_CASES]
    assert searches == [0, 0]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dim", 0),
        ("dim", 10),
        ("dim", 2048),
        ("extractor", ""),
        ("extractor", "x" * 129),
        ("shards_count", 1025),
        ("replicas_count", 6),
        ("train_at_templates_count", -1),
        ("train_at_templates_count", 10),
    ],
)
async def test_gallery_settings_out_of_bounds_are_refused(field: str, value: Any) -> None:
    async with cluster(nodes=1) as running:
        with pytest.raises(InvalidError) as caught:
            await running.client.create(**{field: value})
        left = await running.coordinator.list("galleries/")

    assert (caught.value.reason, caught.value.facts["field"]) == ("OUT_OF_BOUNDS", field)
    assert left.items == ()


async def test_a_template_that_is_there_with_another_vector_leaves_all_shards_untouched() -> None:
    x = faces(8)
    subjects = [f"s{row}" for row in range(8)]
    async with cluster() as running:
        await running.client.create()
        await running.client.enrol(x[5:6], ["s5"], templates=["t5"])
        x[5] = -x[5]

        with pytest.raises(ConflictError) as caught:
            await running.client.enrol(x, subjects, request_id="r2")
        left = await rows_count(running)

    assert (caught.value.reason, caught.value.row) == ("TEMPLATE_EXISTS", 5)
    assert "row=5" in caught.value.message
    assert left == 1


def asked(running: Cluster) -> list[str]:
    """Return what was asked of all nodes before rows were sent to be written."""
    return [call for node in running.nodes for call in node.calls if call.startswith("Check")]


async def test_vectors_are_sent_once_where_ids_tell_that_nothing_is_there() -> None:
    x = faces(8)
    async with cluster() as running:
        await running.client.create()
        await running.client.enrol(x, [f"s{row}" for row in range(8)])
        fresh = asked(running)
        await running.client.enrol(x[:7], [f"s{row}" for row in range(7)], request_id="r2")

    assert set(fresh) == {"CheckIds"}
    assert len(fresh) > 1, "several shards were asked"
    assert "Check" in asked(running)


async def test_an_id_used_again_for_other_rows_leaves_all_shards_untouched() -> None:
    x = faces(8)
    async with cluster() as running:
        await running.client.create()
        await running.client.enrol(x[:1], ["s0"], request_id="again")
        with pytest.raises(InvalidError) as caught:
            await running.client.enrol(x, [f"s{row}" for row in range(8)], request_id="again")
        left = await rows_count(running)

    assert caught.value.reason == "REQUEST_ID_REUSED"
    assert left == 1


async def test_a_node_that_cannot_tell_by_ids_is_asked_with_the_vectors() -> None:
    x, subjects = faces(8), [f"s{row}" for row in range(8)]
    async with cluster() as running:
        await running.client.create()
        for node in running.nodes:
            node.mischief.fail["CheckIds"] = InvalidError("no such call", reason="UNIMPLEMENTED")
        await running.client.enrol(x, subjects)
        x[5] = -x[5]
        with pytest.raises(ConflictError):
            await running.client.enrol(x, subjects, request_id="r2")
        left = await rows_count(running)

    assert left == 8
    assert asked(running).count("CheckIds") == asked(running).count("Check")


async def test_the_same_template_twice_in_a_request_must_have_the_same_vector() -> None:
    x = faces(3)
    x[2] = x[0]
    async with cluster() as running:
        await running.client.create()
        equal = await running.client.enrol(x, ["a", "b", "a"], templates=["t", "t", "t"])
        x[2] = x[1]
        with pytest.raises(InvalidError) as caught:
            await running.client.enrol(
                x, ["c", "d", "c"], templates=["t", "t", "t"], request_id="r2"
            )

    assert (equal.enrolled_count, equal.unchanged_count) == (2, 1)
    assert (caught.value.reason, caught.value.row) == ("DUPLICATE_ROW", 2)


async def test_a_retried_request_has_the_effect_of_once() -> None:
    x = faces(8)
    subjects = [f"s{row}" for row in range(8)]
    async with cluster() as running:
        await running.client.create()
        first = await running.client.enrol(x, subjects)
        again = await running.client.enrol(x, subjects)
        as_another = await running.client.enrol(x, subjects, request_id="r2")

    assert first == again
    assert (as_another.enrolled_count, as_another.unchanged_count) == (0, 8)


async def test_erasing_needs_something_to_erase() -> None:
    async with cluster(nodes=1) as running:
        await running.client.create()
        request = enrolment_service_pb2.EraseRequest(gallery="staff", request_id="e")
        with pytest.raises(InvalidError) as caught:
            await running.client.call(running.client.enrolment.Erase, request)

    assert (caught.value.reason, caught.value.facts["field"]) == ("OUT_OF_BOUNDS", "ids")


async def test_an_unknown_gallery_is_not_found() -> None:
    async with cluster(nodes=1) as running:
        reasons = []
        for method, request in [
            (running.client.identification.Identify, Identify(gallery="none", k=1)),
            (running.client.enrolment.Enrol, enrol(lambda r: setattr(r, "gallery", "none"))),
            (
                running.client.galleries.GetGallery,
                gallery_service_pb2.GetGalleryRequest(name="none"),
            ),
        ]:
            with pytest.raises(NotFoundError) as caught:
                await running.client.call(method, request)
            reasons.append(caught.value.reason)

    assert reasons == ["GALLERY_UNKNOWN"] * 3


async def test_a_stream_ends_with_the_error_of_its_first_refused_request() -> None:
    x = faces(4)
    async with cluster() as running:
        await running.client.create()
        requests = [
            enrol_request(x[row : row + 1], [f"s{row}"], request_id=f"r{row}") for row in range(4)
        ]
        requests[2].vectors.CopyFrom(to_wire_vectors(np.zeros((1, DIM), np.float32)))
        stream = running.client.enrolment.EnrolStream(iter(requests), timeout=10)

        answers = [(await stream.read()).enrolled_count for _ in range(2)]
        code = await stream.code()

    assert answers == [1, 1]
    assert code.name == "INVALID_ARGUMENT"


async def test_a_token_of_another_gallery_is_refused_wherever_it_is_given() -> None:
    refused = []
    async with cluster() as running:
        await running.client.create()
        await running.client.create("other", shards_count=1)
        ours = await running.client.enrol(faces(1), ["a"])
        other = await running.client.enrol(faces(1), ["a"], gallery="other")
        drop = gallery_service_pb2.DropGalleryRequest(name="other")
        await running.client.call(running.client.galleries.DropGallery, drop)
        await running.client.create("other", shards_count=1)
        stub, probe = running.client.identification, to_wire_vectors(faces(1))
        for gallery, after in [
            ("staff", other.token),
            ("other", ours.token),
            ("other", other.token),
        ]:
            for method, request in [
                (stub.Identify, Identify(gallery=gallery, probes=probe, k=1, after=after)),
                (
                    stub.Verify,
                    identification_service_pb2.VerifyRequest(
                        gallery=gallery, subject_id="a", probe=probe, after=after
                    ),
                ),
                (
                    running.client.enrolment.GetTemplate,
                    enrolment_service_pb2.GetTemplateRequest(
                        gallery=gallery, template_id="t0", after=after
                    ),
                ),
            ]:
                with pytest.raises(InvalidError) as caught:
                    await running.client.call(method, request)
                facts = caught.value.facts
                refused.append((caught.value.reason, facts["field"], facts["shard"]))
        searches = [len(node.searches) for node in running.nodes]

    shards = [token.positions[0].shard_id for token in (other.token, ours.token, other.token)]
    assert refused == [("TOKEN_FOREIGN", "after", shard) for shard in shards for _ in range(3)]
    assert searches == [0, 0]


async def test_a_token_of_a_gallery_made_anew_through_another_router_is_taken() -> None:
    async with cluster() as running, router(running.coordinator) as other:
        await running.client.create()
        await running.client.enrol(faces(1), ["a"])
        drop = gallery_service_pb2.DropGalleryRequest(name="staff")
        await running.client.call(running.client.galleries.DropGallery, drop)
        await running.client.create()
        written = await running.client.enrol(faces(1), ["b"])

        answer = await other.identify(faces(1), k=1, after=written.token)

    assert [row.subject_id for row in answer.lists[0].candidates] == ["b"]
