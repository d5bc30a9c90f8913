"""A router passes the commit of a bulk load on to the shard's primary, and what that says back."""

import pytest

from facegrid.api.admin.v1 import admin_service_pb2 as pb
from facegrid.api.shard.v1.shard_service_pb2 import LoadSegment
from facegrid.errors import (
    ConflictError,
    FencedError,
    InvalidError,
    NotFoundError,
    UnavailableError,
)
from facegrid.wire import from_wire_token
from tests.fakes.router_cluster import cluster

SEGMENTS = [
    LoadSegment(sha256="ab" * 32, rows_count=5),
    LoadSegment(sha256="cd" * 32, rows_count=2),
]


def request(shard: str, **changes: str) -> pb.LoadRequest:
    given = {"gallery": "staff", "shard_id": shard, "request_id": "load-a-0001"}
    return pb.LoadRequest(**{**given, **changes}, segments=SEGMENTS)


async def test_a_load_reaches_the_primary_of_its_shard_alone() -> None:
    async with cluster() as running:
        uid = (await running.client.create()).uid
        shard_id = f"staff.{uid}.0001"
        answer = await running.client.call(running.client.admin.Load, request(shard_id))

        assert (answer.enrolled_count, answer.unchanged_count) == (7, 0)
        assert from_wire_token(answer.token).positions == {shard_id: 1}
        holders = [node for node in running.nodes if shard_id in node.shards]
        assert [node.calls.count("Load") for node in holders] == [1]


@pytest.mark.parametrize(
    ("changes", "error", "reason"),
    [
        ({"gallery": "nobody"}, NotFoundError, "GALLERY_UNKNOWN"),
        ({"gallery": "No Name"}, InvalidError, "NAME_MALFORMED"),
        ({"shard_id": "staff.00000000.0001"}, NotFoundError, "SHARD_UNKNOWN"),
        ({"request_id": ""}, InvalidError, "REQUEST_ID_MALFORMED"),
    ],
)
async def test_what_cannot_be_loaded_is_refused(
    changes: dict[str, str], error: type[Exception], reason: str
) -> None:
    async with cluster() as running:
        uid = (await running.client.create()).uid
        with pytest.raises(error) as refused:
            await running.client.call(
                running.client.admin.Load, request(f"staff.{uid}.0001", **changes)
            )
        assert refused.value.reason == reason  # type: ignore[attr-defined]  # errors of facegrid


@pytest.mark.parametrize(
    "raised",
    [
        ConflictError("template exists", reason="TEMPLATE_EXISTS", segment=1, row=4),
        FencedError("somebody else", reason="FENCED"),
        UnavailableError("etcd did not confirm", reason="COMMIT_IN_DOUBT"),
    ],
    ids=lambda error: error.reason,
)
async def test_what_a_primary_says_is_passed_on(raised: ConflictError) -> None:
    async with cluster(nodes=1) as running:
        uid = (await running.client.create()).uid
        running.nodes[0].mischief.fail["Load"] = raised
        with pytest.raises(type(raised)) as refused:
            await running.client.call(running.client.admin.Load, request(f"staff.{uid}.0001"))
        assert refused.value.reason == raised.reason
        assert raised.facts.items() <= refused.value.facts.items()
        assert refused.value.facts["node"] == "n1"
