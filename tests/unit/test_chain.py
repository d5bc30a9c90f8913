"""Which log objects were committed, told by the objects alone."""

from facegrid.format.chain import Chain, LogEntry, connect
from facegrid.format.log import LogRef


def entry(
    position: int, before: LogEntry | None, *, uuid: str, generation: int = 1, unix_ms: int = 0
) -> LogEntry:
    """An object of one record."""
    ref = LogRef(generation, position, position, uuid, "ab" * 32)
    return LogEntry(ref, None if before is None else before.ref, unix_ms)


ONE = entry(1, None, uuid="1")
TWO = entry(2, ONE, uuid="2")
THREE = entry(3, TWO, uuid="3")


def test_objects_are_put_in_the_order_of_the_log_whatever_order_they_come_in() -> None:
    assert connect([THREE, ONE, TWO], after=None) == Chain((ONE, TWO, THREE), (), (), (), ())


def test_what_the_manifest_covers_is_set_aside() -> None:
    assert connect([ONE, TWO, THREE], after=TWO.ref) == Chain((THREE,), (ONE, TWO), (), (), ())


def test_an_object_with_a_follower_was_committed() -> None:
    rival = entry(2, ONE, uuid="rival", generation=2, unix_ms=9)

    assert connect([ONE, TWO, THREE, rival], after=None) == Chain(
        (ONE, TWO, THREE), (), (rival,), (), ()
    )


def test_of_two_ends_the_higher_generation_was_committed() -> None:
    """1 the old primary stores 2 and halts; 2 a new one claims, reads tip 1, stores its own 2."""
    zombie = entry(2, ONE, uuid="zombie", unix_ms=9)
    newer = entry(2, ONE, uuid="newer", generation=2)

    assert connect([ONE, zombie, newer], after=None) == Chain((ONE, newer), (), (zombie,), (), ())


def test_of_two_ends_of_one_generation_the_one_written_last_stands() -> None:
    given_up = entry(2, ONE, uuid="z", unix_ms=5)
    retried = entry(2, ONE, uuid="a", unix_ms=6)

    assert connect([ONE, given_up, retried], after=None) == Chain(
        (ONE, retried), (), (given_up,), (), ()
    )


def test_what_a_zombie_left_before_the_manifest_is_no_gap() -> None:
    zombie = entry(2, ONE, uuid="zombie")

    assert connect([zombie, THREE], after=TWO.ref) == Chain((THREE,), (zombie,), (), (), ())


def test_objects_behind_a_gap_are_detached() -> None:
    assert connect([ONE, THREE], after=None) == Chain((ONE,), (), (), (), (THREE,))
    assert connect([THREE], after=None) == Chain((), (), (), (), (THREE,))


def test_a_log_that_goes_on_in_two_ways_is_no_work_of_facegrid() -> None:
    rival = entry(2, ONE, uuid="rival")
    further = entry(3, rival, uuid="further")

    chain = connect([ONE, TWO, THREE, rival, further], after=None)

    assert len(chain.entries) == 3
    assert len(chain.forked) == 2


def test_a_log_begins_with_record_one() -> None:
    late = entry(5, None, uuid="late")

    assert connect([late], after=None) == Chain((), (), (), (), (late,))
