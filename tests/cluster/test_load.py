"""fgctl load on real processes: killed again and again, nodes killed meanwhile, bad input."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import facegrid
from facegrid.testing.synthetic import SyntheticGallery
from fgctl.local.cluster import LocalCluster
from tests.fakes.people import answers, enrol_all, probes_of, settle

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
DIM = 64
TEMPLATES = 6000
SHARDS = 2


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """Two nodes, one router, one etcd; each test uses a gallery of its own."""
    cluster = LocalCluster(tmp_path_factory.mktemp("cluster"), nodes=2, replicas=2)
    cluster.up()
    yield cluster
    cluster.down()


@pytest.fixture(scope="module")
def people() -> SyntheticGallery:
    return SyntheticGallery(dim=DIM, templates_count=TEMPLATES, seed=3)


@dataclass
class Files:
    """An input, and the command line that loads it into a gallery."""

    cluster: LocalCluster
    folder: Path

    def arguments(self, gallery: str, *more: str) -> list[str]:
        folder = self.folder
        return [
            "load",
            f"--gallery={gallery}",
            f"--vectors={folder / 'x.npy'}",
            f"--subjects={folder / 's.txt'}",
            f"--templates={folder / 't.txt'}",
            f"--dir={self.cluster.directory}",
            "--json",
            *more,
        ]

    def run(self, gallery: str, *more: str, death: tuple[str, str] = ("", "after0")) -> "Ended":
        command = [sys.executable, "-m", "tests.fakes.dying_load", *death]
        done = subprocess.run(
            [*command, *self.arguments(gallery, *more)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return Ended(done.returncode, done.stdout, done.stderr)


@dataclass(frozen=True)
class Ended:
    """What a process left."""

    code: int
    out: str
    err: str

    def report(self) -> dict[str, int]:
        assert self.code == 0, self.err
        found: dict[str, int] = json.loads(self.out)
        return found


@pytest.fixture
def files(cluster: LocalCluster, people: SyntheticGallery, tmp_path: Path) -> Files:
    blocks = list(people.blocks(TEMPLATES))
    np.save(tmp_path / "x.npy", np.concatenate([block.vectors for block in blocks]))
    for name, kind in (("s.txt", "subject_ids"), ("t.txt", "template_ids")):
        lines = [one for block in blocks for one in getattr(block, kind)]
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines))
    return Files(cluster, tmp_path)


def create(cluster: LocalCluster, *names: str) -> None:
    with facegrid.Client(cluster.router_targets, timeout_s=60) as client:
        for name in names:
            client.create_gallery(
                name, dim=DIM, extractor="x@1", shards=SHARDS, replicas=2, train_at=0
            )


def pins(cluster: LocalCluster, gallery: str) -> list[Path]:
    return list(cluster.store.glob(f"shards/{gallery}.*/loads/*"))


def segments(cluster: LocalCluster, gallery: str) -> list[Path]:
    return list(cluster.store.glob(f"shards/{gallery}.*/segments/*"))


def same_answers(cluster: LocalCluster, people: SyntheticGallery, one: str, other: str) -> None:
    """Two galleries count the same and answer the same, from every copy in turn."""
    probes = probes_of(people)
    with facegrid.Client(cluster.router_targets, timeout_s=60) as client:
        counts = [client.get_gallery(name).templates_count for name in (one, other)]
        assert counts == [TEMPLATES, TEMPLATES]
        settle(client, one)
        settle(client, other)
        expected = answers(client, other, probes)
        for _ in range(4):
            assert answers(client, one, probes) == expected


DEATHS = [
    ("journal load", "after1"),
    ("put loads", "after2"),
    ("put segments", "before3"),
    ("put segments", "after2"),
    ("journal stored", "before1"),
    ("journal stored", "after1"),
    ("journal committing", "after1"),
    ("commit", "before1"),
    ("commit", "after1"),
    ("journal committed", "after1"),
    ("unpin", "before1"),
    ("journal done", "before1"),
]


def test_a_load_killed_again_and_again_goes_on_and_equals_enrolment_through_the_log(
    cluster: LocalCluster, people: SyntheticGallery, files: Files
) -> None:
    """1 killed at twelve steps, one after the other; in between all processes are stopped in
    order once, which flushes and sweeps; 2 run to its end; 3 compared with the log; 4 kill -9.
    """
    create(cluster, "again", "again-log")
    with facegrid.Client(cluster.router_targets, timeout_s=60) as client:
        enrol_all(client, "again-log", people)
    for number, death in enumerate(DEATHS):
        ended = files.run("again", death=death)
        assert ended.code == -signal.SIGKILL, (death, ended.err)
        if number == 5:
            cluster.down()
            cluster.up()
            assert len(pins(cluster, "again")) >= SHARDS, "nothing pinned was swept"
    report = files.run("again").report()
    assert (report["loaded_count"], report["unchanged_count"]) == (0, 0)
    assert (report["already_count"], report["rows_count"]) == (TEMPLATES, TEMPLATES)
    assert not pins(cluster, "again")
    same_answers(cluster, people, "again", "again-log")
    for node in ("n1", "n2"):
        cluster.kill_node(node)
        cluster.start_node(node)
    same_answers(cluster, people, "again", "again-log")


def test_the_primary_killed_between_upload_and_commit_and_after_it(
    cluster: LocalCluster, people: SyntheticGallery, files: Files
) -> None:
    """1 loader killed before its first commit; 2 both nodes killed; 3 loader killed after a
    commit; 4 both nodes killed; 5 run to its end.
    """
    create(cluster, "primary", "primary-log")
    with facegrid.Client(cluster.router_targets, timeout_s=60) as client:
        enrol_all(client, "primary-log", people)
    for death in (("commit", "before1"), ("commit", "after1")):
        assert files.run("primary", death=death).code == -signal.SIGKILL
        for node in ("n1", "n2"):
            cluster.kill_node(node)
            cluster.start_node(node)
    report = files.run("primary").report()
    assert report["loaded_count"] + report["already_count"] == TEMPLATES
    assert report["unchanged_count"] == 0, "who asks again hears the same"
    same_answers(cluster, people, "primary", "primary-log")


def test_a_load_into_a_trained_gallery_that_has_some_of_the_rows(
    cluster: LocalCluster, people: SyntheticGallery, files: Files
) -> None:
    """1 a third through the log; 2 train; 3 load all of it; 4 erase a subject that was loaded."""
    create(cluster, "trained")
    with facegrid.Client(cluster.router_targets, timeout_s=60) as client:
        blocks = list(people.blocks(1000))
        for block in blocks[:2]:
            client.enrol(
                "trained",
                template_ids=block.template_ids,
                subject_ids=block.subject_ids,
                vectors=block.vectors,
            )
        client.train("trained")
        report = files.run("trained").report()
        assert (report["loaded_count"], report["unchanged_count"]) == (TEMPLATES - 2000, 2000)
        gone = blocks[4].subject_ids[0]
        token = client.erase("trained", subject_ids=[gone]).token
        found = client.identify("trained", blocks[4].vectors[:50], k=5, after=token)
    for subject_id, one in zip(blocks[4].subject_ids[:50], found, strict=True):
        subjects = [candidate.subject_id for candidate in one.candidates]
        assert gone not in subjects
        assert subject_id in (gone, subjects[0])


def test_bad_input_is_refused_by_row_and_leaves_nothing_pinned(
    cluster: LocalCluster, files: Files
) -> None:
    create(cluster, "bad")
    x = np.load(files.folder / "x.npy")
    x[4321, 7] = np.inf
    np.save(files.folder / "x.npy", x)
    ended = files.run("bad")
    assert (ended.code, "row=4321" in ended.err) == (1, True), ended.err
    assert "VECTOR_NOT_FINITE" in ended.err
    assert not pins(cluster, "bad")
    with facegrid.Client(cluster.router_targets, timeout_s=60) as client:
        assert client.get_gallery("bad").templates_count == 0


def test_what_is_no_load_is_refused_before_anything_is_stored(
    cluster: LocalCluster, files: Files, tmp_path: Path
) -> None:
    create(cluster, "other")
    for gallery, more, reason in (
        ("nobody", (), "GALLERY_UNKNOWN"),
        ("other", (f"--store=dir:{tmp_path / 'elsewhere'}",), "STORE_ELSEWHERE"),
    ):
        ended = files.run(gallery, *more)
        assert (ended.code, f"reason={reason}" in ended.err) == (1, True), ended.err
    np.save(files.folder / "x.npy", np.ones((TEMPLATES, DIM * 2), np.float32) / 8)
    assert "reason=DIM_MISMATCH" in files.run("other").err
    (files.folder / "s.txt").write_text("s-1\n")
    assert "reason=COUNT_MISMATCH" in files.run("other").err
    assert not segments(cluster, "other")


def test_a_load_is_given_up_and_another_begins(cluster: LocalCluster, files: Files) -> None:
    create(cluster, "given-up")
    assert files.run("given-up", death=("journal committing", "before1")).code < 0
    assert pins(cluster, "given-up")
    ended = files.run("given-up", "--abort", "--yes")
    assert ended.report()["pins_deleted_count"] == len(segments(cluster, "given-up"))
    assert not pins(cluster, "given-up")
    assert files.run("given-up").report()["loaded_count"] == TEMPLATES


@pytest.mark.parametrize("death", ["before1", "after1"])
def test_a_load_in_doubt_is_given_up_without_its_input(
    cluster: LocalCluster, files: Files, death: str
) -> None:
    """1 killed around a commit; 2 a file changes; 3 refused, and told how; 4 given up; 5 anew."""
    gallery = f"doubt-{death}"
    create(cluster, gallery)
    assert files.run(gallery, death=("commit", death)).code == -signal.SIGKILL
    subjects = files.folder / "s.txt"
    whole = subjects.read_text()
    subjects.write_text(whole[::-1].strip() + "\n")
    changed = files.run(gallery)
    assert (changed.code, "--abort, which first asks" in changed.err) == (1, True), changed.err
    subjects.write_text(whole)
    (files.folder / "x.npy").rename(files.folder / "kept.npy")
    work = f"--work={files.folder / f'x.npy.load-{gallery}'}"
    told = fgctl("load", f"--gallery={gallery}", work, f"--dir={cluster.directory}", "--abort")
    assert told.code == 0, told.err
    report = json.loads(told.out)
    with facegrid.Client(cluster.router_targets, timeout_s=60) as client:
        committed_count = client.get_gallery(gallery).templates_count
    assert sum(report["committed"].values()) == committed_count > 0
    assert sum(report["not_committed"].values()) == TEMPLATES - committed_count
    assert not pins(cluster, gallery)
    (files.folder / "kept.npy").rename(files.folder / "x.npy")
    anew = files.run(gallery).report()
    assert (anew["unchanged_count"], anew["already_count"]) == (committed_count, 0)
    for name in ("x.npy", "s.txt"):
        (files.folder / name).touch()
    assert files.run(gallery).report()["already_count"] == TEMPLATES
    over = files.run(gallery, "--abort", "--yes")
    assert "finished" in over.err, over.err


def fgctl(*arguments: str) -> Ended:
    """Run it as it is."""
    done = subprocess.run(
        [sys.executable, "-m", "fgctl", *arguments, "--json", "--yes"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return Ended(done.returncode, done.stdout, done.stderr)
