"""What every command that watches has in common: the look at everything, and how it is told to programs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imsync.bus.inspection import ConsumerView, RetentionView
    from imsync.cli.run import Run
    from imsync.errors import ImsyncError
    from imsync.im.overview import GroupOverview, Overview
    from imsync.im.rates import Rates


def look(run: Run) -> Overview:
    """Looks at everything. Names from the server are as they may be shown.

    Raises:
        StoreUnusable: no URL is configured, and the data folder has no stores.
        ImsyncError: the embedded server does not start. (A Redis that is away is part of the overview.)
    """
    run.expect_stores()
    return look_again(run)


def look_again(run: Run) -> Overview:
    """As `look`, when there were stores at first."""
    from imsync.cli.names import readable
    from imsync.im.overview import look

    # the embedded server belongs to the data folder, and so do all stores; with a URL each service may have a host
    return look(run.bus, run.workspace, _bounds(run), whole=not run.settings.url, shown=readable)


def look_at_the_stream(run: Run) -> RetentionView:
    """What the stream holds, with names of groups that may be shown."""
    from imsync.cli.names import readable
    from imsync.im.overview import view_stream

    return view_stream(run.bus, _bounds(run), readable)


def _bounds(run: Run) -> Any:
    from imsync.bus.retention import Retention

    bounds = run.settings.retention
    return Retention(bounds.hours, bounds.entries, bounds.min_hours)


def described(overview: Overview) -> dict[str, Any]:
    """An overview as `status --json` tells it."""
    from dataclasses import asdict

    from imsync.bus.clock import timestamp

    backlog = overview.outbox.backlog if overview.outbox else None
    return {
        "time": timestamp(overview.at_ms),
        "groups": [_group(group) for group in overview.groups],
        "outbox": overview.outbox
        and backlog
        and {
            "unsent": backlog.unsent,
            "oldest_seconds": backlog.oldest_seconds,
            "resent": overview.outbox.resent,
        },
        "retention": overview.retention and _retention(overview.retention),
        "elsewhere": list(overview.elsewhere),
        "problems": [asdict(problem) for problem in overview.problems],
        "healthy": overview.healthy,
    }


def _group(group: GroupOverview) -> dict[str, Any]:
    from dataclasses import asdict

    view = group.view
    return {
        "group": view.group,
        "stream": view.stream,
        "lag": view.lag,
        "lag_seconds": view.lag_seconds,
        "pending": view.pending,
        "oldest_pending_seconds": view.oldest_pending_seconds,
        "consumers": len(view.alive),
        "members": [_member(each) for each in view.members],
        "dead": view.dead,
        "store": str(group.store),
        "fan_out": group.fan_out and asdict(group.fan_out),
        "staleness": group.staleness and asdict(group.staleness),
        "outcomes": group.outcomes and asdict(group.outcomes),
        "accounting": group.accounting and asdict(group.accounting),
    }


def _member(member: ConsumerView) -> dict[str, Any]:
    from imsync.bus.clock import timestamp

    life = member.life
    vitals = life.vitals if life else None
    return {
        "consumer": member.name,
        "alive": member.alive,
        "host": life.host if life else None,
        "pid": life.pid if life else None,
        "since": timestamp(life.since_ms) if life else None,
        "pending": member.pending,
        "idle_seconds": member.idle_ms / 1000,
        "events": vitals.events if vitals else None,
        "failing": vitals.failing if vitals else None,
        "troubles": vitals.troubles if vitals else None,
        "last_batch": timestamp(vitals.last_batch_ms) if vitals else None,
        "last_error": vitals.last_error if vitals else None,
        "last_error_at": timestamp(vitals.last_error_ms) if vitals else None,
    }


def _retention(held: RetentionView) -> dict[str, Any]:
    from dataclasses import asdict

    from imsync.im.workspace import PROJECTIONS

    return {
        "length": held.length,
        "first_id": held.first_id,
        "oldest_seconds": held.oldest_seconds,
        "floor": held.floor,
        "waiting_seconds": held.waiting_seconds,
        "pinned_by": held.pinned_by,
        "other_groups": [name for name in held.groups if name not in PROJECTIONS],
        **asdict(held.retention),
    }


def described_rates(rates: Rates) -> dict[str, Any]:
    """Rates as `status --watch --json` tells them."""
    return {
        "seconds": rates.seconds,
        "edits_per_second": rates.edits_per_second,
        "groups": [
            {
                "group": name,
                "events_per_second": each.events_per_second,
                "p50_ms": each.staleness.p50_ms,
                "p99_ms": each.staleness.p99_ms,
            }
            for name, each in rates.groups.items()
        ],
    }


def described_error(error: ImsyncError) -> dict[str, str]:
    """An error as every command tells it."""
    return {"kind": error.kind, "message": " ".join(error.message.split()), "hint": " ".join(error.hint.split())}


def trouble(overview: Overview) -> ImsyncError | None:
    """What keeps something from being known: Redis first, then the stores; None when nothing does."""
    return overview.redis or next(iter(overview.stores.values()), None)
