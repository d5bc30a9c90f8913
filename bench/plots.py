"""Small pictures of results as SVG text: the same numbers give the same bytes.

Written out by hand: a plotting library would put its version, its fonts and the date into files
that a test compares byte by byte.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

WIDTH: Final = 640
HEIGHT: Final = 400
LEFT: Final = 70
RIGHT: Final = 190
TOP: Final = 30
BOTTOM: Final = 50
COLOURS: Final = ("#1b6ca8", "#c8553d", "#588b3b", "#8b5fa8", "#b8860b", "#4a4a4a")

Line = Sequence[tuple[float, float]]
"""Points of one line; both values above zero, since both axes are logarithmic."""


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis: what it shows, and between which whole powers of ten."""

    title: str
    low: int
    high: int

    def share(self, value: float) -> float:
        """Return where a value lies, 0 at the low end and 1 at the high one."""
        return (math.log10(value) - self.low) / (self.high - self.low)

    @classmethod
    def over(cls, title: str, values: Sequence[float]) -> "Axis":
        """Return the axis that holds all of these values."""
        low = math.floor(math.log10(min(values)) + 1e-9)
        return cls(title, low, max(math.ceil(math.log10(max(values)) - 1e-9), low + 1))


def drawn(title: str, x_title: str, y_title: str, lines: Mapping[str, Line]) -> str:
    """Return a picture of lines by name. Values that are not above zero are left out."""
    kept = {
        name: sorted((x, y) for x, y in line if x > 0 and y > 0) for name, line in lines.items()
    }
    kept = {name: line for name, line in kept.items() if line}
    assert kept, f"nothing to draw: {title}"
    points = [point for line in kept.values() for point in line]
    x = Axis.over(x_title, [point[0] for point in points])
    y = Axis.over(y_title, [point[1] for point in points])
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"'
            ' font-family="sans-serif" font-size="12">'
        ),
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        _text(LEFT, 18, title, "start", weight="bold"),
        *_grid(x, y),
    ]
    for number, (name, line) in enumerate(kept.items()):
        parts += _line(number, name, [_place(x, y, point) for point in line])
    return "\n".join([*parts, "</svg>"]) + "\n"


def _place(x: Axis, y: Axis, point: tuple[float, float]) -> tuple[float, float]:
    across = LEFT + x.share(point[0]) * (WIDTH - LEFT - RIGHT)
    down = HEIGHT - BOTTOM - y.share(point[1]) * (HEIGHT - TOP - BOTTOM)
    return across, down


def _grid(x: Axis, y: Axis) -> Iterator[str]:
    for power in range(x.low, x.high + 1):
        across, _ = _place(x, y, (10.0**power, 10.0**y.low))
        yield _stroke((across, TOP), (across, HEIGHT - BOTTOM))
        yield _text(across, HEIGHT - BOTTOM + 16, _tick(power), "middle")
    for power in range(y.low, y.high + 1):
        _, down = _place(x, y, (10.0**x.low, 10.0**power))
        yield _stroke((LEFT, down), (WIDTH - RIGHT, down))
        yield _text(LEFT - 6, down + 4, _tick(power), "end")
    yield _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, x.title, "middle")
    middle = (TOP + HEIGHT - BOTTOM) / 2
    yield (
        f'<text x="14" y="{middle:.1f}" text-anchor="middle"'
        f' transform="rotate(-90 14 {middle:.1f})">{escape(y.title)}</text>'
    )


def _line(number: int, name: str, places: Line) -> Iterator[str]:
    colour = COLOURS[number % len(COLOURS)]
    dashed = ' stroke-dasharray="5 3"' if number >= len(COLOURS) else ""
    path = " ".join(f"{across:.1f},{down:.1f}" for across, down in places)
    yield f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"{dashed}/>'
    for across, down in places:
        yield f'<circle cx="{across:.1f}" cy="{down:.1f}" r="3" fill="{colour}"/>'
    height = TOP + 14 + 16 * number
    yield (
        f'<rect x="{WIDTH - RIGHT + 12}" y="{height - 9}" width="10" height="10" fill="{colour}"/>'
    )
    yield _text(WIDTH - RIGHT + 28, height, name, "start")


def _stroke(begin: tuple[float, float], end: tuple[float, float]) -> str:
    return (
        f'<line x1="{begin[0]:.1f}" y1="{begin[1]:.1f}" x2="{end[0]:.1f}" y2="{end[1]:.1f}"'
        ' stroke="#dddddd"/>'
    )


def _text(x: float, y: float, words: str, anchor: str, *, weight: str = "normal") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
        f' font-weight="{weight}">{escape(words)}</text>'
    )


def _tick(power: int) -> str:
    return f"{10**power:,}" if 0 <= power <= 5 else f"1e{power}"
