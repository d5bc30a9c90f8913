"""What the tuning of a gallery comes to that is searched exactly all the same: no miss."""

from dataclasses import replace
from typing import Final

from facegrid.coord import keys
from facegrid.coord.port import Coordinator, Put
from facegrid.errors import InvalidError
from facegrid.format import records
from facegrid.model import Gallery
from facegrid.tuning import Effort, Profile, Tuning

MATES_COUNT: Final = 100_000
_BOUND: Final = 3.0 / MATES_COUNT


def exact_tuning(gallery: Gallery, *, mates_count_max: int) -> Tuning:
    """Return the tuning of an index of one list that missed none of very many mates.

    Raises:
        InvalidError: the gallery has no codebook (NOT_TRAINED).
    """
    if not gallery.codebook:
        raise InvalidError(
            f"the gallery is searched exactly gallery={gallery.name}",
            reason="NOT_TRAINED",
            gallery=gallery.name,
        )
    count = min(mates_count_max or MATES_COUNT, MATES_COUNT)
    effort = Effort(nprobe=1, depth=64, extra_fnir_max=_BOUND * MATES_COUNT / count)
    return Tuning(
        codebook=gallery.codebook,
        nlist=1,
        efforts={
            profile: replace(
                effort,
                proven=effort.extra_fnir_max <= profile.miss_rate_max(gallery.miss_rate_max),
            )
            for profile in Profile
        },
        points=(effort,),
        mates_count=count,
        nonmates_count=count,
        threshold=0.5,
        fpir=0.003,
        miss_rate_max=gallery.miss_rate_max,
        tuned_unix_ms=1_700_000_000_000,
    )


async def tune_recorded(coordinator: Coordinator, name: str, *, mates_count_max: int) -> Tuning:
    """Put such a tuning into a gallery's record; return it."""
    found = await coordinator.get(f"{keys.GALLERIES}{name}")
    assert found is not None, "only galleries that exist are tuned"
    gallery = records.decode_gallery(found.value)
    tuning = exact_tuning(gallery, mates_count_max=mates_count_max)
    tuned = records.encode_gallery(replace(gallery, tuning=tuning))
    await coordinator.txn([], [Put(found.key, tuned)])
    return tuning
