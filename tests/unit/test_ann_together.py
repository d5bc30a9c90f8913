"""Several shards searched at once: counted, stopped early, and never worse than promised."""

from dataclasses import replace

import numpy as np
import pytest

from facegrid import vectors
from facegrid.tuning import Effort, Step
from indexd.ann import looking, self_test, steps
from indexd.ann.codebook import Codebook
from indexd.ann.index import ShardIndex
from indexd.ann.looking import Wanted
from indexd.ann.rescore import Hits
from indexd.ann.together import Asked, search

DIM = 32
NLIST = 16
ROWS = 2000
ALL = -2.0
WHOLE = Effort(nprobe=NLIST, depth=ROWS)
STEPPED = replace(WHOLE, steps=(Step(0.9, 2), Step(0.6, 6)))


def unit_rows(count: int, seed: int) -> vectors.Float32:
    x = np.random.default_rng(seed).standard_normal((count, DIM), dtype=np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.fixture(autouse=True)
def _small_shards_step_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "SPARED_ROWS_MIN", 0)


@pytest.fixture(scope="module")
def codebook() -> Codebook:
    made_up = self_test._made_up_codebook(np.random.default_rng(1))
    return replace(made_up, nlist=NLIST, nprobe=NLIST, centroids=unit_rows(NLIST, 2))


@pytest.fixture(scope="module")
def shards(codebook: Codebook) -> list[ShardIndex]:
    """Three shards: coded in full, with an exact tail, and without a codebook."""
    made = []
    for number, coded_count in enumerate([ROWS, ROWS - 300, 0]):
        index = ShardIndex(DIM)
        subjects = np.arange(ROWS, dtype=np.int32) // 2
        codes = vectors.quantize(unit_rows(ROWS, 10 + number))
        index.append(codes[:coded_count], subjects[:coded_count])
        if coded_count:
            index.swap(index.rebuilt(codebook))
        index.append(codes[coded_count:], subjects[coded_count:])
        made.append(index)
    return made


def probes_near(index: ShardIndex, rows: list[int], noise: float) -> vectors.Probes:
    own = vectors.dequantize(index.codes(np.array(rows)))
    mixed = own + noise * unit_rows(len(rows), 5)
    return vectors.prepare_probes(mixed / np.linalg.norm(mixed, axis=1, keepdims=True))


def lists(hits: Hits) -> list[list[tuple[int, float]]]:
    pairs = list(zip(hits.rows.tolist(), hits.scores.tolist(), strict=True))
    ends = np.cumsum(hits.counts).tolist()
    return [pairs[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]


def asked(shards: list[ShardIndex], effort: Effort) -> list[Asked]:
    return [Asked(index, effort if index.codebook else None) for index in shards]


def share(found: list[Hits]) -> float:
    rows = sum(hits.rows_count * len(hits.scanned) for hits in found)
    return sum(int(hits.scanned.sum()) for hits in found) / rows


def test_shards_together_answer_as_each_alone(shards: list[ShardIndex]) -> None:
    probes = vectors.prepare_probes(unit_rows(20, 3))

    found = search(asked(shards, WHOLE), Wanted(probes, 5, ALL))

    alone = [index.search(probes, 5, ALL, WHOLE if index.codebook else None) for index in shards]
    assert [lists(hits) for hits in found] == [lists(hits) for hits in alone]
    assert share(found) == share(alone) == 1.0


def test_pruned_searches_count_the_rows_of_their_lists_and_the_tail(
    shards: list[ShardIndex],
) -> None:
    index = shards[1]
    probes = vectors.prepare_probes(unit_rows(20, 3))

    hits = index.search(probes, 1, ALL, Effort(nprobe=3, depth=64))

    coded = index.coded
    assert coded is not None
    expected = coded.sizes[coded.coarse.nearest(probes, 3)].sum(axis=1) + 300
    assert hits.scanned.tolist() == expected.tolist()
    assert hits.rows_count == ROWS
    assert hits.scanned.max() < ROWS


def test_shards_of_one_codebook_may_be_searched_unequally_hard(shards: list[ShardIndex]) -> None:
    probes = vectors.prepare_probes(unit_rows(20, 3))
    efforts = [WHOLE, Effort(nprobe=3, depth=64)]
    both = [Asked(index, effort) for index, effort in zip(shards, efforts, strict=False)]

    found = search(both, Wanted(probes, 1, ALL))

    pairs = zip(shards, efforts, strict=False)
    alone = [index.search(probes, 1, ALL, effort) for index, effort in pairs]
    assert [lists(hits) for hits in found] == [lists(hits) for hits in alone]
    assert [hits.scanned.tolist() for hits in found] == [hits.scanned.tolist() for hits in alone]


def test_a_mate_ends_the_search_in_all_shards(shards: list[ShardIndex]) -> None:
    coded = shards[:2]
    probes = probes_near(shards[1], [5, 700, 1300], 0.05)

    found = search(asked(coded, STEPPED), Wanted(probes, 1, ALL))

    assert found[1].rows.tolist() == [5, 700, 1300]
    first = coded[0].coded
    assert first is not None
    two = first.coarse.nearest(probes, 2)
    assert found[0].scanned.tolist() == first.rows_in(two).tolist()


def test_a_high_threshold_ends_the_search_of_a_stranger(shards: list[ShardIndex]) -> None:
    probes = vectors.prepare_probes(unit_rows(20, 3))

    high = search(asked(shards[:1], STEPPED), Wanted(probes, 1, 0.95))
    middle = search(asked(shards[:1], STEPPED), Wanted(probes, 1, 0.65))
    none = search(asked(shards[:1], STEPPED), Wanted(probes, 1, ALL))

    assert share(high) < share(middle) < share(none)


def test_where_nothing_ends_it_a_stepped_search_answers_as_one_without_steps(
    shards: list[ShardIndex],
) -> None:
    probes = vectors.prepare_probes(unit_rows(40, 3))

    stepped = search(asked(shards, STEPPED), Wanted(probes, 50, ALL))

    whole = search(asked(shards, WHOLE), Wanted(probes, 50, ALL))
    assert [lists(hits) for hits in stepped] == [lists(hits) for hits in whole]
    assert share(stepped) == 1.0


@pytest.mark.parametrize("threshold", [ALL, 0.5, 0.7])
@pytest.mark.parametrize("depth", [1, ROWS])
def test_a_probe_gets_the_same_alone_and_in_company(
    shards: list[ShardIndex], threshold: float, depth: int
) -> None:
    unit = [probes_near(shards[i], [3, 99, 1001], 0.1 * (i + 1)).unit for i in range(3)]
    probes = vectors.prepare_probes(np.concatenate([*unit, unit_rows(30, 6)]))
    efforts = asked(shards, replace(STEPPED, depth=depth))

    together = search(efforts, Wanted(probes, 2, threshold))

    for number in range(len(probes)):
        wanted = Wanted(probes.part(slice(number, number + 1)), 2, threshold)
        for hits, one in zip(together, search(efforts, wanted), strict=True):
            assert lists(hits)[number] == lists(one)[0]
            assert hits.scanned[number] == one.scanned[0]


def test_who_ended_a_search_and_is_erased_before_its_end_does_not_end_it(
    codebook: Codebook, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1. A mate is found near by; 2. the search stops for it; 3. it is erased; 4. the answer is
    made from lists looked into anew.
    """
    x = unit_rows(ROWS, 10)
    index = ShardIndex(DIM)
    index.append(vectors.quantize(x), np.arange(ROWS, dtype=np.int32))
    index.swap(index.rebuilt(codebook))
    probe = probes_near(index, [5], 0.05)
    finish = looking.Looking.finish

    def erase_first(self: looking.Looking) -> None:
        index.erase(np.array([5]))
        finish(self)

    monkeypatch.setattr(looking.Looking, "finish", erase_first)

    hits = index.search(probe, 1, ALL, STEPPED)

    rest = index.search(probe, 1, ALL, WHOLE)
    assert lists(hits) == lists(rest)
    assert hits.rows.tolist() != [5]
