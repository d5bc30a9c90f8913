"""What a parent of router processes decides."""

from pathlib import Path

from router.parent import BACKOFF_S, BACKOFF_S_MAX, CALM_S, FAILURES_MAX, Deaths, child_argv
from router.settings import RouterSettings


def test_a_child_that_dies_again_and_again_is_given_up() -> None:
    deaths = Deaths()

    pauses = [deaths.pause_s(1.0) for _ in range(FAILURES_MAX + 1)]

    assert pauses[:2] == [BACKOFF_S, 2 * BACKOFF_S]
    assert all(one is not None and one <= BACKOFF_S_MAX for one in pauses[:-1])
    assert pauses[-1] is None


def test_a_death_after_a_calm_time_counts_as_the_first() -> None:
    deaths = Deaths(in_a_row=FAILURES_MAX)

    assert deaths.pause_s(CALM_S) == BACKOFF_S


def test_each_child_has_its_own_metrics_and_state_at_the_same_address() -> None:
    settings = RouterSettings(
        etcd=("e:1",), processes=2, metrics="127.0.0.1:9100", state_dir=Path("state")
    )

    argv = child_argv(settings, ["--processes=2"], 1, "127.0.0.1:7400")

    assert argv[3:] == [
        "router.child",
        "--processes=2",
        "--listen=127.0.0.1:7400",
        "--metrics=127.0.0.1:9101",
        "--state-dir=state/1",
    ]
