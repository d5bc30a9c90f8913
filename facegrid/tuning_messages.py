"""Profiles and tunings as messages and back: the wire and the records in etcd share them."""

from facegrid.api.v1 import types_pb2
from facegrid.errors import InvalidError
from facegrid.tuning import Effort, Profile, Step, Tuning

_PROFILES: dict[Profile, types_pb2.Profile.ValueType] = {
    Profile.EXHAUSTIVE: types_pb2.PROFILE_EXHAUSTIVE,
    Profile.BALANCED: types_pb2.PROFILE_BALANCED,
    Profile.FAST: types_pb2.PROFILE_FAST,
}
_BY_NUMBER: dict[int, Profile] = {number: profile for profile, number in _PROFILES.items()}


def to_profile_message(profile: Profile | None) -> types_pb2.Profile.ValueType:
    """Return a profile as its number; None: unset."""
    return types_pb2.PROFILE_UNSPECIFIED if profile is None else _PROFILES[profile]


def from_profile_message(number: int) -> Profile | None:
    """Return a profile; None where it is unset.

    Raises:
        InvalidError: there is no such profile (PROFILE_UNKNOWN).
    """
    if number == types_pb2.PROFILE_UNSPECIFIED:
        return None
    profile = _BY_NUMBER.get(number)
    if profile is None:
        raise InvalidError(
            f"no such profile profile={number}", reason="PROFILE_UNKNOWN", field="profile"
        )
    return profile


def to_tuning_message(tuning: Tuning) -> types_pb2.Tuning:
    """Return a tuning as a message."""
    return types_pb2.Tuning(
        codebook=tuning.codebook,
        nlist=tuning.nlist,
        templates_count=tuning.templates_count,
        mates_count=tuning.mates_count,
        pseudo_mates_count=tuning.pseudo_mates_count,
        nonmates_count=tuning.nonmates_count,
        threshold=tuning.threshold,
        fpir=tuning.fpir,
        points=[_to_effort(point) for point in tuning.points],
        exhaustive=_to_effort(tuning.efforts[Profile.EXHAUSTIVE]),
        balanced=_to_effort(tuning.efforts[Profile.BALANCED]),
        fast=_to_effort(tuning.efforts[Profile.FAST]),
        tuned_unix_ms=tuning.tuned_unix_ms,
        miss_rate_max=tuning.miss_rate_max,
    )


def from_tuning_message(message: types_pb2.Tuning) -> Tuning:
    """Return a tuning.

    Raises:
        InvalidError: an effort is none that a search could make (TUNING_MALFORMED).
    """
    efforts = {
        Profile.EXHAUSTIVE: _from_effort(message.exhaustive),
        Profile.BALANCED: _from_effort(message.balanced),
        Profile.FAST: _from_effort(message.fast),
    }
    if any(effort.nprobe > message.nlist for effort in efforts.values()):
        raise InvalidError("more lists than there are", reason="TUNING_MALFORMED", field="nprobe")
    return Tuning(
        codebook=message.codebook,
        nlist=message.nlist,
        efforts=efforts,
        points=tuple(_from_effort(point) for point in message.points),
        templates_count=message.templates_count,
        mates_count=message.mates_count,
        pseudo_mates_count=message.pseudo_mates_count,
        nonmates_count=message.nonmates_count,
        threshold=message.threshold,
        fpir=message.fpir,
        miss_rate_max=message.miss_rate_max,
        tuned_unix_ms=message.tuned_unix_ms,
    )


def _to_effort(effort: Effort) -> types_pb2.Effort:
    return types_pb2.Effort(
        nprobe=effort.nprobe,
        depth=effort.depth,
        steps=[
            types_pb2.Effort.Step(score=step.score, nprobe=step.nprobe) for step in effort.steps
        ],
        misses_count=effort.misses_count,
        extra_fnir_max=effort.extra_fnir_max,
        scanned_share=effort.scanned_share,
        proven=effort.proven,
    )


def _from_effort(message: types_pb2.Effort) -> Effort:
    if message.nprobe < 1 or message.depth < 1:
        raise InvalidError(
            f"an effort that finds nothing nprobe={message.nprobe} depth={message.depth}",
            reason="TUNING_MALFORMED",
            field="nprobe",
        )
    return Effort(
        nprobe=message.nprobe,
        depth=message.depth,
        steps=tuple(Step(step.score, step.nprobe) for step in message.steps),
        misses_count=message.misses_count,
        extra_fnir_max=message.extra_fnir_max,
        scanned_share=message.scanned_share,
        proven=message.proven,
    )
