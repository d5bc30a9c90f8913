"""A router on fake nodes, from creating a gallery to dropping it."""

import numpy as np
import pytest

from facegrid import vectors
from facegrid.api.v1 import enrolment_service_pb2, gallery_service_pb2, identification_service_pb2
from facegrid.errors import ConflictError, InvalidError, NotFoundError
from facegrid.wire import to_wire_vectors
from tests.fakes.router_cluster import DIM, RouterClient, cluster, enrol_request, faces


def expected_lists(x: np.ndarray, probes: np.ndarray, k: int) -> list[list[tuple[str, float]]]:
    """Return subjects s0, s1, ... with one template each, ranked by the one definition."""
    codes = vectors.quantize(x)
    shape = (len(probes), *codes.shape)
    norms = np.broadcast_to(vectors.code_norms(codes), shape[:2])
    table = vectors.scores(vectors.prepare_probes(probes), np.broadcast_to(codes, shape), norms)
    return [
        sorted(
            ((f"s{row}", score) for row, score in enumerate(scores)), key=lambda r: (-r[1], r[0])
        )[:k]
        for scores in table.tolist()
    ]


async def test_identify_equals_exact_search_over_all_shards() -> None:
    x, probes = faces(60), faces(5, seed=2)
    async with cluster() as running:
        await running.client.create()
        written = await running.client.enrol(x, [f"s{row}" for row in range(60)])

        answer = await running.client.identify(probes, k=10, after=written.token)

    assert (written.enrolled_count, written.unchanged_count) == (60, 0)
    assert len(written.token.positions) == 4
    assert [
        [(row.subject_id, row.score) for row in found.candidates] for found in answer.lists
    ] == expected_lists(x, probes, 10)
    assert [row.rank for row in answer.lists[0].candidates] == list(range(1, 11))
    assert [row.template_id for row in answer.lists[0].candidates] == [
        row.subject_id.replace("s", "t") for row in answer.lists[0].candidates
    ]
    assert answer.coverage.share == 1.0
    assert (answer.coverage.shards_answered_count, answer.coverage.shards_count) == (4, 4)
    assert answer.map_version == 1
    assert [len(node.searches) for node in running.nodes] == [1, 1]


async def test_a_threshold_leaves_out_what_is_less_alike() -> None:
    x = faces(20)
    async with cluster() as running:
        await running.client.create()
        await running.client.enrol(x, [f"s{row}" for row in range(20)])

        answer = await running.client.identify(x[:1], k=20, threshold=0.5)

    scores = [row.score for row in answer.lists[0].candidates]
    assert scores[0] > 0.99
    assert len(scores) < 20
    assert min(scores) >= 0.5


async def test_half_precision_probes_are_taken() -> None:
    x = faces(10)
    async with cluster() as running:
        await running.client.create()
        await running.client.enrol(x.astype(np.float16), [f"s{row}" for row in range(10)])

        answer = await running.client.identify(x.astype(np.float16), k=1)

    assert [found.candidates[0].subject_id for found in answer.lists] == [
        f"s{row}" for row in range(10)
    ]


async def test_creating_again_with_the_same_settings_finds_the_gallery() -> None:
    async with cluster() as running:
        first = await running.client.create()
        again = await running.client.create()
        with pytest.raises(ConflictError) as caught:
            await running.client.create(dim=16)
        listed = await running.client.call(
            running.client.galleries.ListGalleries, gallery_service_pb2.ListGalleriesRequest()
        )

    assert first == again
    assert (first.uid, first.train_at_templates_count) == ("1f00aa23", 262_144)
    assert caught.value.reason == "GALLERY_EXISTS"
    assert list(listed.galleries) == [first]


async def get_gallery(client: RouterClient) -> gallery_service_pb2.GetGalleryResponse:
    return await client.call(
        client.galleries.GetGallery, gallery_service_pb2.GetGalleryRequest(name="staff")
    )


async def test_a_gallery_tells_how_many_templates_its_shards_hold() -> None:
    async with cluster() as running:
        await running.client.create()
        await running.client.enrol(faces(9), ["a", "b", "c"] * 3)

        found = await get_gallery(running.client)

    assert found.gallery.templates_count == 9


async def test_a_trained_gallery_names_its_codebook() -> None:
    async with cluster() as running:
        await running.client.create()
        trained = await running.client.call(
            running.client.galleries.TrainGallery,
            gallery_service_pb2.TrainGalleryRequest(name="staff"),
        )
        found = await get_gallery(running.client)

    assert trained.sample_count == 7
    assert trained.gallery.codebook == "c0de" * 16
    assert found.gallery.codebook == "c0de" * 16


async def test_a_dropped_gallery_is_gone_and_its_shards_are_noted() -> None:
    async with cluster() as running:
        await running.client.create()
        request = gallery_service_pb2.DropGalleryRequest(name="staff")
        await running.client.call(running.client.galleries.DropGallery, request)

        with pytest.raises(NotFoundError) as caught:
            await running.client.identify(faces(1))
        with pytest.raises(NotFoundError):
            await running.client.call(running.client.galleries.DropGallery, request)
        left = await running.coordinator.list("")

    rest = [item.key for item in left.items if not item.key.startswith(("nodes/", "gen/"))]
    assert caught.value.reason == "GALLERY_UNKNOWN"
    assert rest == ["driver", *(f"dropped/staff.1f00aa23.{number:04d}" for number in range(4))]


async def test_verify_compares_with_the_best_template_of_the_subject() -> None:
    x = faces(6)
    async with cluster() as running:
        await running.client.create()
        await running.client.enrol(x, ["a", "a", "a", "b", "b", "b"])
        request = identification_service_pb2.VerifyRequest(
            gallery="staff", subject_id="a", probe=to_wire_vectors(x[1:2])
        )

        found = await running.client.call(running.client.identification.Verify, request)
        request.subject_id = "nobody"
        with pytest.raises(NotFoundError) as caught:
            await running.client.call(running.client.identification.Verify, request)

    assert found.template_id == "t1"
    assert found.score > 0.99
    assert caught.value.reason == "SUBJECT_UNKNOWN"


async def test_a_stored_template_comes_back_with_the_rounding_of_its_codes() -> None:
    x = faces(3)
    async with cluster() as running:
        await running.client.create()
        await running.client.enrol(x, ["a", "b", "c"], templates=["t", "t", "u"])
        get = running.client.enrolment.GetTemplate
        request = enrolment_service_pb2.GetTemplateRequest(gallery="staff", template_id="u")

        found = await running.client.call(get, request)
        request.template_id = "t"
        with pytest.raises(InvalidError) as ambiguous:
            await running.client.call(get, request)
        request.subject_id = "b"
        named = await running.client.call(get, request)
        request.template_id = "none"
        with pytest.raises(NotFoundError) as unknown:
            await running.client.call(get, request)

    stored = vectors.dequantize(vectors.quantize(x))
    assert found == enrolment_service_pb2.GetTemplateResponse(
        template_id="u", subject_id="c", vector=to_wire_vectors(stored[2:3])
    )
    assert (named.subject_id, named.vector) == ("b", to_wire_vectors(stored[1:2]))
    assert (ambiguous.value.reason, unknown.value.reason) == (
        "TEMPLATE_AMBIGUOUS",
        "TEMPLATE_UNKNOWN",
    )


async def test_erased_subjects_and_templates_are_found_no_more() -> None:
    x = faces(6)
    async with cluster() as running:
        await running.client.create()
        await running.client.enrol(x, ["a", "a", "b", "c", "d", "d"])
        request = enrolment_service_pb2.EraseRequest(
            gallery="staff", request_id="e1", subject_ids=["a", "none"], template_ids=["t3", "t4"]
        )

        erased = await running.client.call(running.client.enrolment.Erase, request)
        answer = await running.client.identify(x[:1], k=10, after=erased.token)
        only_subjects = enrolment_service_pb2.EraseRequest(
            gallery="staff", request_id="e2", subject_ids=["b"]
        )
        second = await running.client.call(running.client.enrolment.Erase, only_subjects)

    assert erased.erased_templates_count == 4
    assert len(erased.token.positions) == 4
    assert sorted(row.subject_id for row in answer.lists[0].candidates) == ["b", "d"]
    assert len(second.token.positions) == 1


async def test_a_stream_is_answered_in_order() -> None:
    x = faces(40)
    async with cluster() as running:
        await running.client.create()
        requests = [
            enrol_request(x[i : i + 4], [f"s{i + j}" for j in range(4)], request_id=f"r{i}")
            for i in range(0, 40, 4)
        ]

        answers = [
            answer
            async for answer in running.client.enrolment.EnrolStream(iter(requests), timeout=10)
        ]
        found = await get_gallery(running.client)

    assert [answer.enrolled_count for answer in answers] == [4] * 10
    assert found.gallery.templates_count == 40


async def test_a_stream_answers_each_request_before_the_next_is_sent() -> None:
    x = faces(3)
    async with cluster() as running:
        await running.client.create()
        stream = running.client.enrolment.EnrolStream(timeout=10)
        counts = []
        for row in range(3):
            request = enrol_request(
                x[row : row + 1], ["s"], templates=[f"t{row}"], request_id=f"r{row}"
            )
            await stream.write(request)
            counts.append((await stream.read()).enrolled_count)
        await stream.done_writing()

    assert counts == [1, 1, 1]


async def test_status_describes_nodes_galleries_and_shards() -> None:
    async with cluster() as running:
        gallery = await running.client.create(shards_count=2)
        await running.nodes[1].crash()

        status = await running.client.status()

    assert [(node.id, node.registered, bool(node.problem)) for node in status.nodes] == [
        ("n1", True, False),
        ("n2", True, True),
    ]
    assert [shard.shard_id for shard in status.nodes[0].shards] == ["staff.1f00aa23.0000"]
    assert list(status.galleries) == [gallery]
    assert [(shard.id, list(shard.node_ids)) for shard in status.shards] == [
        ("staff.1f00aa23.0000", ["n1"]),
        ("staff.1f00aa23.0001", ["n2"]),
    ]
    assert status.etcd_reachable
    assert status.map_age_ms >= 0
    assert gallery.dim == DIM
