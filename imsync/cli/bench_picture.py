"""What `imsync bench` has measured: as people see it in a terminal, and as one object for programs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from imsync.bench.results import NAMES, SIDES, Figure, Latency, Phases, Result, Side, Spread
from imsync.cli.render import Block, Grid, Line, bar, seconds, sparkline

TITLES: dict[Side, str] = {"imsync": "imsync", "by_hand": "by hand"}
LABELS = {
    "publish_per_second": "publish, events/s",
    "consume_per_second": "consume, events/s",
    "latency_p50_ms": "latency p50, ms",
    "latency_p90_ms": "latency p90, ms",
    "latency_p99_ms": "latency p99, ms",
    "latency_max_ms": "latency max, ms",
    "publish_cpu_seconds_per_100k": "publish, CPU s/100k",
    "consume_cpu_seconds_per_100k": "consume, CPU s/100k",
    "server_cpu_seconds_per_100k": "its server, CPU s/100k",
    "consume_peak_mib": "consumer, peak MiB",
}
BY_HAND = (
    "by hand: redis-py, COUNT 1000, pydantic, one transaction and one XACK per batch,",
    "synchronous=NORMAL; no outbox, no versions, no proof. imsync: synchronous=FULL",
)
RATIO = "ratio: imsync to by hand; above 1 is better for rates, below 1 for the rest"
WIDEST = 30
"""Of a bar, in characters."""


def blocks(result: Result, width: int) -> list[Block]:
    """All of it, in so many columns."""
    found: list[Block] = [Line(line) for line in (where_of(result), *data_of(result))]
    if result.figures:
        columns = ("", "#imsync", "#min-max", "#by hand", "#min-max", "#ratio", "#min-max")
        rows = [_row(name, result.figures[name]) for name in NAMES if name in result.figures]
        found += [Grid(columns, rows), *(Line(line, "quiet") for line in (*BY_HAND, RATIO)), Line("")]
    found += _limits(result)
    room = min(WIDEST, max(8, (width - 34) // 2))
    if result.latency:
        found += _histogram(result.latency, room)
    if result.timeline:
        found += _timeline(result)
    found += [Line(f"! {doubt.what}", "bad") for doubt in result.doubts]
    left = "no process, no file and no key is left"
    return [*found, Line(f"{result.seconds:.0f} s; {left}")]


def where_of(result: Result) -> str:
    """Where it was measured, in a line."""
    machine = result.machine
    server = f"{machine.server}{' of its own' if machine.embedded else f' at {machine.where}'}"
    cores = f"{machine.cores} {'core' if machine.cores == 1 else 'cores'}"
    disk = f", {machine.filesystem}" if machine.filesystem else ""
    return f"{server}, Python {machine.python}, SQLite {machine.sqlite}, {cores}{disk}"


def data_of(result: Result) -> list[str]:
    """On which data, and that it came out right, in lines."""
    found = []
    if result.rows:
        data = f"{result.users:,} users in {result.rows:,} member rows"
        if result.rounds:
            data += f"; {result.rounds:,} {'round' if result.rounds == 1 else 'rounds'} of {result.events:,} events"
        found.append(data)
    if result.checked_rows:
        found.append(f"{result.checked_rows:,} rows compared with what the edits make of them: all right")
    return found


def _row(name: str, figure: Figure) -> tuple[str, ...]:
    ratio = figure.ratio
    return (
        LABELS[name], short(figure.imsync.value), _range(figure.imsync), short(figure.by_hand.value),
        _range(figure.by_hand), _ratio(ratio.value), f"{_ratio(ratio.low)}-{_ratio(ratio.high)}",
    )  # fmt: skip


def _range(spread: Spread) -> str:
    return f"{short(spread.low)}-{short(spread.high)}"


def short(value: float) -> str:
    """A figure with three digits."""
    if not value:
        return "0"
    if value >= 999_500:
        return f"{value / 1e6:.3g}M"
    if value >= 9_995:
        return f"{value / 1e3:.3g}k"
    return f"{value:,.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def _ratio(value: float) -> str:
    return f"{value:.2f}" if value < 9.995 else f"{value:.0f}" if value < 999.5 else short(value)


def _limits(result: Result) -> list[Block]:
    found: list[Block] = []
    if sync := result.sync:
        cost = f"one fsync costs {_ms(sync.p50_ms)} (p99 {_ms(sync.p99_ms)}): a transaction of its own for each event"
        found += [Line(cost), Line(f"could carry at most {short(1000 / max(sync.p50_ms, 1e-3))}/s")]
    if result.phases:
        found.append(Line(f"a consumer's time: {_shares(result.phases)}"))
    if result.consumer_share is not None:
        own = f"its processor works {result.consumer_share:.0%} of the time"
        server = "" if result.server_share is None else f", the server's {result.server_share:.0%}"
        what = {
            "consumer": "its own processor, in Python and SQLite",
            "server": "the server",
            "disk": "the disk: fsync",
            "waiting": "something else, such as other programs or the network",
        }
        disk = "" if result.disk_share is None else f", fsyncs take about {result.disk_share:.0%}"
        found += [Line(f"{own}{server}{disk}"), Line(f"what limits it: {what[result.limit or 'waiting']}")]
    return found


def _shares(phases: Phases) -> str:
    named = {
        "store": phases.store, "read": phases.read, "decode": phases.decode, "acknowledge": phases.acknowledge,
        "other": phases.other,
    }  # fmt: skip
    return ", ".join(f"{name} {share:.0%}" for name, share in named.items() if share >= 0.005)


def _ms(value: float) -> str:
    return f"{short(value)} ms"


def _histogram(latency: Latency, room: int) -> list[Block]:
    top = max(max(each.imsync, each.by_hand) for each in latency.histogram)
    rows = [
        (
            f"{each.up_to_ms:,.6g}" if each.up_to_ms < 100 else f"{each.up_to_ms:,.0f}",
            f"{each.imsync:,}", bar(each.imsync / top, room).ljust(room), f"{each.by_hand:,}",
            bar(each.by_hand / top, room).ljust(room),
        )
        for each in latency.histogram
    ]  # fmt: skip
    about = (
        f"latency at {latency.rate:,.0f} edits/s, from the edit's commit to its copies'; {latency.edits:,} edits each"
    )
    return [Line(""), Line(about), Grid(("#up to ms", "#imsync", "", "#by hand", ""), rows)]


def _timeline(result: Result) -> list[Block]:
    values: dict[Side, list[float | None]] = {
        "imsync": [tick.imsync for tick in result.timeline],
        "by_hand": [tick.by_hand for tick in result.timeline],
    }
    known = [value for side in SIDES for value in values[side] if value is not None]
    top, count = max(known, default=0.0), len(result.timeline)
    whole = result.timeline[-1].seconds * count / max(1, count - 1)
    rows = []
    for side in SIDES:
        there = [value for value in values[side] if value is not None]
        mean = sum(there) / len(there) if there else 0.0
        rows.append((TITLES[side], sparkline(values[side], count, top).ljust(count), f"{short(mean)}/s"))
    about = f"rate while draining {result.events:,} events, over {seconds(whole)}; the highest is {short(top)}/s"
    return [Line(about), Grid(("", "", "#mean"), rows)]


# ── for programs ─────────────────────────────────────────────────────────────────────────────────────────


def described(result: Result) -> dict[str, Any]:
    """As one object."""
    latency, phases = result.latency, result.phases
    return {
        "machine": asdict(result.machine),
        "users": result.users,
        "rows": result.rows,
        "events": result.events,
        "rounds": result.rounds,
        "seed": result.seed,
        "checked_rows": result.checked_rows,
        "figures": {name: _figure(figure) for name, figure in result.figures.items()},
        "fsync": _rounded(asdict(result.sync)) if result.sync else None,
        "time": _rounded(asdict(phases)) if phases else None,
        "consumer_busy": _round(result.consumer_share),
        "server_busy": _round(result.server_share),
        "disk_busy": _round(result.disk_share),
        "limit": result.limit,
        "latency": None if latency is None else {
            "rate": latency.rate,
            "made_per_second": {side: _round(latency.made[side]) for side in SIDES},
            "edits": latency.edits,
            "histogram": [_rounded(asdict(each)) for each in latency.histogram],
        },
        "timeline": [_rounded(asdict(tick)) for tick in result.timeline],
        "doubts": [asdict(each) for each in result.doubts],
        "seconds": round(result.seconds, 1),
        "interrupted": result.interrupted,
    }  # fmt: skip


def _figure(figure: Figure) -> dict[str, dict[str, float | None]]:
    return {name: _rounded(asdict(each)) for name, each in (
        ("imsync", figure.imsync), ("by_hand", figure.by_hand), ("ratio", figure.ratio),
    )}  # fmt: skip


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {name: _round(value) if isinstance(value, float) else value for name, value in values.items()}


def _round(value: float | None) -> float | None:
    """With five digits: what is measured has no more."""
    return None if value is None else float(f"{value:.5g}")
