"""What galleries say of their searches, by the router and by the fake that stands for it."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import numpy as np
import pytest

from facegrid import AsyncClient, FacegridError, InvalidError, NotFoundError, Profile, vectors
from facegrid.errors import PreconditionError
from facegrid.testing.fake_router import FakeRouter
from tests.fakes.router_cluster import cluster

DIM = 8
X = np.eye(DIM, dtype=np.float32)
IDS = [f"t-{row}" for row in range(DIM)]


@pytest.fixture(params=["fake", "real"])
async def client(request: pytest.FixtureRequest) -> AsyncIterator[AsyncClient]:
    """A router: the fake one, and the real one over nodes that are fakes."""
    async with AsyncExitStack() as stack:
        if request.param == "fake":
            address = (await stack.enter_async_context(FakeRouter())).address
        else:
            address = (await stack.enter_async_context(cluster())).client.address
        yield await stack.enter_async_context(AsyncClient(address, timeout_s=10))


async def test_a_gallery_is_balanced_and_may_miss_one_mate_in_a_thousand(
    client: AsyncClient,
) -> None:
    made = await client.create_gallery("staff", dim=DIM, extractor="e@1")

    assert (made.profile, made.miss_rate_max, made.tuning) == (Profile.BALANCED, 0.001, None)


async def test_a_gallery_keeps_the_profile_and_the_miss_rate_that_it_was_created_with(
    client: AsyncClient,
) -> None:
    made = await client.create_gallery(
        "staff", dim=DIM, extractor="e@1", profile="fast", miss_rate_max=0.01
    )

    assert (made.profile, made.miss_rate_max) == (Profile.FAST, 0.01)
    found = await client.get_gallery("staff")
    assert (found.profile, found.miss_rate_max) == (Profile.FAST, 0.01)


async def test_a_gallery_keeps_eight_bits_of_a_component_or_four_if_told(
    client: AsyncClient,
) -> None:
    made = await client.create_gallery("staff", dim=DIM, extractor="e@1")
    coarse = await client.create_gallery("coarse", dim=DIM, extractor="e@1", component_bits=4)

    assert (made.component_bits, coarse.component_bits) == (8, 4)
    assert (await client.get_gallery("coarse")).component_bits == 4
    with pytest.raises(FacegridError) as caught:
        await client.create_gallery("coarse", dim=DIM, extractor="e@1")
    assert caught.value.reason == "GALLERY_EXISTS"


@pytest.mark.parametrize("bits", [1, 5, 16])
async def test_other_numbers_of_bits_are_refused(client: AsyncClient, bits: int) -> None:
    with pytest.raises(InvalidError) as caught:
        await client.create_gallery("staff", dim=DIM, extractor="e@1", component_bits=bits)

    assert caught.value.reason == "OUT_OF_BOUNDS"
    assert caught.value.facts["field"] == "component_bits"


async def test_templates_come_back_rounded_as_the_gallery_says(client: AsyncClient) -> None:
    x = np.random.default_rng(3).standard_normal((DIM, DIM), dtype=np.float32)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    for name, bits in (("fine", 8), ("coarse", 4)):
        await client.create_gallery(name, dim=DIM, extractor="e@1", component_bits=bits)
        await client.enrol(name, template_ids=IDS, subject_ids=IDS, vectors=x)

        found = await client.get_template(name, IDS[2])

        expected = vectors.dequantize(vectors.quantize(x[2:3], bits))[0]
        np.testing.assert_array_equal(found.vector, expected)


async def test_other_wishes_for_a_gallery_that_exists_are_a_conflict(client: AsyncClient) -> None:
    await client.create_gallery("staff", dim=DIM, extractor="e@1", profile="fast")
    await client.create_gallery("staff", dim=DIM, extractor="e@1", profile="fast")

    for wish in ({"profile": "balanced"}, {"profile": "fast", "miss_rate_max": 0.05}):
        with pytest.raises(FacegridError) as caught:
            await client.create_gallery("staff", dim=DIM, extractor="e@1", **wish)  # type: ignore[arg-type]  # of both types
        assert caught.value.reason == "GALLERY_EXISTS"


async def test_what_is_not_given_stays(client: AsyncClient) -> None:
    await client.create_gallery("staff", dim=DIM, extractor="e@1")

    first = await client.update_gallery("staff", profile="exhaustive")
    second = await client.update_gallery("staff", miss_rate_max=0.1)
    third = await client.update_gallery("staff")

    assert (first.profile, first.miss_rate_max) == (Profile.EXHAUSTIVE, 0.001)
    assert (second.profile, second.miss_rate_max) == (Profile.EXHAUSTIVE, 0.1)
    assert third == second


async def test_a_gallery_that_is_not_there_is_neither_changed_nor_tuned(
    client: AsyncClient,
) -> None:
    with pytest.raises(NotFoundError):
        await client.update_gallery("nobody", profile="fast")
    with pytest.raises(NotFoundError):
        await client.tune("nobody")


async def test_a_gallery_that_is_searched_exactly_cannot_be_tuned(client: AsyncClient) -> None:
    await client.create_gallery("staff", dim=DIM, extractor="e@1")

    with pytest.raises(InvalidError) as caught:
        await client.tune("staff")

    assert caught.value.reason == "NOT_TRAINED"


async def test_a_tuning_says_what_was_measured_and_for_which_codebook(
    client: AsyncClient,
) -> None:
    await client.create_gallery("staff", dim=DIM, extractor="e@1")
    trained = await client.train("staff")

    tuned = await client.tune("staff", mates=40_000)

    assert tuned.tuning is not None
    assert tuned.tuning.codebook == tuned.codebook == trained.codebook
    assert tuned.tuning.miss_rate_max == tuned.miss_rate_max
    assert tuned.tuning.mates_count == 40_000
    assert set(tuned.tuning.efforts) == set(Profile)


@pytest.mark.parametrize("profile", [None, *Profile])
async def test_searches_may_name_each_profile(client: AsyncClient, profile: str | None) -> None:
    await client.create_gallery("staff", dim=DIM, extractor="e@1")
    token = await client.enrol("staff", template_ids=IDS, subject_ids=IDS, vectors=X)

    (found,) = await client.identify("staff", X[:1], k=1, after=token, profile=profile)

    assert [candidate.subject_id for candidate in found.candidates] == ["t-0"]


async def test_a_gallery_that_an_older_router_made_of_eight_bits_is_told() -> None:
    """It does not know the field, and made a gallery without."""
    async with FakeRouter() as older:
        older.knows_component_bits = False
        async with AsyncClient(older.address, timeout_s=10) as client:
            with pytest.raises(PreconditionError) as told:
                await client.create_gallery("coarse", dim=DIM, extractor="e@1", component_bits=4)
            made = await client.get_gallery("coarse")

    assert told.value.reason == "COMPONENT_BITS_UNKNOWN"
    assert made.component_bits == 8
