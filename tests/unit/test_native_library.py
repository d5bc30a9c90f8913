"""Whether the compiled part is there, and can be trusted."""

from pathlib import Path

import pytest

from indexd.ann.native import library
from indexd.ann.native.library import load


def test_where_nothing_was_compiled_numpy_does_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(library, "PATH", tmp_path / "none.so")

    assert load() == (None, "nothing was compiled at installation")


def test_a_library_that_cannot_be_loaded_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged.so"
    damaged.write_bytes(b"no library")
    monkeypatch.setattr(library, "PATH", damaged)

    found, why = load()

    assert found is None
    assert "damaged.so" in why


@pytest.mark.skipif(not library.PATH.exists(), reason="nothing was compiled at installation")
def test_a_library_of_another_source_is_not_called(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    changed = tmp_path / "rescore.c"
    changed.write_text(library.SOURCE.read_text() + "\n")
    monkeypatch.setattr(library, "SOURCE", changed)

    found, why = load()

    assert found is None
    assert "another source" in why
