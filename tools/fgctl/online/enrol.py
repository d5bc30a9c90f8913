"""fgctl enrol: templates from files into a gallery."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import click

import facegrid
from facegrid import limits
from facegrid.clock import SystemClock
from facegrid.errors import InvalidError
from fgctl import render
from fgctl.online.doubt import repeatable
from fgctl.online.input_files import InputFiles, input_options
from fgctl.online.parquet import ParquetSource
from fgctl.online.sources import NpySource, Source, check, check_dim, open_npy, shifted
from fgctl.target import Target, online

BATCH_ROWS = 2048
ENROL_TIMEOUT_S = 60.0


@dataclass(slots=True)
class Progress:
    """What was read so far, and what the cluster has acknowledged of it."""

    meter: render.Meter
    firsts: list[int] = field(default_factory=list)
    acked_count: int = 0

    def on_ack(self, acked_count: int) -> None:
        """Take the number of rows acknowledged so far."""
        self.meter.advance(acked_count - self.acked_count)
        self.acked_count = acked_count

    def batches(self, source: Source, batch_rows: int) -> Iterator[facegrid.EnrolBatch]:
        """Read a source as the client wants it, and remember where each batch begins."""
        for rows in source.batches(batch_rows):
            self.firsts.append(rows.first)
            yield facegrid.EnrolBatch(
                template_ids=rows.template_ids, subject_ids=rows.subject_ids, vectors=rows.vectors
            )


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an enrolment came to."""

    gallery: str
    rows_count: int
    duration_s: float

    @property
    def enrolled_per_s(self) -> float:
        """Rows acknowledged per second."""
        return self.rows_count / self.duration_s if self.duration_s > 0 else 0.0


@click.command()
@click.option("--gallery", required=True)
@input_options
@click.option(
    "--batch-rows",
    default=BATCH_ROWS,
    show_default=True,
    type=click.IntRange(1, limits.ENROL_ROWS_MAX),
    help="Rows per request.",
)
@online
def enrol(target: Target, *, gallery: str, given: InputFiles, batch_rows: int) -> None:
    """Enrol templates from files. Running it again changes nothing."""
    source = _open(given.checked("enrol"))
    with target.client(timeout_s=ENROL_TIMEOUT_S) as client:
        check_dim(client.get_gallery(gallery).dim, source.dim)
        with render.metered("checking", source.rows_count, quiet=target.as_json) as meter:
            for rows in source.batches(batch_rows):
                check(rows)
                meter.advance(len(rows.vectors))
        with (
            render.metered("enrolling", source.rows_count, quiet=target.as_json) as meter,
            repeatable("rows already there count as unchanged"),
        ):
            outcome = send(client, gallery, source, Progress(meter), batch_rows=batch_rows)
    _show(outcome, target)


def send(
    client: facegrid.Client, gallery: str, source: Source, progress: Progress, *, batch_rows: int
) -> Outcome:
    """Enrol all rows of a source.

    Raises:
        InvalidError: a row was refused; it names the row of the source. Those before it stay.
    """
    clock = SystemClock()
    start_s = clock.now_s()
    try:
        client.enrol_stream(gallery, progress.batches(source, batch_rows), on_ack=progress.on_ack)
    except InvalidError as error:
        if "batch" not in error.facts:
            raise
        raise shifted(error, progress.firsts[int(error.facts["batch"])]) from None
    return Outcome(
        gallery=gallery,
        rows_count=progress.acked_count,
        duration_s=clock.now_s() - start_s,
    )


def _open(files: InputFiles) -> Source:
    if files.parquet is not None:
        return ParquetSource(files.parquet)
    vectors, subjects = files.rows_and_ids()
    return NpySource(open_npy(vectors), subjects=subjects, templates=files.templates)


def _show(outcome: Outcome, target: Target) -> None:
    if target.as_json:
        render.show_json(
            {
                "gallery": outcome.gallery,
                "rows_count": outcome.rows_count,
                "duration_s": round(outcome.duration_s, 3),
                "enrolled_per_s": round(outcome.enrolled_per_s, 1),
            }
        )
    else:
        render.show_line(
            f"enrolled {outcome.rows_count:,} templates into {outcome.gallery}"
            f" ({outcome.duration_s:.1f} s, {outcome.enrolled_per_s:,.0f} per second)"
        )
