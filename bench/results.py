"""The results of all figures, kept as JSON, so that one that is measured again replaces its own part only; and the page
and the chart that are made of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.chart import chart
from bench.figure import Figure, Goal, Result, Row, Side
from bench.processes import TOP
from bench.stats import Spread
from bench.table import page_rows, page_sides

KEPT = TOP / "bench" / "results.json"
PAGE = TOP / "bench" / "RESULTS.md"
CHART = TOP / "docs" / "images" / "bench.svg"

HEAD = """\
# Results

Made by `make bench`; each figure alone by the command in its row. Ratios are taken within one run, round by round,
because the machines that these were made on are shared: absolute rates vary by a factor of two between runs, ratios
much less. The job: profile events into 40,690 member rows of a SQLite store, Redis with `appendfsync everysec`. The
[expert loop](loops/expert.py) does what a good engineer writes in an afternoon, with `synchronous=NORMAL`; the [naive
loop](loops/naive.py) is the one that tutorials show. imsync does the same and keeps the replica, the settlement log and
the tallies, with `synchronous=FULL`.

![Rates of imsync and of others, as ratios to the expert loop](../docs/images/bench.svg)
"""


@dataclass(frozen=True, slots=True)
class Kept:
    """A figure's result, and how it was made."""

    result: Result
    command: str
    machine: str
    quick: bool


def read() -> dict[str, Kept]:
    """What was kept so far."""
    if not KEPT.exists():
        return {}
    return {name: _kept(raw) for name, raw in json.loads(KEPT.read_text(encoding="utf-8")).items()}


def write(figures: Mapping[str, Figure], measured: Mapping[str, Kept]) -> Sequence[Path]:
    """Keeps what was measured, and makes the page and the chart anew; the files."""
    before = read()
    kept = {name: measured.get(name) or before[name] for name in figures if name in measured or name in before}
    KEPT.write_text(json.dumps({n: asdict(each) for n, each in kept.items()}, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text("\n".join(_page(figures, kept)) + "\n", encoding="utf-8")
    CHART.parent.mkdir(exist_ok=True)
    CHART.write_text(chart({name: each.result for name, each in kept.items()}), encoding="utf-8")
    return KEPT, PAGE, CHART


def _page(figures: Mapping[str, Figure], kept: Mapping[str, Kept]) -> list[str]:
    results = {name: each.result for name, each in kept.items()}
    lines = [HEAD, *page_rows(results, {name: each.command for name, each in kept.items()})]
    for name, each in kept.items():
        scaled = " Scaled down (`--quick`)." if each.quick else ""
        lines += ["", f"## {figures[name].title}", "", f"`{each.command}` on {each.machine}.{scaled}", ""]
        lines += [*page_sides(each.result), "", *each.result.notes]
    return lines


def _kept(raw: dict[str, Any]) -> Kept:
    found = raw["result"]
    rows = [Row(row["label"], Goal(**row["goal"]), _spread(row["spread"]), row["unit"]) for row in found["rows"]]
    sides = [
        Side(
            side["label"],
            _spread(side["spread"]),
            _spread(side["ratio"]) if side["ratio"] else None,
            side["more"],
        )
        for side in found["sides"]
    ]
    return Kept(Result(rows, sides, found["unit"], found["notes"]), raw["command"], raw["machine"], raw["quick"])


def _spread(raw: dict[str, Any]) -> Spread:
    return Spread.of(raw["values"])
