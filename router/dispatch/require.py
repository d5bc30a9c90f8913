"""What an answer must be for a caller to get it: it covers enough, and enough is confirmed."""

from facegrid.errors import DeadlineError, UnavailableError
from router.dispatch.question import POSITION_NOT_REACHED, Answer
from router.plan.confirmed import UNCONFIRMED


def require_coverage(answer: Answer, coverage_min: float) -> None:
    """Raise unless enough of the gallery was searched.

    Raises:
        UnavailableError: less was searched (COVERAGE_TOO_LOW), because of shards that are named;
            or all that is missing could not be confirmed (UNCONFIRMED).
        DeadlineError: less was searched in the time given.
    """
    coverage = answer.coverage
    if coverage.share >= coverage_min:
        return
    missing = ",".join(f"{item.first:016x}-{item.last:016x}" for item in coverage.missing)
    why = ", ".join(
        f"{item.shard_id} on {item.node_id}: {item.error.message}" for item in answer.failures
    )
    kind, reason = UnavailableError, "COVERAGE_TOO_LOW"
    reasons = {item.error.reason for item in answer.failures}
    if reasons == {UNCONFIRMED}:
        reason = UNCONFIRMED
    elif reasons and all(isinstance(item.error, DeadlineError) for item in answer.failures):
        kind, reason = DeadlineError, DeadlineError.default_reason
        if reasons == {POSITION_NOT_REACHED}:
            reason = POSITION_NOT_REACHED
    raise kind(
        f"a part of the gallery was not searched ({why})"
        f" share={coverage.share:.6f} coverage_min={coverage_min} missing={missing}",
        reason=reason,
        share=coverage.share,
        limit=coverage_min,
        missing=missing,
        shard=",".join(item.shard_id for item in answer.failures),
        node=",".join(sorted({item.node_id for item in answer.failures})),
    )


def require_confirmed(answer: Answer, unconfirmed_max: float) -> None:
    """Raise unless enough of what was searched is confirmed.

    Raises:
        UnavailableError: too much is not (UNCONFIRMED).
    """
    share = answer.coverage.unconfirmed_share
    if share > unconfirmed_max:
        raise UnavailableError(
            "a part of the gallery could not be confirmed: no copy of it reaches etcd"
            f" share={share:.6f} unconfirmed_max={unconfirmed_max}",
            reason=UNCONFIRMED,
            share=share,
            limit=unconfirmed_max,
        )
