"""The chart of the README: bars for imsync and others, as ratios to the expert loop. Plain SVG, light and dark."""

from __future__ import annotations

from collections.abc import Mapping
from xml.sax.saxutils import escape

from bench.figure import Result, Side
from bench.table import number

PANELS = {
    "publish": "Publish many events",
    "dict": "Consume, into a dict",
    "store": "Consume, into SQLite",
}
"""The figures that are shown, with their titles."""
WIDTH, LEFT, RIGHT = 760, 250, 70
BAR, GAP, TITLE = 18, 8, 34
ZERO = 0.004
"""A bar that is too short to be seen is drawn as long as this share."""

STYLE = """
text { font: 13px system-ui, -apple-system, "Segoe UI", sans-serif; fill: #1f2328 }
.title { font-weight: 600; font-size: 14px }
.small { font-size: 11px; fill: #59636e }
.other { fill: #afb8c1 } .expert { fill: #818b98 } .imsync { fill: #0969da }
.line { stroke: #59636e; stroke-dasharray: 3 3 } .range { stroke: #1f2328; stroke-width: 1.5 }
@media (prefers-color-scheme: dark) {
  text { fill: #f0f6fc } .small { fill: #9198a1 }
  .other { fill: #3d444d } .expert { fill: #656c76 } .imsync { fill: #4493f8 }
  .line { stroke: #9198a1 } .range { stroke: #f0f6fc }
}
"""


def chart(results: Mapping[str, Result]) -> str:
    """The picture, of those of the figures that were measured."""
    parts: list[str] = []
    y = 8
    for name, title in PANELS.items():
        if name in results:
            y = _panel(parts, title, [side for side in results[name].sides if side.ratio], y)
    foot = "Median of interleaved rounds, as a ratio to the hand-written expert loop (1.0); thin lines: least to most."
    parts.append(f'<text class="small" x="12" y="{y + 14}">{foot}</text>')
    height = y + 26
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img" aria-label="Rates as ratios to the expert loop">\n<style>{STYLE}</style>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _panel(parts: list[str], title: str, sides: list[Side], y: int) -> int:
    longest = max(side.ratio.high for side in sides if side.ratio)
    scale = (WIDTH - LEFT - RIGHT) / longest
    parts.append(f'<text class="title" x="12" y="{y + 18}">{escape(title)}</text>')
    top = y = y + TITLE
    for side in sorted(sides, key=lambda side: -side.ratio.median if side.ratio else 0.0):
        if side.ratio is None:
            continue
        kind = "imsync" if side.label.startswith("imsync") else "expert" if "expert" in side.label else "other"
        middle, length = y + BAR / 2, max(side.ratio.median, ZERO * longest) * scale
        low, high = LEFT + side.ratio.low * scale, LEFT + side.ratio.high * scale
        parts.append(f'<text x="{LEFT - 10}" y="{middle + 4.5:g}" text-anchor="end">{escape(side.label)}</text>')
        parts.append(
            f'<rect class="{kind}" x="{LEFT}" y="{y}" width="{length:.1f}" height="{BAR}" rx="2">'
            f"<title>{escape(side.label)}: {number(side.spread.median)} events/s</title></rect>"
        )
        if kind != "expert":
            parts.append(f'<path class="range" d="M{low:.1f} {middle:g}H{high:.1f}"/>')
        parts.append(f'<text x="{WIDTH - 12}" y="{middle + 4.5:g}" text-anchor="end">{side.ratio.median:.2f}</text>')
        y += BAR + GAP
    one = LEFT + scale
    parts.append(f'<path class="line" d="M{one:.1f} {top - 4}V{y - GAP + 4}"/>')
    return y + 6
