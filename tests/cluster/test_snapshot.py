"""Snapshots on real processes: made under load, restored here and elsewhere, killed in between."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import facegrid
from facegrid.testing.synthetic import SyntheticGallery
from fgctl.__main__ import run
from fgctl.local.cluster import LocalCluster
from tests.fakes.people import Answers, answers, enrol_all, settle
from tests.fakes.rig import holds, wait_for

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]

DIM = 64
TEMPLATES = 6000


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """Two nodes; each test uses a gallery and a repository of its own."""
    cluster = LocalCluster(tmp_path_factory.mktemp("cluster"), nodes=2)
    cluster.up()
    yield cluster
    cluster.down()


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """Another cluster."""
    cluster = LocalCluster(tmp_path_factory.mktemp("elsewhere"), nodes=1)
    cluster.up()
    yield cluster
    cluster.down()


@pytest.fixture(scope="module")
def people() -> SyntheticGallery:
    return SyntheticGallery(dim=DIM, templates_count=TEMPLATES, seed=3)


@pytest.fixture
def fgctl(capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Runs a command line and returns what it prints as JSON."""

    def call(*arguments: str, code: int = 0) -> Any:
        capsys.readouterr()
        found = run([*arguments, "--json"])
        printed = capsys.readouterr()
        assert found == code, printed.err
        return json.loads(printed.out) if code == 0 else printed.err

    return call


def connect(cluster: LocalCluster) -> facegrid.Client:
    return facegrid.Client(cluster.router_targets, timeout_s=60)


def filled(cluster: LocalCluster, name: str, people: SyntheticGallery) -> str:
    """Create a gallery of two copies with everybody in it; return its uid."""
    with connect(cluster) as client:
        made = client.create_gallery(
            name, dim=DIM, extractor="x@1", shards=4, replicas=2, train_at=0
        )
        enrol_all(client, name, people)
    return made.uid


def answered(cluster: LocalCluster, name: str, probes: np.ndarray) -> Answers:
    with connect(cluster) as client:
        settle(client, name)
        # Whom the index leaves out, far below any threshold, may depend on the order of rows.
        return answers(client, name, probes, profile="exhaustive")


def count(cluster: LocalCluster, name: str) -> int:
    with connect(cluster) as client:
        return client.get_gallery(name).templates_count


def subjects(people: SyntheticGallery, number: int) -> list[str]:
    return sorted(set(next(iter(people.blocks(4 * number))).subject_ids))[:number]


def test_erasures_after_a_snapshot_never_come_back_here_elsewhere_or_after_a_drop(
    cluster: LocalCluster,
    elsewhere: LocalCluster,
    people: SyntheticGallery,
    fgctl: Callable[..., Any],
    tmp_path: Path,
) -> None:
    """1 enrol and train; 2 stop and start, which flushes; 3 snapshot; 4 erase; 5 restore here and
    in another cluster; 6 erase once more; 7 drop; 8 restore again. Answers are exactly equal.
    """
    repo, home = str(tmp_path / "repo"), str(cluster.directory)
    filled(cluster, "staff", people)
    with connect(cluster) as client:
        client.train("staff")
    cluster.down()
    cluster.up()
    first = fgctl("snapshot", "create", "staff", repo, "--dir", home)
    doomed = subjects(people, 7)
    with connect(cluster) as client:
        client.erase("staff", subject_ids=doomed[:5])
    probes = people.probes(64, seed=9).vectors
    expected = answered(cluster, "staff", probes)

    here = fgctl(
        "snapshot", "restore", repo, first["snapshot"], "--gallery", "copy", "--dir", home
    )
    there = fgctl(
        "snapshot", "restore", repo, first["snapshot"], "--gallery", "copy", "--replicas", "1",
        "--dir", str(elsewhere.directory), "--erasures", str(cluster.store),
    )  # fmt: skip
    assert answered(cluster, "copy", probes) == expected
    assert answered(elsewhere, "copy", probes) == expected
    assert here["templates_count"] == there["templates_count"] == count(cluster, "staff")
    assert here["digest"] == there["digest"]
    assert here["erased_count"] > 0

    with connect(cluster) as client:
        client.erase("staff", subject_ids=doomed[5:])
        left = client.get_gallery("staff").templates_count
        client.drop_gallery("staff")
    shards = cluster.store / "shards"
    wait_for(holds(lambda: not list(shards.glob("staff.*/*/*")), "objects are left"))
    again = fgctl(
        "snapshot", "restore", repo, first["snapshot"], "--gallery", "again", "--shards", "3",
        "--dir", home,
    )  # fmt: skip
    assert again["templates_count"] == left
    with connect(cluster) as client:
        for subject in doomed:
            with pytest.raises(facegrid.NotFoundError):
                client.verify("again", subject_id=subject, probe=probes[0])


def test_a_snapshot_under_load_has_all_that_was_acknowledged_and_the_next_copies_little(
    cluster: LocalCluster,
    elsewhere: LocalCluster,
    people: SyntheticGallery,
    fgctl: Callable[..., Any],
    tmp_path: Path,
) -> None:
    """1 enrol without a pause; 2 two snapshots; 3 everything acknowledged before each is in it."""
    repo, home = str(tmp_path / "repo"), str(cluster.directory)
    filled(cluster, "busy", people)
    acknowledged: list[str] = []
    stop = threading.Event()

    def enrol() -> None:
        x = np.random.default_rng(5).normal(size=(DIM,)).astype(np.float32)
        with connect(cluster) as client:
            while not stop.is_set():
                name = f"extra-{len(acknowledged)}"
                client.enrol(
                    "busy", template_ids=["t"], subject_ids=[name],
                    vectors=x[None] / np.linalg.norm(x),
                )  # fmt: skip
                acknowledged.append(name)

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(enrol)
        wait_for(holds(lambda: len(acknowledged) > 5, "too little is acknowledged"))
        known = [list(acknowledged)]
        made = [fgctl("snapshot", "create", "busy", repo, "--dir", home)]
        known.append(list(acknowledged))
        made.append(fgctl("snapshot", "create", "busy", repo, "--dir", home))
        stop.set()
        writing.result()

    assert fgctl("snapshot", "verify", repo)["ok"]
    assert made[1]["new_objects_count"] <= len(acknowledged) - len(known[0]), "the log's new end"
    assert made[1]["new_bytes"] * 20 < made[1]["bytes"]
    for number, snapshot in enumerate(made):
        name = f"busy-{number}"
        done = fgctl(
            "snapshot", "restore", repo, snapshot["snapshot"], "--gallery", name, "--replicas",
            "1", "--dir", str(elsewhere.directory), "--erasures", str(cluster.store),
        )  # fmt: skip
        assert TEMPLATES + len(known[number]) <= done["templates_count"]
        assert done["templates_count"] <= TEMPLATES + len(acknowledged)
        with connect(elsewhere) as client:
            for subject in known[number]:
                assert client.get_template(name, "t", subject_id=subject).subject_id == subject


def killed(arguments: list[str], when: Callable[[], bool]) -> None:
    """Run fgctl as a process of its own and kill it at a certain moment, if it lives so long."""
    process = subprocess.Popen(
        [sys.executable, "-m", "fgctl", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_for(holds(lambda: when() or process.poll() is not None, "not reached"))
    process.kill()
    process.wait()


def test_a_create_and_a_restore_that_were_killed_are_repeated(
    cluster: LocalCluster, people: SyntheticGallery, fgctl: Callable[..., Any], tmp_path: Path
) -> None:
    """1 create is killed while it copies; 2 again; 3 restore is killed while it stores; 4 resume;
    5 delete refuses until the marks of the killed are explained.
    """
    repo, home = tmp_path / "repo", str(cluster.directory)
    filled(cluster, "fragile", people)
    killed(
        ["snapshot", "create", "fragile", str(repo), "--dir", home],
        lambda: len(list(repo.glob("objects/*"))) > 3,
    )
    copied = {path.name for path in repo.glob("objects/*")}
    assert copied
    made = fgctl("snapshot", "create", "fragile", str(repo), "--dir", home)
    assert fgctl("snapshot", "verify", str(repo))["ok"]
    if list(repo.glob("pending/*")):
        assert made["new_objects_count"] <= made["objects_count"] - len(copied)

    restore = ["snapshot", "restore", str(repo), made["snapshot"], "--gallery", "mended"]
    restore += ["--dir", home]
    killed(restore, lambda: bool(list((cluster.store / "shards").glob("mended.*/segments/*"))))
    assert "GALLERY_EXISTS" in fgctl(*restore, code=1)
    assert fgctl(*restore, "--resume")["templates_count"] == TEMPLATES
    probes = people.probes(32, seed=9).vectors
    assert answered(cluster, "mended", probes) == answered(cluster, "fragile", probes)
    assert not list((cluster.store / "shards").glob("mended.*/loads/*")), "no pin is left"

    # The first create may have been quicker than its killer.
    for one in fgctl("snapshot", "list", str(repo))["snapshots"]:
        delete = ["snapshot", "delete", str(repo), one["snapshot"], "--yes"]
        if list(repo.glob("pending/*")):
            assert "REPOSITORY_BUSY" in fgctl(*delete, code=1)
        fgctl(*delete, "--others-ended")
    assert [path for path in repo.rglob("*") if path.is_file() and ".tmp" not in path.parts] == []


def test_a_restore_is_refused_where_nobody_knows_what_was_erased(
    cluster: LocalCluster,
    elsewhere: LocalCluster,
    people: SyntheticGallery,
    fgctl: Callable[..., Any],
    tmp_path: Path,
) -> None:
    repo = str(tmp_path / "repo")
    filled(cluster, "lost", people)
    made = fgctl("snapshot", "create", "lost", repo, "--dir", str(cluster.directory))
    restore = ["snapshot", "restore", repo, made["snapshot"], "--gallery", "lost"]
    restore += ["--replicas", "1", "--dir", str(elsewhere.directory)]

    assert "ERASURES_UNKNOWN" in fgctl(*restore, code=1)
    with connect(elsewhere) as client, pytest.raises(facegrid.NotFoundError):
        client.get_gallery("lost")
    done = fgctl(*restore, "--accept-lost-erasures")
    assert done["templates_count"] == TEMPLATES
