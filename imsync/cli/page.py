"""The page of `imsync report`: one file of HTML that needs nothing else, and may load nothing else.

A content security policy names the one style sheet by its hash and forbids everything else
(https://www.w3.org/TR/CSP3/); what came from events, names or files is escaped all the same.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, tzinfo
from importlib.resources import files
from typing import Any

from imsync.cli import charts
from imsync.cli.charts import Series, clean
from imsync.cli.render import number as count
from imsync.cli.render import seconds
from imsync.cli.samples import Point, number, point_of, rows, text

Histogram = Mapping[int, Mapping[int, int]]
"""How many edits were how old, by hour since 1970 and bucket; see `imsync.store.settlement`."""

EDGES_MS = (10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 60_000, 600_000, 3_600_000)
"""Where the bars of the staleness distribution end, in milliseconds; one more takes the rest."""
MOST_MEMBERS = 40
SOURCE = 5
"""The colour of what is no group's: the edits, the outbox."""


@dataclass(frozen=True, slots=True)
class Drift:
    """What `verify` found. `not_looked`: why it was not asked; empty when it was."""

    not_looked: str = ""
    users: int = 0
    rows: int = 0
    drift: int = 0
    in_flight: int = 0
    causes: Mapping[str, int] = field(default_factory=dict)
    examples: Sequence[tuple[int, str, str, int, int]] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """What the page shows.

    Args:
        where: the server, without a password.
        state: the numbers now, as `imsync status --json` tells them.
        points: the samples, in the order of their times.
        histograms: how stale copies were, by group; none where the stores are not here.
        upper_edge_ms: of a histogram's bucket.
        zone: the times' zone; this machine's when None.
    """

    where: str
    version: str
    made_at: float
    state: Mapping[str, Any]
    points: Sequence[Point]
    histograms: Mapping[str, Histogram]
    upper_edge_ms: Callable[[int], float]
    drift: Drift
    zone: tzinfo | None = None

    def moment(self, unix_seconds: float) -> datetime:
        """A time of the page's zone."""
        return datetime.fromtimestamp(unix_seconds, self.zone).astimezone(self.zone)


def page(report: Report) -> str:
    """The whole page."""
    style = charts.style() + files("imsync.cli").joinpath("page.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    parts = [
        _header(report),
        _problems(report.state),
        _tiles(report),
        _drift(report.drift),
        _over_time(report),
        _staleness(report),
        _outcomes(report.state),
        _members(report.state),
        _footer(report),
    ]
    body = "\n".join(filter(None, parts))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<meta name="referrer" content="no-referrer">\n'
        f"<title>imsync report, {report.moment(report.made_at):%Y-%m-%d %H:%M}</title>\n"
        f"<style>{style}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


# ── in words and numbers ─────────────────────────────────────────────────────────────────────────────────


def _header(report: Report) -> str:
    healthy = _is_healthy(report)
    badge = '<span class="badge good">healthy</span>' if healthy else '<span class="badge bad">needs attention</span>'
    moment = report.moment(report.made_at)
    zone = clean(moment.tzname() or "")
    looked = point.at if (point := point_of(report.state)) else report.made_at
    state = f"; the state is that of {report.moment(looked):%Y-%m-%d %H:%M:%S}" if report.made_at - looked > 60 else ""
    return (
        f"<header><h1>imsync report</h1>{badge}"
        f'<p class="about">{clean(report.where)}, {moment:%Y-%m-%d %H:%M:%S} {zone}{state}</p></header>'
    )


def _is_healthy(report: Report) -> bool:
    away = isinstance(report.state.get("redis"), dict)
    return report.state.get("healthy") is True and not report.drift.drift and not away


def _problems(state: Mapping[str, Any]) -> str:
    problems = rows(state, "problems", most=100)
    away = state.get("redis")
    if isinstance(away, dict):
        problems = [{"what": f"Redis is away: {away.get('message')}", "remedy": away.get("hint")}, *problems]
    if not problems:
        return ""
    shown = "".join(
        f'<div class="problem"><p><b>{clean(text(each, "what") or "something")}</b></p>'
        f"<code>{clean(text(each, 'remedy') or '')}</code></div>"
        for each in problems
    )
    return f'<h2>What needs somebody, and what helps</h2><div class="stack">{shown}</div>'


def _tiles(report: Report) -> str:
    state = report.state
    groups = rows(state, "groups")
    published = next((n for each in groups if (n := number(each, "accounting", "published")) is not None), None)
    unsent, oldest = number(state, "outbox", "unsent"), number(state, "outbox", "oldest_seconds")
    lags = [number(each, "lag") for each in groups]
    waits = [n for each in groups if (n := number(each, "lag_seconds")) is not None]
    slowest = [n for each in groups if (n := number(each, "staleness", "p99_ms")) is not None]
    median = [n for each in groups if (n := number(each, "staleness", "p50_ms")) is not None]
    alive = sum(int(number(each, "consumers") or 0) for each in groups)
    tiles = [
        ("published", _count(published), "events, ever"),
        ("not delivered", _count(_sum(lags)), _oldest(lags, waits)),
        ("pending", _count(_sum([number(each, "pending") for each in groups])), "delivered, not acknowledged"),
        ("staleness", _ms(max(slowest, default=None)), f"p99 over 24 h; p50 {_ms(max(median, default=None))}"),
        ("consumers", _count(alive), "with a heartbeat"),
        ("dead letters", _count(_sum([number(each, "dead") for each in groups])), "cannot be applied"),
        ("outbox", _count(unsent), f"unsent, oldest {seconds(oldest)}" if unsent else "unsent"),
        ("stream", _count(number(state, "retention", "length")), "entries"),
    ]  # fmt: skip
    shown = "".join(
        f'<div class="tile"><span>{clean(title)}</span><b>{clean(value)}</b><small>{clean(about)}</small></div>'
        for title, value, about in tiles
    )
    return f'<h2>Now</h2><div class="tiles">{shown}</div>'


def _oldest(lags: Sequence[float | None], waits: Sequence[float]) -> str:
    if lags and not any(lag is None or lag for lag in lags):
        return "entries; nothing waits"
    return f"entries, oldest {seconds(max(waits, default=None))}"


def _outcomes(state: Mapping[str, Any]) -> str:
    names = {"applied": "applied", "superseded": "superseded", "duplicates": "repeats", "dead": "dead", "lost": "lost"}
    shown = []
    for group in rows(state, "groups"):
        values = {title: number(group, "outcomes", key) for key, title in names.items()}
        if all(value is None for value in values.values()):
            continue
        known = {title: value or 0.0 for title, value in values.items()}
        keys = "".join(
            f'<span class="key"><i class="{title}"></i>{clean(_count(value))} {title}</span>'
            for title, value in known.items()
            if value or title in ("applied", "superseded", "dead")
        )
        unexplained = number(group, "accounting", "unexplained")
        closed = "the user store is elsewhere: the accounts are not known"
        if unexplained is None and number(group, "accounting", "published") is not None:
            closed = "nobody knows how many entries wait, so the accounts cannot be closed"
        if unexplained is not None:
            closed = f"{count(int(unexplained))} events unexplained" if unexplained else "the accounts close"
        tone = "" if unexplained is None else "bad" if unexplained else "good"
        shown.append(
            f'<div class="card"><h3>{clean(text(group, "group"))}</h3>{charts.share(known)}'
            f'<p>{keys}</p><p class="{tone}">{clean(closed)}</p></div>'
        )
    if not shown:
        return ""
    return f'<h2>Outcomes, since the stores were made</h2><div class="charts">{"".join(shown)}</div>'


def _drift(drift: Drift) -> str:
    head = "<h2>Are the copies right?</h2>"
    if drift.not_looked:
        return f'{head}<div class="card"><p class="empty">not compared: {clean(drift.not_looked)}</p></div>'
    compared = f"{drift.rows:,} copies of {drift.users:,} users compared with their source"
    flight = f"; {drift.in_flight:,} more are in flight" if drift.in_flight else ""
    if not drift.drift:
        return f'{head}<div class="card"><p><b class="good">No drift</b>: {compared}{flight}.</p></div>'
    causes = _table(("cause", "#users"), [(name, count(n)) for name, n in drift.causes.items()])
    examples = _table(("#user", "projection", "cause", "#source version", "#copy version"), drift.examples)
    return (
        f'{head}<div class="card stack"><p><b class="bad">{drift.drift:,} drifted</b>: {compared}{flight}. '
        f"<code>imsync verify</code> names them.</p>{causes}{examples}</div>"
    )


def _members(state: Mapping[str, Any]) -> str:
    found: list[tuple[object, ...]] = []
    for group in rows(state, "groups"):
        for each in rows(group, "members", most=MOST_MEMBERS):
            if each.get("alive") is not True and not number(each, "pending"):
                continue
            pid = number(each, "pid")
            where = f"{text(each, 'host') or '?'}, pid {int(pid)}" if pid is not None else "-"
            found.append((
                text(group, "group"), text(each, "consumer"), where, "alive" if each.get("alive") is True else "dead",
                _count(number(each, "pending")), _count(number(each, "events")), _last_error(each),
            ))  # fmt: skip
    if not found:
        return ""
    table = _table(("group", "consumer", "where", "state", "#holds", "#events", "last error"), found)
    return f'<h2>Who consumes</h2><div class="card">{table}</div>'


def _last_error(member: Mapping[str, Any]) -> str:
    error, moment = text(member, "last_error"), text(member, "last_error_at") or ""
    return f"{error}, {moment[:19].replace('T', ' ')} UTC" if error else "-"


def _footer(report: Report) -> str:
    points = report.points
    span = f", over {seconds(points[-1].at - points[0].at)}" if len(points) > 1 else ""
    return f"<footer>{len(points):,} samples{span}. Made by imsync {clean(report.version)}.</footer>"


def _table(columns: Sequence[str], cells: Iterable[Sequence[object]]) -> str:
    numeric = [column.startswith("#") for column in columns]
    head = "".join(
        f'<th class="n">{clean(column[1:])}</th>' if is_number else f"<th>{clean(column)}</th>"
        for column, is_number in zip(columns, numeric, strict=True)
    )
    body = "".join(
        "<tr>"
        + "".join(
            f'<td class="{"n" if is_number else "name"}">{clean("-" if cell is None else cell)}</td>'
            for cell, is_number in zip(row, numeric, strict=True)
        )
        + "</tr>"
        for row in cells
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


# ── in pictures ──────────────────────────────────────────────────────────────────────────────────────────


def _over_time(report: Report) -> str:
    points = report.points
    if len(points) < 2:
        return ""
    groups = list(dict.fromkeys(name for point in points for name in point.lag))[:5]
    first, last = points[0].at, points[-1].at
    same_day = report.moment(first).date() == report.moment(last).date()
    pattern = "%H:%M:%S" if last - first < 3600 and same_day else "%H:%M" if same_day else "%d %b %H:%M"
    ends = [f"{report.moment(first + (last - first) * share / 2):{pattern}}" for share in range(3)]

    def plain(name: str, values: Sequence[float | None], *, peaks: bool, tone: int, dashed: bool = False) -> Series:
        at = charts.with_gaps(list(zip([point.at for point in points], values, strict=True)))
        return Series(name, charts.thinned(at, peaks=peaks), tone, dashed)

    def grouped(
        after: str, values: Sequence[Mapping[str, float | None]], *, peaks: bool, dashed: bool = False
    ) -> list[Series]:
        return [
            plain(f"{name}{after}", [each.get(name) for each in values], peaks=peaks, tone=tone, dashed=dashed)
            for tone, name in enumerate(groups)
        ]

    def chart(title: str, about: str, series: Sequence[Series]) -> str:
        return charts.lines(title, about, series, charts.linear(_highest(series), _short), ends)

    speed = grouped("", [point.events for point in points], peaks=False)
    speed.append(plain("edits", [point.edits for point in points], peaks=False, tone=SOURCE))
    lag = grouped("", [point.lag for point in points], peaks=True)
    held = grouped("", [point.pending for point in points], peaks=True)
    held.append(plain("outbox", [point.unsent for point in points], peaks=True, tone=SOURCE))
    stale = grouped(" p99", [point.p99_ms for point in points], peaks=True)
    stale += grouped(" p50", [point.p50_ms for point in points], peaks=False, dashed=True)
    figures = [
        chart("Throughput", "per second", speed),
        chart("Lag", "entries that were not delivered yet", lag),
        _log_chart("Staleness", "edit to copy, of what took effect in each interval", stale, ends),
        chart("Held", "pending entries, and what waits in the outbox", held),
    ]
    away = sum(point.away for point in points)
    note = f'<p class="bad">Redis was away in {away:,} of {len(points):,} samples: the gaps.</p>' if away else ""
    return f'<h2>Over {clean(seconds(last - first))}</h2>{note}<div class="charts">{"".join(figures)}</div>'


def _staleness(report: Report) -> str:
    shown = []
    hour = int(report.made_at // 3600)
    for tone, (group, histogram) in enumerate(report.histograms.items()):
        total = sum(n for buckets in histogram.values() for n in buckets.values())
        values = _distribution(histogram, report.upper_edge_ms)
        about = f"{total:,} edits over 48 h, by age when copied, up to"
        shown.append(charts.bars(f"How stale: {group}", about, values, _short, tone))
    hourly = [
        Series(f"{group} {name}", _hourly(histogram, hour, share, report.upper_edge_ms), tone, share < 0.9)
        for tone, (group, histogram) in enumerate(report.histograms.items())
        for name, share in (("p99", 0.99), ("p50", 0.5))
    ]
    if any(len(histogram) > 1 for histogram in report.histograms.values()):
        start = report.moment(report.made_at) - timedelta(hours=48)
        ends = [f"{start + timedelta(hours=each):%d %b %H:00}" for each in (0, 24, 48)]
        shown.append(_log_chart("Staleness by the hour", "over 48 h", hourly, ends))
    return f'<h2>Staleness: from an edit to its copies</h2><div class="charts">{"".join(shown)}</div>' if shown else ""


def _distribution(histogram: Histogram, upper_edge_ms: Callable[[int], float]) -> list[tuple[str, float]]:
    """How many edits were below each edge, and not below the one before."""
    found = [0.0] * (len(EDGES_MS) + 1)
    for buckets in histogram.values():
        for bucket, n in buckets.items():
            middle = upper_edge_ms(bucket) / 10 ** (1 / 40)
            found[sum(middle > edge for edge in EDGES_MS)] += n
    labels = [_edge(edge) for edge in EDGES_MS] + ["more"]
    known = [i for i, n in enumerate(found) if n]
    if not known:
        return []
    return list(zip(labels, found, strict=True))[max(0, known[0] - 1) : known[-1] + 2]


def _edge(milliseconds: int) -> str:
    for size, unit in ((3_600_000, "h"), (60_000, "min"), (1000, "s")):
        if milliseconds >= size:
            return f"{milliseconds // size} {unit}"
    return f"{milliseconds} ms"


def _hourly(
    histogram: Histogram, hour: int, share: float, upper_edge_ms: Callable[[int], float]
) -> list[tuple[float, float | None]]:
    """A percentile for each of the last 48 hours; None for those without an edit."""
    found: list[tuple[float, float | None]] = []
    for each in range(hour - 47, hour + 1):
        buckets, passed, value = histogram.get(each, {}), 0, None
        total = sum(buckets.values())
        for bucket in sorted(buckets):
            passed += buckets[bucket]
            if passed >= share * total:
                value = upper_edge_ms(bucket)
                break
        found.append((float(each), value))
    return found


def _log_chart(title: str, about: str, series: Sequence[Series], ends: Sequence[str]) -> str:
    known = [y for each in series for _, y in each.points if y is not None and y > 0]
    scale = charts.logarithmic(min(known, default=1.0), max(known, default=1000.0), _ms)
    return charts.lines(title, f"{about}; logarithmic", series, scale, ends)


def _highest(series: Sequence[Series]) -> float:
    return max((y for each in series for _, y in each.points if y is not None), default=0.0)


# ── numbers for people ───────────────────────────────────────────────────────────────────────────────────


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return None if len(known) < len(values) or not known else math.fsum(known)


def _count(value: float | None) -> str:
    return count(None if value is None else int(value))


def _ms(value: float | None) -> str:
    if value is not None and value < 1:
        return f"{value:g} ms"
    return "-" if value is None else seconds(value / 1000).replace(".0 ", " ")


def _short(value: float) -> str:
    """A number of an axis."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"
