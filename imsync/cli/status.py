"""`imsync status`: does it work, and if not, why, and what helps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from imsync.cli.run import Run, command

if TYPE_CHECKING:
    from imsync.bus.inspection import RetentionView
    from imsync.im.health import GroupHealth
    from imsync.im.user_store import UserStore


def register(app: typer.Typer) -> None:
    """Adds the command."""
    command(app, "status")(status)


def status(run: Run) -> None:
    """Show how every group is doing, and what needs attention.

    That is its lag, pending entries, living consumers, dead letters and the accounting of its events; what waits in
    the outbox; and what the stream holds. Exits with 3 when something does.
    """
    from dataclasses import asdict

    from imsync.cli.render import number, safe, seconds
    from imsync.im.health import judge_outbox, judge_retention
    from imsync.im.workspace import PROJECTIONS

    users = run.workspace.user_store()
    groups = [_look(run, users, service) for service in PROJECTIONS]
    backlog, resent = users.backlog(), users.resent()
    users.close()
    held = look_at_the_stream(run)
    problems = [
        *judge_outbox(backlog),
        *(problem for group in groups for problem in group.problems),
        *judge_retention(held, PROJECTIONS),
    ]
    if run.as_json:
        run.out.row(
            {
                "groups": [
                    {
                        "group": g.view.group,
                        "stream": g.view.stream,
                        "lag": g.view.lag,
                        "lag_seconds": g.view.lag_seconds,
                        "pending": g.view.pending,
                        "oldest_pending_seconds": g.view.oldest_pending_seconds,
                        "consumers": len(g.view.alive),
                        "dead": g.view.dead,
                        "staleness": asdict(g.staleness),
                        "accounting": asdict(g.accounting),
                    }
                    for g in groups
                ],
                "outbox": {"unsent": backlog.unsent, "oldest_seconds": backlog.oldest_seconds, "resent": resent},
                "retention": {
                    "length": held.length,
                    "first_id": held.first_id,
                    "oldest_seconds": held.oldest_seconds,
                    "floor": held.floor,
                    "waiting_seconds": held.waiting_seconds,
                    "pinned_by": held.pinned_by,
                    "other_groups": [name for name in held.groups if name not in PROJECTIONS],
                    **asdict(held.retention),
                },
                "problems": [asdict(problem) for problem in problems],
                "healthy": not problems,
            }
        )
    else:
        run.out.table(
            ("group", "#lag", "#lag time", "#pending", "#oldest", "#consumers", "#dead", "#p50", "#p99"),
            [
                (
                    g.view.group, number(g.view.lag), seconds(g.view.lag_seconds), number(g.view.pending),
                    seconds(g.view.oldest_pending_seconds), len(g.view.alive), g.view.dead,
                    seconds(g.staleness.p50_ms and g.staleness.p50_ms / 1000),
                    seconds(g.staleness.p99_ms and g.staleness.p99_ms / 1000),
                )
                for g in groups
            ],
        )  # fmt: skip
        run.out.table(
            (
                "group", "#published", "#applied", "#superseded", "#dead", "#lost", "#covered", "#repeats", "#foreign",
                "#missing",
            ),
            [
                (
                    g.view.group, number(a.published), number(a.applied), number(a.superseded), number(a.dead),
                    number(a.lost), number(a.covered), number(a.duplicates), number(a.foreign), number(a.unexplained),
                )
                for g in groups
                for a in (g.accounting,)
            ],
        )  # fmt: skip
        again = f", {number(resent)} sent again after they were lost" if resent else ""
        print(f"outbox: {number(backlog.unsent)} unsent, oldest {seconds(backlog.oldest_seconds)}{again}")
        pinned = f", held up by group {held.pinned_by}" if held.pinned_by else ""
        print(safe(f"stream: {number(held.length)} entries, oldest {seconds(held.oldest_seconds)}{pinned}"))
        for problem in problems:
            print(safe(f"! {problem.what}; try: {problem.remedy}"))
        if not problems:
            print("healthy")
    if problems:
        raise typer.Exit(3)


def look_at_the_stream(run: Run) -> RetentionView:
    """What the stream holds, with names of groups that may be shown."""
    from dataclasses import replace

    from imsync.bus.inspection import view_retention
    from imsync.bus.retention import Retention
    from imsync.cli.names import readable
    from imsync.im.events import DESTINATION

    bounds = run.settings.retention
    retention = Retention(bounds.hours, bounds.entries, bounds.min_hours)
    view = view_retention(run.bus, DESTINATION, retention)
    shown = None if view.floor_group is None else readable(view.floor_group)
    return replace(view, floor_group=shown, groups=tuple(map(readable, view.groups)))


def _look(run: Run, users: UserStore, service: str) -> GroupHealth:
    from imsync.bus.binding import Binding
    from imsync.bus.inspection import view_group
    from imsync.im.events import DESTINATION
    from imsync.im.health import GroupHealth, account, judge_group

    projection = run.workspace.projection(service)
    # What was published by now is undelivered, pending or settled when the rest is looked at, in this order; what
    # is settled by then was published, or waits to be noted, when the outbox is looked at last.
    published = users.published()
    view = view_group(run.bus, DESTINATION, service)
    tallies = projection.tallies()
    unsent = users.backlog().unsent
    at_most = unsent + users.published()
    staleness = projection.staleness()
    stream, keys = run.bus.stream(DESTINATION), run.bus.keys(DESTINATION)
    refused = Binding(run.bus.client, stream, keys, service, projection).mismatch()
    projection.close()
    accounting = account(users.source, published, at_most, tallies, view.pending, view.lag)
    return GroupHealth(view, accounting, staleness, judge_group(view, accounting, refused))
