"""What EtcdCoordinator sends to read several keys."""

import pytest

from facegrid.api.etcd.v3 import etcd_pb2 as pb
from facegrid.clock import SystemClock
from facegrid.coord.etcd import EtcdCoordinator


async def test_etcd_is_sent_no_transaction_that_only_reads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Early etcd 3.5 ends itself when such a one is cancelled (etcd issue 14110)."""
    coord = EtcdCoordinator(["127.0.0.1:1"], root="t/", clock=SystemClock())
    sent: list[pb.TxnRequest] = []

    async def read(_method: object, request: pb.TxnRequest, *, timeout_s: float) -> pb.TxnResponse:
        assert timeout_s > 0
        sent.append(request)
        return pb.TxnResponse()

    monkeypatch.setattr(coord._transport, "read", read)
    await coord.get_many(["a"], heads=["b"])
    await coord.aclose()

    (request,) = sent
    assert [one.WhichOneof("request") for one in request.success] == ["request_range"] * 2
    assert [one.WhichOneof("request") for one in request.failure] == ["request_delete_range"]
    assert not request.compare, "so the branch with the write is never taken"
