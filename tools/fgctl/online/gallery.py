"""fgctl gallery: create, list, show, set, train, tune, drop."""

from datetime import UTC, datetime
from pathlib import Path

import click

from facegrid import limits
from facegrid.model import Gallery
from facegrid.tuning import (
    MATES_COUNT_LIMIT,
    MISS_RATE_MAX_DEFAULT,
    MISS_RATE_MAX_LIMIT,
    Profile,
)
from facegrid.vectors import BITS_DEFAULT, COMPONENT_BITS_KNOWN
from fgctl import render
from fgctl.online import curve
from fgctl.target import Target, confirm, online

CREATE_TIMEOUT_S = 60.0
TRAIN_TIMEOUT_S = 600.0
TUNE_TIMEOUT_S = 1800.0
PROFILES = click.Choice([str(profile) for profile in Profile])
MISS_RATES = click.FloatRange(0, MISS_RATE_MAX_LIMIT, min_open=True)


@click.group()
def gallery() -> None:
    """Create, list, show, change, train, tune and drop galleries."""


def gallery_json(one: Gallery) -> render.Json:
    """Return a gallery as JSON; templates_count is null where nobody counted."""
    return {
        "name": one.name,
        "uid": one.uid,
        "dim": one.dim,
        "extractor": one.extractor,
        "shards_count": one.shards_count,
        "replicas_count": one.replicas_count,
        "train_at_templates_count": one.train_at_templates_count,
        "codebook": one.codebook,
        "created_unix_ms": one.created_unix_ms,
        "templates_count": None if one.templates_count < 0 else one.templates_count,
        "profile": one.profile,
        "miss_rate_max": one.miss_rate_max,
        "component_bits": one.component_bits,
        "tuning": None if one.tuning is None else curve.tuning_json(one.tuning),
    }


def _show(one: Gallery, target: Target) -> None:
    if target.as_json:
        render.show_json(gallery_json(one))
        return
    created = datetime.fromtimestamp(one.created_unix_ms / 1000, UTC)
    train_at = one.train_at_templates_count
    rows: list[tuple[str, object]] = [
        ("dim", one.dim),
        ("bits", f"{one.component_bits} for each component"),
        ("extractor", one.extractor),
        ("shards", one.shards_count),
        ("replicas", one.replicas_count),
        ("trains at", f"{train_at:,} templates" if train_at else "only when told"),
        ("index", _index_of(one)),
        ("profile", one.profile),
        ("may miss", f"{one.miss_rate_max:g} of the mates, balanced"),
        *curve.tuning_rows(one),
        ("created", f"{created:%Y-%m-%d %H:%M:%S} UTC"),
        ("uid", one.uid),
    ]
    if one.templates_count >= 0:
        rows.insert(0, ("templates", one.templates_count))
    render.show_table(f"gallery {one.name}", ("setting", "value"), rows)


def _index_of(one: Gallery) -> str:
    return f"trained, codebook {one.codebook[:12]}" if one.codebook else "exact search"


@gallery.command()
@click.argument("name")
@click.option("--dim", required=True, type=click.IntRange(limits.DIM_MIN, limits.DIM_MAX))
@click.option(
    "--extractor", required=True, help='Which model made the vectors, as "name@version".'
)
@click.option("--shards", default=1, show_default=True, type=click.IntRange(1, limits.SHARDS_MAX))
@click.option(
    "--replicas",
    type=click.IntRange(1, limits.REPLICAS_MAX),
    help="Copies of each shard. Default: what the cluster of --dir was started with, else 1.",
)
@click.option(
    "--train-at",
    type=click.IntRange(min=0),
    help=f"Train at this many templates; 0: only when told. Default: {limits.TRAIN_AT_DEFAULT:,}.",
)
@click.option(
    "--profile", type=PROFILES, help="How hard searches try that do not say. Default: balanced."
)
@click.option(
    "--miss-rate-max",
    type=MISS_RATES,
    help=f"Share of mates that balanced may miss. Default: {MISS_RATE_MAX_DEFAULT:g}.",
)
@click.option(
    "--component-bits",
    type=click.Choice([str(bits) for bits in COMPONENT_BITS_KNOWN]),
    default=str(BITS_DEFAULT),
    show_default=True,
    help="What a component of a template is rounded to. 4: less memory, coarser scores.",
)
@online
def create(  # noqa: PLR0913 - one for each option
    target: Target,
    name: str,
    *,
    dim: int,
    extractor: str,
    shards: int,
    replicas: int | None,
    train_at: int | None,
    profile: str | None,
    miss_rate_max: float | None,
    component_bits: str,
) -> None:
    """Create a gallery and wait until it accepts writes."""
    with target.client(timeout_s=CREATE_TIMEOUT_S) as client:
        created = client.create_gallery(
            name,
            dim=dim,
            extractor=extractor,
            shards=shards,
            replicas=target.replicas if replicas is None else replicas,
            train_at=train_at,
            profile=profile,
            miss_rate_max=miss_rate_max,
            component_bits=int(component_bits),
        )
    _show(created, target)


@gallery.command(name="list")
@online
def list_all(target: Target) -> None:
    """List all galleries."""
    with target.client() as client:
        galleries = client.list_galleries()
    if target.as_json:
        render.show_json({"galleries": [gallery_json(one) for one in galleries]})
        return
    rows = [
        (one.name, one.dim, one.extractor, one.shards_count, one.replicas_count, _index_of(one))
        for one in galleries
    ]
    columns = ("gallery", "dim", "extractor", "shards", "replicas", "index")
    render.show_table("galleries", columns, rows)


@gallery.command()
@click.argument("name")
@online
def show(target: Target, name: str) -> None:
    """Describe one gallery with its number of templates."""
    with target.client() as client:
        _show(client.get_gallery(name), target)


@gallery.command(name="set")
@click.argument("name")
@click.option("--profile", type=PROFILES, help="How hard searches try that do not say.")
@click.option("--miss-rate-max", type=MISS_RATES, help="Share of mates that balanced may miss.")
@online
def set_settings(
    target: Target, name: str, *, profile: str | None, miss_rate_max: float | None
) -> None:
    """Change settings of a gallery; what is not given stays."""
    if profile is None and miss_rate_max is None:
        raise click.UsageError("say what to change: --profile or --miss-rate-max")
    with target.client() as client:
        _show(client.update_gallery(name, profile=profile, miss_rate_max=miss_rate_max), target)


@gallery.command()
@click.argument("name")
@click.option("--mates", type=click.IntRange(1, MATES_COUNT_LIMIT), help="Pairs to measure on.")
@click.option(
    "--svg", type=click.Path(dir_okay=False, path_type=Path), help="Write the curve to a file."
)
@online
def tune(target: Target, name: str, *, mates: int | None, svg: Path | None) -> None:
    """Measure what the index misses, set the profiles by it, and show the curve."""
    with (
        target.client(timeout_s=TUNE_TIMEOUT_S) as client,
        render.waiting(f"measuring {name}", quiet=target.as_json),
    ):
        tuned = client.tune(name, mates=mates, timeout_s=target.timeout_or(TUNE_TIMEOUT_S))
    if svg is not None and tuned.tuning is not None:
        svg.write_text(curve.svg_of(tuned.tuning), encoding="utf-8")
    if target.as_json:
        render.show_json(gallery_json(tuned))
    else:
        curve.show(tuned)


@gallery.command()
@click.argument("name")
@online
def train(target: Target, name: str) -> None:
    """Train the index of a gallery; it goes on being searched and written meanwhile."""
    with (
        target.client(timeout_s=TRAIN_TIMEOUT_S) as client,
        render.waiting(f"training {name}", quiet=target.as_json),
    ):
        trained = client.train(name, timeout_s=target.timeout_or(TRAIN_TIMEOUT_S))
    _show(trained, target)


@gallery.command()
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@online
def drop(target: Target, name: str, *, yes: bool) -> None:
    """Drop a gallery with all its templates. This cannot be undone."""
    with target.client() as client:
        doomed = client.get_gallery(name)
        render.show_note(
            f"gallery {name} will be lost: {doomed.templates_count:,} templates of dim"
            f" {doomed.dim} by {doomed.extractor}, in {doomed.shards_count} shards"
        )
        confirm("Drop it?", yes=yes)
        client.drop_gallery(name)
    if target.as_json:
        render.show_json({"dropped": gallery_json(doomed)})
    else:
        render.show_line(f"dropped {name}")
