"""Codes and lists follow their rows into the shards that are filled: nothing is coded again."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, NoReturn

import numpy as np
import pytest

from facegrid import vectors
from facegrid.errors import InvalidError
from facegrid.vectors import Float32
from indexd.ann.index import ShardIndex
from indexd.ann.ivfpq import EncodedRows, IvfPq
from indexd.ann.train import train
from indexd.engine import coded as codebooks
from indexd.engine.coded import NamedCodebook
from indexd.engine.requests import EnrolRequest
from indexd.replica.codebooks import Codebooks
from tests.fakes.mirror_rig import DIM, HIGH, LOW, N1, N2, Rig, S, rigged, split_map, whole_map
from tests.unit.test_mirror import check_children

ROWS = 600


def rows(count: int, seed: int) -> vectors.Int8:
    x = np.random.default_rng(seed).normal(size=(count, DIM)).astype(np.float32)
    return vectors.quantize(x / np.linalg.norm(x, axis=1, keepdims=True))


@pytest.fixture(scope="module")
def codebook() -> NamedCodebook:
    trained = train(rows(1200, 7), seed=3, threads=1)
    return NamedCodebook(codebooks.encode(trained)[1], trained)


def many(number: int) -> EnrolRequest:
    ids = [f"{number}-{row}" for row in range(ROWS)]
    return EnrolRequest(
        f"r-{number}", [f"t-{i}" for i in ids], [f"s-{i}" for i in ids], rows(ROWS, number)
    )


def codes_of(index: ShardIndex) -> EncodedRows:
    encoded = index.encoded(0, index.rows_count)
    assert encoded is not None, "all rows are coded"
    return encoded


async def test_rows_are_not_coded_again(
    codebook: NamedCodebook, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rigged(say=False) as rig:
        await with_codebook(rig, codebook, monkeypatch)
        await rig.start(N1)
        await rig.start(N2)
        source = await rig.serving(S)
        for number in range(1, 5):
            await source.write(many(number))
        await source.absorb()
        expected = codes_by_row(source.state)
        coded_again: list[int] = []

        def count(_part: IvfPq, x: Float32) -> NoReturn:
            coded_again.append(len(x))
            raise AssertionError("coded again")

        monkeypatch.setattr(IvfPq, "encode", count)
        await rig.say(split_map())
        await rig.brought_over()
        found: dict[tuple[str, str], tuple[int, bytes]] = {}
        for shard_id in (LOW, HIGH):
            child = await rig.serving(shard_id)
            await child.absorb()
            found |= codes_by_row(child.state)
        assert (sum(coded_again), found) == (0, expected)
        check_children(rig)


async def test_the_thread_that_searches_codes_nothing(
    codebook: NamedCodebook, monkeypatch: pytest.MonkeyPatch
) -> None:
    coded_by: set[str] = set()
    encode = IvfPq.encode

    def watched(part: IvfPq, x: Float32) -> EncodedRows:
        coded_by.add(threading.current_thread().name)
        return encode(part, x)

    async with rigged() as rig:
        await with_codebook(rig, codebook, monkeypatch)
        await rig.start(N1)
        primary = await rig.serving(S)
        await primary.write(many(1))
        monkeypatch.setattr(IvfPq, "encode", watched)
        with ThreadPoolExecutor(1, "coding") as thread:
            primary.ports = replace(primary.ports, coding_thread=thread)
            await primary.absorb()
        assert primary.state.index.indexed_count == ROWS
    assert coded_by == {"coding_0"}


async def test_rows_of_another_codebook_are_coded_anew(
    codebook: NamedCodebook, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1 the source has the codes of the gallery's codebook before; 2 it is split."""
    other = NamedCodebook("ab" * 32, train(rows(1200, 9), seed=4, threads=1))
    async with rigged(say=False) as rig:
        await with_codebook(rig, codebook, monkeypatch)
        await rig.start(N1)
        await rig.start(N2)
        source = await rig.serving(S)
        await source.write(many(1))
        await source.use_codebook(other)
        assert source.state.codebook == other.sha256
        monkeypatch.setattr(type(source), "use_codebook", nothing)
        await rig.say(split_map())
        await rig.brought_over()
        child = await rig.serving(LOW)
        await child.absorb()
        assert child.state.codebook == codebook.sha256
        assert child.state.index.indexed_count == child.state.rows_count
        check_children(rig)


def test_codes_that_cannot_be_of_the_codebook_are_not_taken(codebook: NamedCodebook) -> None:
    index = ShardIndex(DIM)
    index.swap(index.rebuilt(codebook.codebook))
    x = rows(100, 1)
    index.append(x, np.arange(100, dtype=np.int32))
    wrong = EncodedRows(np.full(100, 10**6, np.int32), np.zeros((100, DIM // 8), np.uint8))
    index.know(0, wrong)
    assert index.absorb() == 100
    right = ShardIndex(DIM)
    right.swap(right.rebuilt(codebook.codebook))
    right.append(x, np.arange(100, dtype=np.int32))
    right.absorb()
    assert np.array_equal(codes_of(index).lists, codes_of(right).lists)
    with pytest.raises(InvalidError):
        index.append_encoded(x, np.arange(100, dtype=np.int32), wrong)


async def nothing(*_: object) -> None:
    return None


async def with_codebook(
    rig: Rig, codebook: NamedCodebook, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Give the gallery a codebook."""

    async def get(self: Codebooks, gallery: Any) -> NamedCodebook:
        del self, gallery
        return codebook

    monkeypatch.setattr(Codebooks, "get", get)
    rig.gallery = replace(rig.gallery, codebook=codebook.sha256)
    await rig.say(whole_map())


def codes_by_row(state: Any) -> dict[tuple[str, str], tuple[int, bytes]]:
    encoded = codes_of(state.index)
    return {
        (state.subjects.name_of_row(row), state.templates[row]): (int(one), code.tobytes())
        for row, (one, code) in enumerate(zip(encoded.lists, encoded.codes, strict=True))
    }
