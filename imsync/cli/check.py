"""`imsync check`: a verdict for monitoring."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from imsync.cli.looking import described_error, look, trouble
from imsync.cli.run import Run, command

if TYPE_CHECKING:
    from prometheus_client.core import GaugeMetricFamily

    from imsync.cli.render import Block
    from imsync.cli.verdicts import Check
    from imsync.errors import ImsyncError
    from imsync.im.overview import Overview


class Format(StrEnum):
    """What the verdict looks like."""

    TEXT = "text"
    JSON = "json"
    PROMETHEUS = "prometheus"


def register(app: typer.Typer) -> None:
    """Adds the command."""
    command(app, "check")(check)


def check(
    run: Run,
    max_lag: Annotated[
        int | None, typer.Option(min=0, help="Entries that may wait for a group.", show_default=False)
    ] = None,
    max_lag_seconds: Annotated[
        float | None, typer.Option(min=0, help="Age that the oldest of them may have.", show_default=False)
    ] = None,
    max_pending_age: Annotated[
        float | None, typer.Option(min=0, help="Seconds since the oldest pending entry.", show_default=False)
    ] = None,
    max_dead: Annotated[
        int | None, typer.Option(min=0, help="Dead letters that a group may have.", show_default=False)
    ] = None,
    max_outbox_age: Annotated[
        float | None, typer.Option(min=0, help="Seconds that an event may wait unsent.", show_default=False)
    ] = None,
    format_: Annotated[Format, typer.Option("--format", help="The form of the verdict.")] = Format.TEXT,
) -> None:
    """Judge lag, pending entries, dead letters and the outbox, for monitoring.

    Only the bounds that are given are judged, for every group; without any, all that status looks at. Exits with 0
    when all is within its bound and with 3 when something is not. What cannot be known is never fine: then it exits
    with 4 when Redis cannot tell, and with 5 when a store cannot, or is not here.
    """
    from imsync.cli.verdicts import Bounds, judge
    from imsync.errors import ImsyncError, UsageError

    bounds = Bounds(max_lag, max_lag_seconds, max_pending_age, max_dead, max_outbox_age)
    if any(bound != bound for bound in (max_lag_seconds, max_pending_age, max_outbox_age)):
        raise UsageError("a bound that is no number", "such as --max-lag-seconds 60")
    as_json = run.as_json or format_ is Format.JSON
    try:
        overview = look(run)
    except ImsyncError as error:
        if run.as_json or not as_json:
            raise
        run.out.row({"error": described_error(error)})
        raise typer.Exit(error.exit_code) from None
    checks = judge(overview, bounds)
    code = _exit_code(checks, overview)
    if as_json:
        run.out.row(_described(checks, overview, code))
    elif format_ is Format.PROMETHEUS:
        if failed := trouble(overview):
            run.out.note(_said(failed))
        print(exposition(overview, healthy=code == 0), end="")
    else:
        run.out.show(_blocks(checks))
    raise typer.Exit(code)


def _exit_code(checks: Sequence[Check], overview: Overview) -> int:
    from imsync.cli.verdicts import Verdict

    verdicts = {check.verdict for check in checks}
    if Verdict.FAILED in verdicts:
        return 3
    if Verdict.UNKNOWN not in verdicts:
        return 0
    # what is about a group can be asked of Redis alone, but for its accounts
    of_stores = {"outbox_age", "conflicts", "lost", "unexplained"}
    from_redis = any(check.verdict == Verdict.UNKNOWN and check.name not in of_stores for check in checks)
    from_redis |= any(group.accounting and group.accounting.unexplained is None for group in overview.groups)
    return 4 if overview.redis or from_redis else 5


def _described(checks: Sequence[Check], overview: Overview, code: int) -> dict[str, Any]:
    from dataclasses import asdict

    from imsync.bus.clock import timestamp
    from imsync.cli.verdicts import Verdict

    data: dict[str, Any] = {
        "time": timestamp(overview.at_ms),
        "healthy": code == 0,
        "failed": sum(check.verdict == Verdict.FAILED for check in checks),
        "unknown": sum(check.verdict == Verdict.UNKNOWN for check in checks),
        "checks": [asdict(check) for check in checks],
    }
    failed = trouble(overview)
    return data | ({"error": described_error(failed)} if failed else {})


def _said(error: ImsyncError) -> str:
    return f"{error.message} ({error.hint})" if error.hint else error.message


# ── for people ───────────────────────────────────────────────────────────────────────────────────────────


def _blocks(checks: Sequence[Check]) -> list[Block]:
    """A line that says it all, which is what a monitor shows; the table; what helps."""
    from imsync.cli.render import Grid, Line
    from imsync.cli.verdicts import Verdict

    wrong = [each for each in checks if each.verdict != Verdict.OK]
    failed = sum(each.verdict == Verdict.FAILED for each in wrong)
    parts = [f"{failed:,} failed"] if failed else []
    parts += [f"{len(wrong) - failed:,} unknown"] if len(wrong) > failed else []
    what = "; ".join(dict.fromkeys(each.what for each in wrong))
    summary = f"{', '.join(parts)} of {len(checks):,} checks: {what}" if wrong else f"ok: all {len(checks):,} checks"
    rows = [
        (each.verdict, each.group or "-", each.name.replace("_", " "), _value(each, each.value),
         _value(each, each.bound))
        for each in checks
    ]  # fmt: skip
    found: list[Block] = [Line(summary, "bad" if wrong else "good")]
    found.append(Grid(("verdict", "group", "check", "#value", "#at most"), rows))
    helping = {(each.what, each.remedy): None for each in wrong if each.remedy}
    for what, remedy in helping:
        found += [Line(f"! {what}", "bad"), Line(f"  try: {remedy}")]
    return found


def _value(check: Check, value: float | None) -> str:
    from imsync.cli.render import number, seconds

    if value is None:
        return "-" if check.bound is None else "unknown"
    return seconds(float(value)) if check.name.endswith(("_seconds", "_age")) else number(int(value))


# ── for Prometheus ───────────────────────────────────────────────────────────────────────────────────────


def exposition(overview: Overview, *, healthy: bool) -> str:
    """All gauges as Prometheus reads them. What is unknown is left out; only `imsync_healthy` is always there."""
    from prometheus_client import CollectorRegistry, generate_latest

    class Now:
        """Gives the gauges when they are asked for."""

        def collect(self) -> Iterator[GaugeMetricFamily]:
            return _gauges(overview, healthy)

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Now())
    return generate_latest(registry).decode()


def _gauges(overview: Overview, healthy: bool) -> Iterator[GaugeMetricFamily]:
    from prometheus_client.core import GaugeMetricFamily

    from imsync.telemetry.names import GROUP_GAUGES, GROUP_STALENESS, PLAIN_GAUGES

    for gauge in GROUP_GAUGES:
        family = GaugeMetricFamily(gauge.name, gauge.meaning, labels=gauge.labels)
        for group in overview.groups:
            view, accounting = group.view, group.accounting
            value = {
                "imsync_group_lag_entries": view.lag,
                "imsync_group_lag_seconds": view.lag_seconds,
                "imsync_group_pending_entries": view.pending,
                "imsync_group_oldest_pending_seconds": view.oldest_pending_seconds if view.pending else 0.0,
                "imsync_group_consumers_alive": len(view.alive),
                "imsync_group_dead_letters": view.dead,
                "imsync_group_unexplained_events": accounting.unexplained if accounting else None,
            }[gauge.name]
            if value is not None:
                family.add_metric([view.group], value)
        yield family
    family = GaugeMetricFamily(GROUP_STALENESS.name, GROUP_STALENESS.meaning, labels=GROUP_STALENESS.labels)
    for group in overview.groups:
        known = (group.staleness.p50_ms, group.staleness.p99_ms) if group.staleness else (None, None)
        for quantile, milliseconds in zip(("0.5", "0.99"), known, strict=True):
            if milliseconds is not None:
                family.add_metric([group.view.group, quantile], round(milliseconds / 1000, 6))
    yield family
    backlog = overview.outbox.backlog if overview.outbox else None
    values: dict[str, float | None] = {
        "imsync_outbox_unsent_rows": backlog.unsent if backlog else None,
        "imsync_outbox_oldest_seconds": (backlog.oldest_seconds or 0.0) if backlog else None,
        "imsync_stream_entries": overview.retention.length if overview.retention else None,
        "imsync_healthy": int(healthy),
    }
    for gauge in PLAIN_GAUGES:
        if (plain := values[gauge.name]) is not None:
            yield GaugeMetricFamily(gauge.name, gauge.meaning, value=plain)
