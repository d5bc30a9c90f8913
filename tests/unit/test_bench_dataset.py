"""Probes taken out of somebody's own vectors, and what cannot be measured on some."""

from pathlib import Path

import numpy as np
import pytest

from bench import report
from bench.dataset import from_files, held_out, synthetic
from facegrid.errors import InvalidError

TEN = list("abcdefghij")


def write(folder: Path, vectors: object, names: list[str]) -> tuple[Path, Path]:
    np.save(folder / "x.npy", np.asarray(vectors))
    (folder / "s.txt").write_text("\n".join(names) + "\n")
    return folder / "x.npy", folder / "s.txt"


def test_held_out_rows_are_never_enrolled_and_strangers_not_at_all() -> None:
    names = TEN * 3

    enrolled, mated, nonmated = held_out(names, probes_count=8, seed=1)

    asked = {*mated.tolist(), *nonmated.tolist()}
    strangers = {names[row] for row in nonmated}
    assert not asked & {*enrolled.tolist()}
    assert not strangers & {names[row] for row in enrolled}
    assert {names[row] for row in mated} <= {names[row] for row in enrolled}
    assert (len(mated), len(nonmated)) == (4, 1)
    assert len(enrolled) == 30 - 4 - 3


def test_vectors_are_scaled_and_probes_know_their_mates(tmp_path: Path) -> None:
    x = np.random.default_rng(1).normal(size=(30, 8)) * 20
    paths = write(tmp_path, x, TEN * 3)

    data = from_files(*paths, probes_count=8, seed=1)

    block = next(data.blocks(100))
    assert np.allclose(np.linalg.norm(block.vectors, axis=1), 1)
    assert block.template_ids[0] == f"row-{data.rows[0]:08d}"
    assert block.subject_ids[0] == TEN[data.rows[0] % 10]
    assert sum(mate is not None for mate in data.probes.mate_subject_ids) == 4
    assert (len(data), data.dim, data.gaps) == (23, 8, ())


def test_data_without_second_templates_says_what_is_missing(tmp_path: Path) -> None:
    paths = write(tmp_path, np.eye(16, dtype=np.float32)[:10], TEN)

    data = from_files(*paths, probes_count=8, seed=1)

    assert (len(data), len(data.probes)) == (9, 1)
    assert data.gaps == ("no subject has two templates: rank-1 and extra FNIR cannot be measured",)


def test_data_of_few_subjects_says_what_is_missing(tmp_path: Path) -> None:
    paths = write(tmp_path, np.eye(8, dtype=np.float32)[:3], ["a", "b", "b"])

    data = from_files(*paths, probes_count=8, seed=1)

    assert (len(data), data.probes.mate_subject_ids) == (2, ["b"])
    assert data.gaps == ("fewer than ten subjects: FPIR and a threshold cannot be measured",)


@pytest.mark.parametrize(
    ("vectors", "names", "reason"),
    [
        (np.ones(8), ["a"], "VECTOR_SHAPE"),
        (np.ones((0, 8)), [], "VECTOR_SHAPE"),
        (np.ones((2, 8), int), ["a", "b"], "VECTOR_DTYPE"),
        (np.ones((2, 8)), ["a"], "COUNT_MISMATCH"),
        (np.ones((2, 6)), ["a", "b"], "OUT_OF_BOUNDS"),
        (np.zeros((2, 8)), ["a", "b"], "VECTOR_UNUSABLE"),
        (np.full((2, 8), np.nan), ["a", "b"], "VECTOR_UNUSABLE"),
        (np.full((2, 8), 1e300), ["a", "b"], "VECTOR_UNUSABLE"),
        (np.full((2, 8), 1e-300), ["a", "b"], "VECTOR_UNUSABLE"),
        (np.ones((5, 8)), TEN[:5], "TOO_FEW"),
    ],
)
def test_files_that_cannot_be_used_are_refused(
    tmp_path: Path, vectors: object, names: list[str], reason: str
) -> None:
    with pytest.raises(InvalidError) as caught:
        from_files(*write(tmp_path, vectors, names), probes_count=8, seed=1)

    assert caught.value.reason == reason
    assert f"path={tmp_path}" in caught.value.message


@pytest.mark.parametrize("line", [b"", b"caf\xe9"])
def test_a_malformed_subject_is_named_by_its_file_and_line(tmp_path: Path, line: bytes) -> None:
    vectors, subjects = write(tmp_path, np.ones((60, 8)), TEN * 6)
    lines = subjects.read_bytes().splitlines(keepends=True)
    lines[49] = line + b"\n"
    subjects.write_bytes(b"".join(lines))

    with pytest.raises(InvalidError) as caught:
        from_files(vectors, subjects, probes_count=20, seed=1)

    assert caught.value.message.endswith(f" path={subjects} line=50 row=49")
    assert caught.value.row == 49


def test_results_are_named_by_their_second_and_never_replaced(tmp_path: Path) -> None:
    def write_it() -> Path:
        moment_ms = 1_795_000_000_000
        return report.write("quick", ["it"], unix_ms=moment_ms, results={}, folder=tmp_path)

    assert write_it() == tmp_path / "2026-11-18T110640Z-quick.json"
    with pytest.raises(FileExistsError):
        write_it()


def test_synthetic_data_is_the_generator_s(tmp_path: Path) -> None:
    data = synthetic(2000, probes_count=10, dim=16, seed=3, folder=tmp_path)

    assert (len(data), data.dim, len(data.probes), data.gaps) == (2000, 16, 10, ())
    assert [len(block) for block in data.blocks(1500)] == [1500, 500]
    assert data.template_ids[-1] == "t-0002000"


def test_percentile_is_a_measured_value() -> None:
    values = [5.0, 1.0, 4.0, 2.0, 3.0]

    assert [report.percentile(values, share) for share in (0.5, 0.99)] == [3.0, 5.0]
    assert report.spread(values) == report.Spread(median=3.0, low=1.0, high=5.0, count=5)


def test_a_command_is_told_without_the_folders_of_one_machine() -> None:
    words = ["--results", "a", "--rounds", "3", "--venv=b", "--results=c", "--venv", "d", "--x"]

    assert report.without_folders(words) == ["--rounds", "3", "--x"]
