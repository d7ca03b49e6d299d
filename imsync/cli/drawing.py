"""A picture that is a file of its own: charts with their text in them, as SVG that loads nothing and knows light and
dark.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from imsync.cli import charts
from imsync.cli.charts import HEIGHT, WIDTH, Scale, clean

PAGE_WIDTH, MARGIN, GAP = 960, 24, 16
CARD_HEIGHT = 276
LEFT, TOP, BELOW = 64, 62, 38
"""Of a chart in its card: the room for labels at the left, the titles above, the labels below."""
_STYLE = """
text { font: 13px system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; fill: var(--soft); }
text.title { font-size: 15px; font-weight: 600; fill: var(--ink); }
text.head { font-size: 22px; font-weight: 600; fill: var(--ink); }
text.small { font-size: 12px; }
text.strong { font-weight: 600; fill: var(--ink); }
.page { fill: var(--page); } .card { fill: var(--card); stroke: var(--rule); }
"""


@dataclass(frozen=True, slots=True)
class Panel:
    """One chart in its card.

    Args:
        shapes: of `charts`, in its coordinates.
        scale: of the vertical axis.
        along: labels of the horizontal axis: where, as a share of the width, and what; the anchor is the middle,
            or the end that is nearer at the edges.
        notes: a second line of such labels.
        legend: names with their tones.
        is_wide: takes the whole width.
    """

    title: str
    about: str
    shapes: Sequence[str]
    scale: Scale
    along: Sequence[tuple[float, str]]
    notes: Sequence[tuple[float, str]] = ()
    legend: Sequence[tuple[str, int]] = ()
    is_wide: bool = False


def document(title: str, about: Sequence[str], panels: Sequence[Panel], notes: Sequence[str]) -> str:
    """The whole file.

    Args:
        about: lines below the title.
        notes: lines at the end.
    """
    whole, half = PAGE_WIDTH - 2 * MARGIN, (PAGE_WIDTH - 2 * MARGIN - GAP) / 2
    parts = [_text(MARGIN, 40, title, "head")]
    parts += [_text(MARGIN, 64 + 19 * i, line) for i, line in enumerate(about)]
    x, y = float(MARGIN), 64.0 + 19 * len(about)
    for panel in panels:
        width = whole if panel.is_wide else half
        if x > MARGIN and x + width > PAGE_WIDTH - MARGIN + 1:
            x, y = float(MARGIN), y + CARD_HEIGHT + GAP
        parts.append(_card(panel, x, y, width))
        x += width + GAP
    if panels:
        y += CARD_HEIGHT
    parts += [_text(MARGIN, y + 26 + 18 * i, line, "small") for i, line in enumerate(notes)]
    height = y + 26 + 18 * len(notes)
    size = f'width="{PAGE_WIDTH}" height="{height:.0f}" viewBox="0 0 {PAGE_WIDTH} {height:.0f}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{clean(title)}">\n'
        f"<style>{charts.style()}{_STYLE}</style>\n"
        f'<rect class="page" width="{PAGE_WIDTH}" height="{height:.0f}"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _card(panel: Panel, x: float, y: float, width: float) -> str:
    inner, tall = width - LEFT - 20, CARD_HEIGHT - TOP - BELOW - 12
    parts = [
        f'<rect class="card" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{CARD_HEIGHT}" rx="10"/>',
        _text(x + 16, y + 26, panel.title, "title"),
        _text(x + 16, y + 46, panel.about, "small"),
    ]
    at = x + width - 16
    for name, tone in reversed(panel.legend):
        at -= 8.0 * len(name)
        parts += [
            _text(at, y + 26, name),
            f'<rect class="s{tone % 6}" x="{at - 16:.1f}" y="{y + 17:.1f}" width="10" height="10" rx="2"/>',
        ]
        at -= 30
    steps = len(panel.scale.labels) - 1
    for i, label in enumerate(panel.scale.labels):
        parts.append(_text(x + LEFT - 8, y + TOP + tall * i / steps + 4, label, "small", "end"))
    parts.append(
        f'<svg x="{x + LEFT:.1f}" y="{y + TOP:.1f}" width="{inner:.1f}" height="{tall:.1f}" overflow="visible" '
        f'viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none">{"".join(panel.shapes)}</svg>'
    )
    for below, labels, style in ((20, panel.along, "small"), (37, panel.notes, "small strong")):
        for share, label in labels:
            anchor = "start" if share <= 0 else "end" if share >= 1 else "middle"
            parts.append(_text(x + LEFT + share * inner, y + TOP + tall + below, label, style, anchor))
    return "".join(parts)


def _text(x: float, y: float, text: str, tone: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{tone}" text-anchor="{anchor}">{clean(text)}</text>'
