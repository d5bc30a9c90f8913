"""fgctl get, erase, verify: single templates and subjects."""

from pathlib import Path

import click
import numpy as np

from facegrid import vectors
from facegrid.errors import InvalidError
from fgctl import render
from fgctl.online.doubt import repeatable
from fgctl.online.sources import as_float32, check_probes_dim, open_npy
from fgctl.target import Target, confirm, online

CONFIRMED_ONLY = click.option(
    "--confirmed-only",
    is_flag=True,
    help="Rather fail than be answered by a copy that cannot confirm that it has everything.",
)
UNCONFIRMED = (
    "unconfirmed: the copy that answered could not make sure that it has everything, so this may"
    " have been erased lately"
)
EXISTING_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.option("--gallery", required=True)
@click.option("--template", "template_id", required=True)
@click.option("--subject", "subject_id", help="Needed when several subjects have such a template.")
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the vector there, as .npy.",
)
@CONFIRMED_ONLY
@online
def get(
    target: Target,
    gallery: str,
    template_id: str,
    *,
    subject_id: str | None,
    out: Path | None,
    confirmed_only: bool,
) -> None:
    """Show one stored template."""
    with target.client() as client:
        template = client.get_template(
            gallery, template_id, subject_id=subject_id, confirmed_only=confirmed_only
        )
    vector = np.asarray(template.vector, dtype=np.float32).reshape(-1)
    if out is not None:
        with out.open("wb") as file:
            np.save(file, vector)
    if target.as_json:
        render.show_json(
            {
                "gallery": gallery,
                "subject_id": template.subject_id,
                "template_id": template.template_id,
                "unconfirmed": template.unconfirmed,
                "vector": [float(value) for value in vector],
            }
        )
        return
    rows = [("subject", template.subject_id), ("dim", len(vector))]
    render.show_table(f"template {template.template_id}", ("what", "value"), rows)
    if template.unconfirmed:
        render.show_note(UNCONFIRMED)


@click.command()
@click.option("--gallery", required=True)
@click.option("--subject", "subjects", multiple=True, help="With all its templates. Repeatable.")
@click.option("--template", "templates", multiple=True, help="Of any subject. Repeatable.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@online
def erase(
    target: Target,
    gallery: str,
    subjects: tuple[str, ...],
    templates: tuple[str, ...],
    *,
    yes: bool,
) -> None:
    """Erase subjects, or single templates. This cannot be undone."""
    if not subjects and not templates:
        raise click.UsageError("say what to erase: --subject ID or --template ID")
    parts = [
        f"{len(subjects):,} subjects with all their templates" if subjects else "",
        f"templates of {len(templates):,} ids" if templates else "",
    ]
    render.show_note(f"from gallery {gallery} will be lost: {' and '.join(filter(None, parts))}")
    confirm("Erase?", yes=yes)
    with target.client() as client, repeatable("what is gone already is not counted again"):
        erasure = client.erase(gallery, subject_ids=subjects, template_ids=templates)
    count = erasure.erased_templates_count
    if target.as_json:
        render.show_json({"gallery": gallery, "erased_templates_count": count})
    else:
        render.show_line(f"erased {count:,} templates")


@click.command()
@click.option("--gallery", required=True)
@click.option("--subject", "subject_id", required=True)
@click.option("--probe", "path", required=True, type=EXISTING_FILE, help="A vector as .npy.")
@click.option("--row", default=0, show_default=True, type=click.IntRange(min=0))
@CONFIRMED_ONLY
@online
def verify(
    target: Target, gallery: str, subject_id: str, *, path: Path, row: int, confirmed_only: bool
) -> None:
    """Score a probe against the best template of one subject (1:1)."""
    probe = _probe(path, row)
    with target.client() as client:
        check_probes_dim(client, gallery, len(probe))
        best = client.verify(gallery, subject_id, probe, confirmed_only=confirmed_only)
    if target.as_json:
        render.show_json(
            {
                "gallery": gallery,
                "subject_id": subject_id,
                "template_id": best.template_id,
                "score": best.score,
                "unconfirmed": best.unconfirmed,
            }
        )
        return
    render.show_line(f"score {best.score:.4f} with template {best.template_id}")
    if best.unconfirmed:
        render.show_note(UNCONFIRMED)


def _probe(path: Path, row: int) -> vectors.Float32:
    matrix = open_npy(path)
    if row >= len(matrix):
        raise InvalidError(
            f"the file has fewer rows path={path} rows={len(matrix)}",
            reason="ROW_MISSING",
            row=row,
        )
    return as_float32(matrix[row])
