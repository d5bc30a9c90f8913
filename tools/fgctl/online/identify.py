"""fgctl identify: candidate lists for the probes of a file."""

import json
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from facegrid import limits, vectors
from facegrid.model import CandidateList
from fgctl import render
from fgctl.online.sources import as_float32, check_probes_dim, in_file, open_npy
from fgctl.target import Target, online

BATCH_PROBES = 64
"""Probes per call: kernels are several times faster per probe at 64 than at 1, and lists of a
whole batch at the largest k still fit into a message."""
SHOWN_PROBES = 20


@click.command()
@click.option("--gallery", required=True)
@click.option(
    "--probes",
    "path",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Vectors as .npy, one row per probe.",
)
@click.option("--k", default=10, show_default=True, type=click.IntRange(1, limits.K_MAX))
@click.option(
    "--threshold",
    type=click.FloatRange(-1, 1),
    help="Leave out candidates with a lower score. Default: none is left out.",
)
@click.option(
    "--unconfirmed-max",
    type=click.FloatRange(0, 1),
    help="Largest share of the gallery that may be answered by copies which cannot confirm that"
    " they have everything. Default: 1, and the answer tells.",
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write one JSON object per probe there, instead of showing them.",
)
@online
def identify(  # noqa: PLR0913 - one for each option
    target: Target,
    gallery: str,
    path: Path,
    *,
    k: int,
    threshold: float | None,
    unconfirmed_max: float | None,
    out: Path | None,
) -> None:
    """Find the subjects that resemble each probe most (1:N)."""
    everything = open_npy(path)
    shown_only = out is None and not target.as_json
    probes = everything[:SHOWN_PROBES] if shown_only else everything
    with (
        target.client() as client,
        render.metered("identifying", len(probes), quiet=target.as_json) as meter,
    ):
        check_probes_dim(client, gallery, everything.shape[1])
        search = partial(
            client.identify, gallery, k=k, threshold=threshold, unconfirmed_max=unconfirmed_max
        )
        answers = _answers(search, probes, meter)
        if out is None:
            lists = list(answers)
            share = _unconfirmed_share(lists)
        else:
            share = _write(out, answers)
            lists = []
    if out is not None:
        _show_written(target, gallery, len(probes), out=out, share=share)
    elif target.as_json:
        rows = [list_json(row, one) for row, one in enumerate(lists)]
        render.show_json({"gallery": gallery, "lists": rows})
    else:
        _show(lists, len(everything))
    if share and not target.as_json:
        render.show_note(render.unconfirmed_note(share))


def _answers(
    search: Callable[[vectors.Float32], list[CandidateList]],
    probes: npt.NDArray[np.floating[Any]],
    meter: render.Meter,
) -> Iterator[CandidateList]:
    for first in range(0, len(probes), BATCH_PROBES):
        batch = as_float32(probes[first : first + BATCH_PROBES])
        with in_file(first):
            lists = search(batch)
        meter.advance(len(batch))
        yield from lists


def list_json(row: int, one: CandidateList) -> render.Json:
    """Return a candidate list as JSON, with the row of its probe."""
    return {
        "row": row,
        "coverage": one.coverage.share,
        "unconfirmed_share": one.coverage.unconfirmed_share,
        "candidates": [
            {
                "rank": candidate.rank,
                "subject_id": candidate.subject_id,
                "template_id": candidate.template_id,
                "score": candidate.score,
            }
            for candidate in one.candidates
        ],
    }


def _unconfirmed_share(lists: Iterable[CandidateList]) -> float:
    """Return the largest share of any answer that was not confirmed."""
    return max((one.coverage.unconfirmed_share for one in lists), default=0.0)


def _write(out: Path, answers: Iterator[CandidateList]) -> float:
    """Write candidate lists; return the largest share of any answer that was not confirmed."""
    share = 0.0
    # Under its own name only when complete: a search that fails leaves what was there.
    unfinished = out.with_name(out.name + ".partial")
    try:
        with unfinished.open("w", encoding="utf-8") as file:
            for row, one in enumerate(answers):
                share = max(share, _unconfirmed_share([one]))
                file.write(json.dumps(list_json(row, one), ensure_ascii=False) + "\n")
        unfinished.replace(out)
    finally:
        unfinished.unlink(missing_ok=True)
    return share


def _show_written(
    target: Target, gallery: str, probes_count: int, *, out: Path, share: float
) -> None:
    if target.as_json:
        render.show_json(
            {
                "gallery": gallery,
                "probes_count": probes_count,
                "out": str(out),
                "unconfirmed_share": share,
            }
        )
    else:
        render.show_line(f"wrote {probes_count:,} candidate lists to {out}")


def _show(lists: list[CandidateList], probes_count: int) -> None:
    rows: list[tuple[object, ...]] = []
    for row, one in enumerate(lists):
        rows += [
            (str(row), best.rank, best.subject_id, best.template_id, best.score)
            for best in one.candidates
        ] or [(str(row), "", "no candidate", "", "")]
    render.show_table("candidates", ("probe", "rank", "subject", "template", "score"), rows)
    if probes_count > len(lists):
        render.show_note(
            f"the first {len(lists)} of {probes_count:,} probes; --out and --json give all"
        )
