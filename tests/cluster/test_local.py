"""A whole cluster on this machine, started, used, hurt and stopped through fgctl."""

import io
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fgctl import cluster_file
from fgctl.__main__ import run
from fgctl.local import processes
from fgctl.local.cluster import LocalCluster

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]

DIM = 32
SUBJECTS = 300
COMMAND_S = 120.0


def fgctl(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command line as a shell does."""
    return subprocess.run(
        [sys.executable, "-m", "fgctl", *arguments],
        capture_output=True,
        text=True,
        timeout=COMMAND_S,
        check=False,
        env={**os.environ, **environment},  # noqa: TID251 - what a shell would hand on
    )


def answer(*arguments: str) -> Any:
    """Run a command line in this process, which is quicker, and return its JSON document."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = run([*arguments, "--json"])
    assert (code, err.getvalue()) == (0, "")
    return json.loads(out.getvalue())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cluster of two nodes that runs; tests leave it running."""
    directory: Path = tmp_path_factory.mktemp("cluster")
    LocalCluster(directory, nodes=2).up()
    yield directory
    LocalCluster(directory).down()


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Vectors of SUBJECTS subjects s0, s1, ...: x.npy, and s.txt beside it."""
    directory: Path = tmp_path_factory.mktemp("vectors")
    x = np.random.default_rng(5).normal(size=(SUBJECTS, DIM)).astype(np.float32)
    np.save(directory / "x.npy", x / np.linalg.norm(x, axis=1, keepdims=True))
    lines = "".join(f"s{number}\n" for number in range(SUBJECTS))
    (directory / "s.txt").write_text(lines)
    return directory


def enrolled(folder: Path, vectors: Path, name: str) -> None:
    on = ("--dir", str(folder))
    create = ("gallery", "create", name, "--dim", str(DIM), "--extractor", "test@1")
    answer(*create, "--shards", "3", *on)
    files = ("--vectors", str(vectors / "x.npy"), "--subjects", str(vectors / "s.txt"))
    assert answer("enrol", "--gallery", name, *files, *on)["rows_count"] == SUBJECTS


def first_candidates(folder: Path, vectors: Path, name: str) -> list[tuple[str, float]]:
    probes = ("--probes", str(vectors / "x.npy"), "--k", "1")
    found = answer("identify", "--gallery", name, *probes, "--dir", str(folder))
    return [
        (best["subject_id"], best["score"]) for one in found["lists"] for best in one["candidates"]
    ]


def mates(found: Sequence[tuple[str, float]]) -> list[str]:
    return [subject_id for subject_id, _ in found]


ALL_MATES = [f"s{number}" for number in range(SUBJECTS)]


def test_up_says_where_everything_is_and_all_of_it_serves(folder: Path) -> None:
    up = json.loads(fgctl("local", "up", "--dir", str(folder), "--detach", "--json").stdout)
    record = cluster_file.load(folder)
    assert up == {
        "dir": str(folder),
        "routers": list(record.router_targets),
        "nodes": [
            {"id": node.name, "pid": node.pid, "address": node.address}
            for node in record.of_kind("node")
        ],
        "etcd": [{"pid": one.pid, "address": one.address} for one in record.of_kind("etcd")],
    }
    assert [node["id"] for node in up["nodes"]] == ["n1", "n2"]
    status = answer("local", "status", "--dir", str(folder))
    assert [(one["id"], one["alive"], one["problem"]) for one in status["processes"]] == [
        (name, True, "") for name in ("etcd1", "n1", "n2", "router1")
    ]


def test_templates_are_enrolled_found_and_erased(folder: Path, vectors: Path) -> None:
    enrolled(folder, vectors, "verbs")
    assert mates(first_candidates(folder, vectors, "verbs")) == ALL_MATES

    erase = ("erase", "--gallery", "verbs", "--subject", "s7", "--yes")
    erased = fgctl(*erase, "--dir", str(folder), "--json").stdout
    assert json.loads(erased) == {"gallery": "verbs", "erased_templates_count": 1}
    assert "s7" not in mates(first_candidates(folder, vectors, "verbs"))


def test_a_killed_node_comes_back_with_what_it_had(folder: Path, vectors: Path) -> None:
    """1. enrol, 2. SIGKILL a node, 3. start it, 4. ask again: equal answers, to the last bit."""
    enrolled(folder, vectors, "killed")
    before = first_candidates(folder, vectors, "killed")
    answer("local", "kill", "n1", "--dir", str(folder))
    killed = LocalCluster(folder).status()
    assert [one.process.name for one in killed if not one.alive] == ["n1"]

    answer("local", "start", "n1", "--dir", str(folder))
    assert first_candidates(folder, vectors, "killed") == before
    assert mates(before) == ALL_MATES


def test_a_node_is_started_without_waiting_for_a_router_that_was_killed(folder: Path) -> None:
    on = ("--dir", str(folder))
    for name in ("router1", "n1"):
        answer("local", "kill", name, *on)
    try:
        assert answer("local", "start", "n1", *on)["id"] == "n1"
        alive = {one.process.name: one.alive for one in LocalCluster(folder).status()}
        assert (alive["n1"], alive["router1"]) == (True, False)
    finally:
        answer("local", "start", "router1", *on)


def test_more_replicas_than_nodes_are_refused_at_once_with_what_to_do(folder: Path) -> None:
    """A retry until the time is over would outlast the limit of the command here."""
    create = ("gallery", "create", "many", "--dim", str(DIM), "--extractor", "test@1")
    limit = ("--timeout", str(2 * COMMAND_S))
    refused = fgctl(*create, "--replicas", "3", *limit, "--dir", str(folder))
    assert refused.returncode == 1
    assert "start more, or ask for fewer replicas nodes=2 replicas=3" in refused.stderr


def test_a_cluster_comes_back_with_its_data_and_addresses(folder: Path, vectors: Path) -> None:
    enrolled(folder, vectors, "downed")
    before = first_candidates(folder, vectors, "downed")
    was = cluster_file.load(folder)
    stopped = answer("local", "down", "--dir", str(folder))["stopped"]
    assert sorted(stopped) == ["etcd1", "n1", "n2", "router1"]
    assert not [one.name for one in was.processes if processes.find(one) is not None]

    answer("local", "up", "--dir", str(folder), "--detach")
    now = cluster_file.load(folder)
    assert [one.address for one in now.processes] == [one.address for one in was.processes]
    assert first_candidates(folder, vectors, "downed") == before


def test_a_port_that_somebody_took_meanwhile_is_replaced(folder: Path) -> None:
    LocalCluster(folder).down()
    was = cluster_file.load(folder).named("n2").address
    host, _, port = was.rpartition(":")
    with socket.create_server((host, int(port))):
        now = LocalCluster(folder).up()
    assert now.named("n2").address != was
    assert all(not one.problem for one in LocalCluster(folder).status())


def test_searches_go_on_while_etcd_is_stopped(folder: Path, vectors: Path) -> None:
    enrolled(folder, vectors, "blind")
    cluster = LocalCluster(folder)
    cluster.stop_etcd()
    assert mates(first_candidates(folder, vectors, "blind")) == ALL_MATES
    cluster.start_etcd()
    assert first_candidates(folder, vectors, "blind")


def test_a_process_that_cannot_start_is_shown_with_its_own_words(tmp_path: Path) -> None:
    up = ("local", "up", "--dir", str(tmp_path), "--detach")
    failed = fgctl(*up, FACEGRID_INDEXD_NONSENSE="1")
    assert failed.returncode == 1
    assert "no such setting: environment variable FACEGRID_INDEXD_NONSENSE" in failed.stderr
    assert failed.stderr.splitlines()[-1].startswith("error: n1 ended as soon as it was started")
    assert "Traceback" not in failed.stderr
    assert [one.alive for one in LocalCluster(tmp_path).status()] == [False] * 4


def test_in_the_foreground_an_interrupt_stops_all_of_it(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "fgctl", "local", "up", "--dir", str(tmp_path), "--nodes", "1"]
    with subprocess.Popen(
        argv, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as running:
        assert running.stderr is not None
        for line in running.stderr:
            if "Ctrl-C" in line:
                break
        assert all(not one.problem for one in LocalCluster(tmp_path).status())
        running.send_signal(signal.SIGINT)
        assert running.wait(COMMAND_S) == 0
    assert [one.alive for one in LocalCluster(tmp_path).status()] == [False] * 3
