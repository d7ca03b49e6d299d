"""Charts as inline SVG: lines over time, bars, shares. Only shapes are in the SVG, stretched to the width of the page;
all text is HTML beside it, so that it has its own size on every screen. No colours here: a style sheet has them.
(A picture that is a file of its own has its text in it: see `imsync.cli.drawing`.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from itertools import pairwise

from imsync.cli.render import safe

WIDTH, HEIGHT = 600, 160
MOST_POINTS = 300
"""More points than that nobody can tell apart."""


def style() -> str:
    """The style sheet of the shapes, and its colours, for light and dark."""
    return files("imsync.cli").joinpath("charts.css").read_text(encoding="utf-8")


def clean(value: object) -> str:
    """Text from the outside as it may stand in a page."""
    return escape(safe(value))


@dataclass(frozen=True, slots=True)
class Series:
    """One line: (x, y) in rising order of x; y is None where nothing is known. `tone`: the colour's number."""

    name: str
    points: Sequence[tuple[float, float | None]]
    tone: int
    dashed: bool = False

    @property
    def style(self) -> str:
        """The classes of its line, and of its key."""
        return f"s{self.tone % 6}{' dashed' if self.dashed else ''}"


@dataclass(frozen=True, slots=True)
class Scale:
    """A vertical axis.

    Args:
        low, high: the values at its ends.
        labels: from the top down, evenly spread.
    """

    low: float
    high: float
    labels: Sequence[str]
    logarithmic: bool = False

    def height_of(self, value: float) -> float:
        """From the top of the chart."""
        low, high = self.low, self.high
        if self.logarithmic:
            low, high, value = math.log10(low), math.log10(high), math.log10(max(value, self.low))
        share = (value - low) / (high - low)
        return HEIGHT * (1 - min(1.0, max(0.0, share)))


def linear(highest: float, label: Callable[[float], str]) -> Scale:
    """From 0 to a round number that is not below the highest value."""
    top = _round_up(highest)
    return Scale(0.0, top, [label(top), label(top / 2), label(0.0)])


def logarithmic(lowest: float, highest: float, label: Callable[[float], str]) -> Scale:
    """From one power of ten to another, around all values."""
    first = math.floor(math.log10(max(lowest, 1e-6)))
    last = max(first + 1, math.ceil(math.log10(max(highest, 1e-6))))
    step = -(-(last - first) // 5)
    last = first + step * -(-(last - first) // step)
    exponents = range(last, first - 1, -step)
    return Scale(10.0**first, 10.0**last, [label(10.0**each) for each in exponents], logarithmic=True)


def _round_up(value: float) -> float:
    if value < 1e-9:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(each * power for each in (1, 2, 4, 5, 6, 8, 10) if value <= each * power * (1 + 1e-9))


def thinned(points: Sequence[tuple[float, float | None]], *, peaks: bool) -> list[tuple[float, float | None]]:
    """At most `MOST_POINTS` points: of each stretch the highest (`peaks`), or the mean."""
    size = -(-len(points) // MOST_POINTS)
    if size <= 1:
        return list(points)
    found: list[tuple[float, float | None]] = []
    for i in range(0, len(points), size):
        part = points[i : i + size]
        known = [y for _, y in part if y is not None]
        value = None if not known else max(known) if peaks else sum(known) / len(known)
        found.append((part[0][0], value))
    return found


def lines(title: str, about: str, series: Sequence[Series], scale: Scale, ends: Sequence[str]) -> str:
    """A chart of lines over time.

    Args:
        about: what the numbers are, for people who read, or hear, the page.
        ends: the labels of the horizontal axis, evenly spread.
    """
    if not any(each.points for each in series):
        return _figure(title, about, '<p class="empty">nothing was recorded</p>')
    shapes = line_shapes(series, scale)
    told = [f"{each.name}: {_last_of(each)}" for each in series]
    body = _plot(shapes, scale.labels, ends, f"{title}; {'; '.join(told)}")
    return _figure(title, about, body, series)


def line_shapes(series: Sequence[Series], scale: Scale) -> list[str]:
    """The lines of series of which one has a point, and the rules behind them."""
    xs = [x for each in series for x, _ in each.points]
    first, last = min(xs), max(xs)
    span = (last - first) or 1.0
    shapes = [_rule(scale, i) for i in range(len(scale.labels))]
    for each in series:
        for stretch in _stretches(each.points):
            at = [((x - first) / span * WIDTH, scale.height_of(y)) for x, y in stretch]
            if len(at) == 1:  # a line of one point is not seen
                at = [(max(0.0, at[0][0] - 1), at[0][1]), (min(float(WIDTH), at[0][0] + 1), at[0][1])]
            drawn = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
            shapes.append(f'<polyline class="{each.style}" points="{drawn}"/>')
    return shapes


def _last_of(series: Series) -> str:
    known = [y for _, y in series.points if y is not None]
    return f"{known[-1]:,.4g} at the end, at most {max(known):,.4g}" if known else "nothing known"


def with_gaps(points: Sequence[tuple[float, float | None]]) -> list[tuple[float, float | None]]:
    """Where much more time has passed between two points than usual, nothing is known."""
    steps = sorted(b[0] - a[0] for a, b in pairwise(points))
    if not steps:
        return list(points)
    longest = 5 * steps[len(steps) // 2]
    found = [points[0]]
    for a, b in pairwise(points):
        if b[0] - a[0] > longest > 0:
            found.append((a[0] + longest / 5, None))
        found.append(b)
    return found


def _stretches(points: Sequence[tuple[float, float | None]]) -> list[list[tuple[float, float]]]:
    """The parts of a line between its gaps."""
    found: list[list[tuple[float, float]]] = [[]]
    for x, y in points:
        if y is None:
            found.append([])
        else:
            found[-1].append((x, y))
    return [each for each in found if each]


def bars(title: str, about: str, values: Sequence[tuple[str, float]], label: Callable[[float], str], tone: int) -> str:
    """A chart of bars, each with its own label below. `tone`: the colour's number."""
    if not any(value for _, value in values):
        return _figure(title, about, '<p class="empty">nothing yet</p>')
    scale = linear(max(value for _, value in values), label)
    shapes = bar_shapes([[(value, tone)] for _, value in values], scale)
    told = "; ".join(f"{name}: {label(value)}" for name, value in values if value)
    return _figure(title, about, _plot(shapes, scale.labels, [name for name, _ in values], told, centred=True))


def bar_shapes(places: Sequence[Sequence[tuple[float, int]]], scale: Scale) -> list[str]:
    """Bars, and the rules behind them.

    Args:
        places: from left to right, each with the bars that stand side by side there: values with their tones.
    """
    step = WIDTH / len(places)
    shapes = [_rule(scale, i) for i in range(len(scale.labels))]
    for i, bars_here in enumerate(places):
        width = step * 0.76 / len(bars_here)
        for j, (value, tone) in enumerate(bars_here):
            if value > 0:
                top = min(scale.height_of(value), HEIGHT - 1.5)  # the smallest is seen
                x, height = i * step + step * 0.12 + j * width, HEIGHT - top
                shapes.append(
                    f'<rect class="s{tone % 6}" x="{x:.1f}" y="{top:.1f}" width="{width:.1f}" height="{height:.1f}"/>'
                )
    return shapes


def share(values: Mapping[str, float]) -> str:
    """One bar, divided as the values are. The classes of its parts are the values' names."""
    total = sum(values.values())
    shapes, x = [], 0.0
    for name, value in values.items():
        width = value / total * WIDTH if total else 0.0
        if value > 0:
            width = max(width, 2.0)
            shapes.append(f'<rect class="{clean(name)}" x="{x:.1f}" y="0" width="{width:.1f}" height="20"/>')
            x += width
    told = ", ".join(f"{value:,.0f} {name}" for name, value in values.items() if value)
    return (
        f'<svg class="share" viewBox="0 0 {max(x, WIDTH):.1f} 20" preserveAspectRatio="none" role="img" '
        f'aria-label="{clean(told)}">{"".join(shapes)}</svg>'
    )


def _rule(scale: Scale, i: int) -> str:
    y = HEIGHT * i / (len(scale.labels) - 1)
    return f'<line class="rule" x1="0" x2="{WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>'


def _plot(shapes: Sequence[str], up: Sequence[str], along: Sequence[str], told: str, *, centred: bool = False) -> str:
    labels = "".join(f"<span>{clean(each)}</span>" for each in up)
    ends = "".join(f"<span>{clean(each)}</span>" for each in along)
    return (
        f'<div class="plot"><div class="up" aria-hidden="true">{labels}</div>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" role="img" aria-label="{clean(told)}">'
        f"{''.join(shapes)}</svg>"
        f'<div class="{"along centred" if centred else "along"}" aria-hidden="true">{ends}</div></div>'
    )


def _figure(title: str, about: str, body: str, legend: Sequence[Series] = ()) -> str:
    keys = "".join(f'<span class="key"><i class="{each.style}"></i>{clean(each.name)}</span>' for each in legend)
    return (
        f"<figure><figcaption><b>{clean(title)}</b> <small>{clean(about)}</small>"
        f"{f'<div>{keys}</div>' if len(legend) > 1 else ''}</figcaption>{body}</figure>"
    )
