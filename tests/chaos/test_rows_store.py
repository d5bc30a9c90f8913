"""Rows of the fault matrix about an object store that is away, slow, full or careless."""

import subprocess
from collections.abc import Iterator
from dataclasses import replace

import pytest

import facegrid
from facegrid.errors import FacegridError, OverloadedError, UnavailableError
from fgctl.local.plan import Wanted
from tests.fakes.rig import PATIENCE_S, Rig, enrol, found_problem
from tests.fakes.s3_between import Between, between
from tests.fakes.s3_servers import S3Server

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

PEOPLE = [f"one-{number}" for number in range(60)]
GROWTH_BYTES_MAX = 64 * 1024 * 1024


@pytest.fixture(scope="module")
def gateway(s3: S3Server) -> Iterator[Between]:
    """A gateway in front of a real S3 server."""
    with between(s3.endpoint) as server:
        yield server


@pytest.fixture(scope="module")
def _on_s3(
    tmp_path_factory: pytest.TempPathFactory, s3: S3Server, gateway: Between
) -> Iterator[Rig]:
    url = replace(s3, endpoint=gateway.endpoint).url(timeout_s=5)
    wanted = Wanted(nodes=1, replicas=1, etcd=1, routers=1, store=url)
    with Rig(tmp_path_factory.mktemp("s3"), wanted) as rig:
        yield rig


@pytest.fixture
def on_s3(_on_s3: Rig, gateway: Between) -> Iterator[Rig]:
    """A node whose store lies behind the gateway; both are mended behind each test."""
    try:
        yield _on_s3
    finally:
        gateway.faults = type(gateway.faults)()
        _on_s3.heal()


def test_row_11_a_node_cut_off_from_its_store_serves_reads_and_acknowledges_nothing(
    on_s3: Rig, gateway: Between
) -> None:
    """1 the store hangs up on everybody; 2 writes fail; 3 reads go on; 4 all is as was told."""
    with on_s3.client() as client, on_s3.client(4) as hasty:
        on_s3.new_gallery(client, "row11")
        token = enrol(client, "row11", PEOPLE)
        with on_s3.reading("row11", PEOPLE, token) as reads:
            gateway.faults.away = True
            refused = [refusal(hasty, "row11", [f"amid-{number}"]) for number in range(3)]
            gateway.faults.away = False
            enrol(client, "row11", ["amid-0"], request_id="amid-0")
        count = client.get_gallery("row11").templates_count
        client.drop_gallery("row11")

    assert reads.wrong == []
    assert all(isinstance(one, UnavailableError) for one in refused)
    assert len(PEOPLE) + 1 <= (count or 0) <= len(PEOPLE) + 3


def refusal(client: facegrid.Client, gallery: str, subject_ids: list[str]) -> FacegridError | None:
    """Try to enrol; return the error, if there is one."""
    try:
        enrol(client, gallery, subject_ids, request_id=subject_ids[0])
    except (UnavailableError, OverloadedError) as error:
        return error
    return None


def test_row_20_a_store_that_loses_answers_stores_each_write_once(
    on_s3: Rig, gateway: Between
) -> None:
    """1 puts are carried out and their answers lost; 2 each write is told of and there once."""
    with on_s3.client() as client:
        on_s3.new_gallery(client, "row20-lost")
        for number in range(6):
            gateway.faults.lose_puts = 1
            enrol(client, "row20-lost", [f"s-{number}", f"t-{number}"])
        lost = [name for name in gateway.lost if "row20-lost" in name]
        count = client.get_gallery("row20-lost").templates_count
        on_s3.cluster.kill_node("n1")
        on_s3.start("n1")
        assert client.get_gallery("row20-lost").templates_count == count == 12
        client.drop_gallery("row20-lost")

    assert len(lost) == 6


def test_row_20_a_store_that_asks_to_slow_down_slows_writers_down(
    on_s3: Rig, gateway: Between
) -> None:
    """1 a burst of 503; 2 who waits long enough succeeds; 3 a lasting one is told as too much."""
    with on_s3.client() as client, on_s3.client(24) as patient:
        on_s3.new_gallery(client, "row20-busy")
        token = enrol(client, "row20-busy", PEOPLE)
        gateway.faults.refuse = True
        refused = refusal(patient, "row20-busy", ["amid"])
        seen = [found_problem(client, "row20-busy", one, token) for one in PEOPLE[:5]]
        gateway.faults.refuse = False
        enrol(client, "row20-busy", ["amid"], request_id="amid")
        assert client.get_gallery("row20-busy").templates_count == len(PEOPLE) + 1
        client.drop_gallery("row20-busy")

    assert (type(refused), seen) == (OverloadedError, [""] * 5)


def test_row_20_a_slow_store_delays_writes_and_no_read(on_s3: Rig, gateway: Between) -> None:
    """1 each request to the store takes 3 s; 2 a write is late; 3 searches are not."""
    with on_s3.client() as client:
        on_s3.new_gallery(client, "row20-slow")
        token = enrol(client, "row20-slow", PEOPLE)
        gateway.faults.delay_s = 3.0
        with on_s3.reading("row20-slow", PEOPLE, token) as reads:
            began_s = on_s3.clock.now_s()
            enrol(client, "row20-slow", ["amid"])
            took_s = on_s3.clock.now_s() - began_s
        gateway.faults.delay_s = 0.0
        client.drop_gallery("row20-slow")

    assert (reads.wrong, took_s >= 3.0) == ([], True)
    assert max(reads.since(began_s)) < took_s


def test_row_20_requests_that_take_20_s_are_given_up_and_do_no_harm_when_they_arrive(
    on_s3: Rig, gateway: Between
) -> None:
    """1 each request takes 20 s, and is given up after 5; 2 a write fails, searches do not; 3 what
    was given up is carried out all the same; 4 the write is made again, and is there once.
    """
    with on_s3.client() as client, on_s3.client(7) as hasty:
        on_s3.new_gallery(client, "row20-late")
        token = enrol(client, "row20-late", PEOPLE)
        before_bytes = on_s3.memory_bytes_max("n1")
        with on_s3.reading("row20-late", PEOPLE, token) as reads:
            gateway.faults.delay_s = 20.0
            told = refusal(hasty, "row20-late", ["amid"])
            gateway.faults.delay_s = 0.0
            gateway.hurry()
            enrol(client, "row20-late", ["amid"], request_id="amid")
        growth_bytes = on_s3.memory_bytes_max("n1") - before_bytes
        count = client.get_gallery("row20-late").templates_count
        client.drop_gallery("row20-late")

    assert isinstance(told, UnavailableError), told
    assert (reads.wrong, count) == ([], len(PEOPLE) + 1)
    assert growth_bytes < GROWTH_BYTES_MAX


def test_row_21_a_store_that_ignores_put_if_absent_is_refused_at_the_start(
    on_s3: Rig, gateway: Between
) -> None:
    """1 conditions are taken away on the way; 2 a node that starts says so and ends."""
    on_s3.cluster.kill_node("n1")
    gateway.faults.careless = True
    record = on_s3.cluster.record.named("n1")
    done = subprocess.run(
        record.argv, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )

    assert (done.returncode, "store is not safe for facegrid" in done.stderr) == (1, True)
