"""A proposal of moves as a message."""

from facegrid.api.admin.v1 import admin_service_pb2 as pb
from router.operate.rebalancing import Balance
from router.plan.rebalance import HostChange
from router.service.operations import to_wire_estimate


def to_wire_proposal(balance: Balance) -> pb.PlanRebalanceResponse:
    """Return a proposal as a message."""
    return pb.PlanRebalanceResponse(
        moves=[
            pb.PlanRebalanceResponse.Move(
                spec=planned.spec,
                plan=to_wire_estimate(planned.estimate, map_version=planned.map_version),
            )
            for planned in balance.moves
        ],
        nodes=[_load(change) for change in balance.proposal.hosts],
        problems=balance.proposal.problems,
    )


def _load(change: HostChange) -> pb.PlanRebalanceResponse.NodeLoad:
    return pb.PlanRebalanceResponse.NodeLoad(
        node_id=change.host.node_id,
        zone=change.host.zone,
        registered=change.host.registered,
        draining=change.host.draining,
        bytes_before=change.before.bytes,
        bytes_after=change.after.bytes,
        primaries_before=change.before.primaries_count,
        primaries_after=change.after.primaries_count,
        replicas_before=change.before.replicas_count,
        replicas_after=change.after.replicas_count,
    )
