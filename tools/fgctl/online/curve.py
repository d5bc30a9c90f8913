"""What a gallery's tuning says: as rows, as JSON, as a picture in the terminal and in a file."""

import math
from datetime import UTC, datetime
from typing import Final

from facegrid.model import Gallery
from facegrid.tuning import Effort, Profile, Tuning
from fgctl import render

RULE_OF_30: Final = 30
"""With fewer misses only the bound of a rate is told."""
COLUMNS: Final = 60
LINES: Final = 14
MARKS: Final = {Profile.EXHAUSTIVE: "E", Profile.BALANCED: "B", Profile.FAST: "F"}
SVG_WIDTH: Final = 640
SVG_HEIGHT: Final = 400
SVG_MARGIN: Final = 60


def tuning_json(tuning: Tuning) -> render.Json:
    """Return a tuning as JSON."""
    return {
        "codebook": tuning.codebook,
        "nlist": tuning.nlist,
        "templates_count": tuning.templates_count,
        "mates_count": tuning.mates_count,
        "pseudo_mates_count": tuning.pseudo_mates_count,
        "nonmates_count": tuning.nonmates_count,
        "threshold": tuning.threshold,
        "fpir": tuning.fpir,
        "miss_rate_max": tuning.miss_rate_max,
        "tuned_unix_ms": tuning.tuned_unix_ms,
        "efforts": {str(name): _effort_json(one) for name, one in tuning.efforts.items()},
        "points": [_effort_json(point) for point in tuning.points],
    }


def _effort_json(effort: Effort) -> render.Json:
    return {
        "nprobe": effort.nprobe,
        "depth": effort.depth,
        "misses_count": effort.misses_count,
        "extra_fnir_max": effort.extra_fnir_max,
        "scanned_share": effort.scanned_share,
        "proven": effort.proven,
        "steps": [{"score": step.score, "nprobe": step.nprobe} for step in effort.steps],
    }


def tuning_rows(gallery: Gallery) -> list[tuple[str, object]]:
    """Return what there is to say of a gallery's tuning, for the table of its settings."""
    tuning = gallery.tuning
    if tuning is None or tuning.codebook != gallery.codebook:
        return [("tuned", "never" if tuning is None else "not since it was trained")]
    tuned = datetime.fromtimestamp(tuning.tuned_unix_ms / 1000, UTC)
    return [
        ("tuned", f"{tuned:%Y-%m-%d %H:%M:%S} UTC, {_evidence(tuning)}"),
        *((str(name), _promise(one, tuning)) for name, one in tuning.efforts.items()),
    ]


def _evidence(tuning: Tuning) -> str:
    text = render.many(tuning.mates_count, "mate")
    if tuning.pseudo_mates_count:
        text += f", {tuning.pseudo_mates_count:,} of them made from one template and noise"
    return text


def _promise(effort: Effort, tuning: Tuning) -> str:
    lists = f"{effort.nprobe} of {tuning.nlist} lists"
    proven = "" if effort.proven else "; what is wanted is not shown"
    return f"{lists}, misses at most {effort.extra_fnir_max:.2g} of the mates{proven}"


def show(gallery: Gallery) -> None:
    """Print a gallery's curve: a table of its points and profiles, and a picture."""
    tuning = gallery.tuning
    assert tuning is not None, "just tuned"
    named = [(f"{MARKS[name]} {name}", effort) for name, effort in tuning.efforts.items()]
    rows = [
        (
            name,
            effort.nprobe,
            effort.depth,
            f"{effort.scanned_share:.1%}",
            effort.misses_count,
            f"{effort.extra_fnir_max:.2e}",
            _rate(effort, tuning),
        )
        for name, effort in [*named, *(("", point) for point in tuning.points)]
    ]
    columns = ("profile", "lists", "depth", "scanned", "misses", "at most", "rate")
    table = render.table_of(f"gallery {gallery.name}", columns, rows, narrow=True)
    render.show(table)
    render.show_line("")
    for line in picture(tuning):
        render.show_line(line)
    render.show_line("")
    render.show_line(
        f"{_evidence(tuning)}; threshold {tuning.threshold:.4f} for FPIR {tuning.fpir:g}"
    )
    for name, effort in tuning.efforts.items():
        wanted = name.miss_rate_max(tuning.miss_rate_max)
        told = "shown" if effort.proven else "NOT shown, so all lists are searched"
        render.show_line(f"{name}: at most {wanted:g} of the mates wanted, {told}")


def _rate(effort: Effort, tuning: Tuning) -> str:
    """Return the rate where there are misses enough to state one."""
    if effort.misses_count < RULE_OF_30:
        return ""
    return f"{effort.misses_count / tuning.mates_count:.2e}"


def picture(tuning: Tuning) -> list[str]:
    """Return the curve in at most 80 columns: extra FNIR at most against share of rows scanned,
    both on logarithmic axes.
    """
    scale = _Scale(tuning)
    canvas = [[" "] * COLUMNS for _ in range(LINES)]
    marked = [(point, "*") for point in tuning.points]
    marked += [(tuning.efforts[name], mark) for name, mark in MARKS.items()]
    for effort, mark in marked:
        x, y = scale.place(effort)
        column, line = round(x * (COLUMNS - 1)), round(y * (LINES - 1))
        canvas[line][column] = mark
    height = max(scale.top - scale.bottom, 1)
    decades = {
        round((scale.top - power) / height * (LINES - 1)): f"1e{power}"
        for power in range(scale.bottom, scale.top + 1)
    }
    lines = ["extra FNIR, at most"]
    for number, row in enumerate(canvas):
        label = decades.get(number, "")
        lines.append(f"{label:>8} |{''.join(row).rstrip()}")
    left, right = f"{10**scale.left:.2%}", "100%"
    lines.append(" " * 9 + "+" + "-" * COLUMNS)
    lines.append(" " * 10 + left + right.rjust(COLUMNS - len(left)))
    lines.append(" " * 10 + "share of rows scanned (E exhaustive, B balanced, F fast)")
    return lines


class _Scale:
    """Where efforts lie in a picture, from 0 to 1 each way, the upper left corner first."""

    def __init__(self, tuning: Tuning) -> None:
        efforts = [*tuning.points, *tuning.efforts.values()]
        bounds = [math.log10(effort.extra_fnir_max) for effort in efforts]
        self.top, self.bottom = math.ceil(max(bounds)), math.floor(min(bounds))
        self.left = min(-1.0, *(math.log10(effort.scanned_share) for effort in efforts))

    def place(self, effort: Effort) -> tuple[float, float]:
        """Return how far right and how far down an effort lies."""
        height = max(self.top - self.bottom, 1)
        x = 1 - math.log10(effort.scanned_share) / self.left
        return x, (self.top - math.log10(effort.extra_fnir_max)) / height


def svg_of(tuning: Tuning) -> str:
    """Return the curve as an SVG file."""
    scale = _Scale(tuning)
    wide, high = SVG_WIDTH - 2 * SVG_MARGIN, SVG_HEIGHT - 2 * SVG_MARGIN

    def at(effort: Effort) -> tuple[float, float]:
        x, y = scale.place(effort)
        return SVG_MARGIN + x * wide, SVG_MARGIN + y * high

    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {SVG_WIDTH} {SVG_HEIGHT}"'
            ' font-family="sans-serif" font-size="12">'
        ),
        f'<rect width="{SVG_WIDTH}" height="{SVG_HEIGHT}" fill="white"/>',
        f'<path d="M{SVG_MARGIN} {SVG_MARGIN}v{high}h{wide}" fill="none" stroke="black"/>',
    ]
    for power in range(scale.bottom, scale.top + 1):
        y = SVG_MARGIN + (scale.top - power) / max(scale.top - scale.bottom, 1) * high
        parts.append(f'<path d="M{SVG_MARGIN} {y:.1f}h{wide}" stroke="#ddd"/>')
        parts.append(
            f'<text x="{SVG_MARGIN - 6}" y="{y + 4:.1f}" text-anchor="end">1e{power}</text>'
        )
    line = " ".join("{:.1f},{:.1f}".format(*at(point)) for point in tuning.points)
    parts.append(f'<polyline points="{line}" fill="none" stroke="#36c"/>')
    for point in tuning.points:
        x, y = at(point)
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="#36c"/>')
    for number, (name, effort) in enumerate(tuning.efforts.items()):
        x, y = at(effort)
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="none" stroke="#c33"/>')
        parts.append(
            f'<text x="{x:.1f}" y="{y - 8 - 12 * number:.1f}" text-anchor="end">{name}</text>'
        )
    foot = SVG_MARGIN + high + 16
    parts.append(f'<text x="{SVG_MARGIN}" y="{foot}">{10**scale.left:.2%}</text>')
    parts.append(f'<text x="{SVG_MARGIN + wide}" y="{foot}" text-anchor="end">100%</text>')
    parts.append(
        f'<text x="{SVG_WIDTH / 2}" y="{foot + 20}" text-anchor="middle">rows scanned</text>'
    )
    parts.append(f'<text x="{SVG_MARGIN}" y="{SVG_MARGIN - 16}">extra FNIR, at most</text>')
    return "\n".join([*parts, "</svg>", ""])
