"""Garbage collection that leaves out what a process is made of."""

import gc
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _thawed() -> Iterator[None]:
    yield
    gc.unfreeze()


@pytest.mark.parametrize(
    ("program", "works", "arguments"),
    [
        ("indexd.__main__", "serve", ("--node-id=n1", "--etcd=127.0.0.1:1")),
        ("router.command", "_run", ("--etcd=127.0.0.1:1",)),
    ],
)
def test_modules_are_not_looked_through_while_a_process_serves(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    program: str,
    works: str,
    arguments: tuple[str, ...],
) -> None:
    """Every object is frozen that was there when it began to serve."""
    left: list[int] = []

    async def serve(*_given: object) -> None:
        left.append(gc.get_freeze_count() - len(gc.get_objects()))

    main = importlib.import_module(program)
    monkeypatch.setattr(main, works, serve)
    monkeypatch.setattr(main, "configure", lambda *_args, **_given: None)
    store = (f"--store=dir:{tmp_path}",) if program.startswith("indexd") else ()
    monkeypatch.setattr(sys, "argv", [program, *arguments, *store])
    gc.unfreeze()
    main.main()

    assert left[0] > 0, "most objects are frozen"
