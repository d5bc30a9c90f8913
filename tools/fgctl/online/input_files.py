"""The options that name files with templates, the same for all commands that read such."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

PARQUET_SUFFIX = ".parquet"

EXISTING_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@dataclass(frozen=True, slots=True)
class InputFiles:
    """Files with templates, as the options give them; `checked` says whether they are enough."""

    vectors: Path | None = None
    subjects: Path | None = None
    templates: Path | None = None
    parquet: Path | None = None

    def checked(self, verb: str) -> "InputFiles":
        """Return files that belong together: `parquet` alone, or `vectors` with `subjects`.

        Raises:
            UsageError: they do not; it says what to give for what the command does.
        """
        files = self
        vectors = self.vectors
        if self.parquet is None and vectors is not None and vectors.suffix == PARQUET_SUFFIX:
            files = InputFiles(None, self.subjects, self.templates, vectors)
        if files.parquet is not None:
            if files.vectors or files.subjects or files.templates:
                raise click.UsageError("a Parquet file carries its ids: leave out the other files")
        elif files.vectors is None or files.subjects is None:
            raise click.UsageError(f"say what to {verb}: --vectors with --subjects, or --parquet")
        return files

    def rows_and_ids(self) -> tuple[Path, Path]:
        """Return the files with vectors and with ids. Of checked ones without `parquet`."""
        assert self.vectors is not None, "see checked"
        assert self.subjects is not None, "see checked"
        return self.vectors, self.subjects


def input_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options that name files; the command gets them as `given`."""

    @click.option(
        "--vectors", type=EXISTING_FILE, help="A .npy matrix of floats, or a .parquet file."
    )
    @click.option("--subjects", type=EXISTING_FILE, help="Subject ids, one per line.")
    @click.option(
        "--templates",
        type=EXISTING_FILE,
        help="Template ids, one per line. Default: made from each vector's content.",
    )
    @click.option(
        "--parquet",
        type=EXISTING_FILE,
        help="Columns subject_id, vector and, if there is one, template_id; instead of --vectors.",
    )
    @functools.wraps(command)
    def with_files(
        *arguments: Any,
        vectors: Path | None,
        subjects: Path | None,
        templates: Path | None,
        parquet: Path | None,
        **rest: Any,
    ) -> None:
        command(*arguments, given=InputFiles(vectors, subjects, templates, parquet), **rest)

    return with_files
