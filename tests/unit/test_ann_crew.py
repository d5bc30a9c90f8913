"""Threads that share a search."""

import threading

import pytest

from indexd.ann.crew import Crew


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("works_count", [0, 1, 2, 7])
def test_everything_is_done_once(count: int, works_count: int) -> None:
    crew = Crew(count)
    done: list[int] = []

    crew.do([lambda number=number: done.append(number) for number in range(works_count)])

    assert sorted(done) == list(range(works_count))
    crew.close()


def test_helpers_work_beside_the_caller() -> None:
    crew = Crew(2)
    both = threading.Barrier(2, timeout=60)
    names: list[str] = []

    def meet() -> None:
        both.wait()
        names.append(threading.current_thread().name)

    crew.do([meet, meet])

    assert len(set(names)) == 2
    crew.close()


@pytest.mark.parametrize("count", [1, 3])
def test_an_error_is_raised_when_nobody_works_any_more(count: int) -> None:
    crew = Crew(count)

    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        crew.do([fail] * 5)
    crew.do([lambda: None] * 5)
    crew.close()
