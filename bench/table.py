"""Results as text: for a terminal of 80 columns, and for a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bench.figure import Result, Row, Side
from bench.stats import Spread

HEAD = ("figure", "goal", "median", "min to max", "")


def number(value: float) -> str:
    """Three or four figures."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 20 else f"{value:.2f}"


def cells(row: Row) -> tuple[str, str, str, str, str]:
    """A row as text: what, goal, median, range, verdict."""
    unit = f" {row.unit}" if row.unit else ""
    return (
        row.label,
        f"{row.goal.sign} {row.goal.bound:g}{unit}",
        number(row.goal.judged(row.spread)),
        _range(row.spread),
        "met" if row.goal.met(row.spread) else "missed",
    )


def terminal(results: Mapping[str, Result]) -> str:
    """The table of goals, then what was compared, in lines of at most 80 characters."""
    lines = [_line(HEAD)]
    lines += [_line(cells(row)) for result in results.values() for row in result.rows]
    for name, result in results.items():
        lines += ["", f"{name}, {result.unit}"]
        for side in result.sides:
            ratio = f"×{number(side.ratio.median)}" if side.ratio else ""
            lines.append(
                f"  {side.label:38} {number(side.spread.median):>9}  {_range(side.spread):18} {ratio}".rstrip()
            )
    return "\n".join(lines)


def page_rows(results: Mapping[str, Result], commands: Mapping[str, str]) -> list[str]:
    """The table of goals in Markdown, each row with the command that makes it."""
    lines = ["| figure | goal | median | min to max | verdict | command |", "|---|---|---|---|---|---|"]
    for name, result in results.items():
        for row in result.rows:
            what, goal, median, spread, verdict = cells(row)
            lines.append(f"| {what} | {goal} | {median} | {spread} | {verdict} | `{commands[name]}` |")
    return lines


def page_sides(result: Result) -> list[str]:
    """What was compared, in Markdown."""
    has_ratio = any(side.ratio for side in result.sides)
    more = list(dict.fromkeys(title for side in result.sides for title in side.more))
    titles = ["", f"{result.unit}, median (min to max)", *(["of the expert loop"] if has_ratio else []), *more]
    lines = [f"| {' | '.join(titles)} |", "|" + "---|" * len(titles)]
    for side in result.sides:
        values = [side.label, f"{number(side.spread.median)} ({_range(side.spread)})"]
        if has_ratio:
            values.append(_ratio(side))
        values += [side.more.get(title, "") for title in more]
        lines.append(f"| {' | '.join(values)} |")
    return lines


def _ratio(side: Side) -> str:
    return f"{number(side.ratio.median)} ({_range(side.ratio)})" if side.ratio else ""


def _range(spread: Spread) -> str:
    return f"{number(spread.low)} to {number(spread.high)}"


def _line(values: Sequence[str]) -> str:
    what, goal, median, spread, verdict = values
    return f"{what:40} {goal:8} {median:>7}  {spread:14} {verdict}".rstrip()
