"""An overview as people see it: the tables and lines of `imsync status`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from imsync.cli.render import Block, Grid, Line, milliseconds, number, seconds
from imsync.im.wording import counted

if TYPE_CHECKING:
    from imsync.bus.inspection import ConsumerView
    from imsync.im.health import Problem
    from imsync.im.overview import GroupOverview, Overview

MOST_MEMBERS = 12
"""Of more consumers in a group, the rest is counted."""
RECENT_SECONDS = 600.0
"""Trouble that is longer ago than this is of no interest any more."""


def blocks(overview: Overview, data_dir: Path) -> list[Block]:
    """All of it."""
    return [
        *numbers(overview),
        *members(overview),
        *accounts(overview),
        *places(overview, data_dir),
        *problems(overview),
    ]


def numbers(overview: Overview) -> list[Block]:
    """One row per group: how it is doing."""
    if not overview.groups:
        return []
    columns = ("group", "#lag", "#lag time", "#pending", "#oldest", "#consumers", "#dead", "#p50", "#p99")
    return [Grid(columns, [_numbers(group) for group in overview.groups])]


def _numbers(group: GroupOverview) -> tuple[object, ...]:
    view, staleness = group.view, group.staleness
    return (
        view.group, number(view.lag), _known(view.lag_seconds), number(view.pending),
        seconds(view.oldest_pending_seconds), len(view.alive), number(view.dead),
        milliseconds(staleness.p50_ms if staleness else None), milliseconds(staleness.p99_ms if staleness else None),
    )  # fmt: skip


def accounts(overview: Overview) -> list[Block]:
    """One row per group: where the published events are."""
    rows = [
        (
            group.view.group, number(a.published), number(a.applied), number(a.superseded), number(a.dead),
            number(a.lost), number(a.covered), number(a.duplicates), number(a.foreign), number(a.unexplained),
        )
        for group in overview.groups
        if (a := group.accounting)
    ]  # fmt: skip
    columns = (
        "group", "#published", "#applied", "#superseded", "#dead", "#lost", "#covered", "#repeats", "#foreign",
        "#missing",
    )  # fmt: skip
    return [Grid(columns, rows, spare=("#foreign", "#covered", "#lost", "#repeats", "#dead"))] if rows else []


def members(overview: Overview) -> list[Block]:
    """One row per consumer that lives or holds something: who it is, where, and what it does."""
    rows: list[tuple[object, ...]] = []
    lines: list[Block] = []
    for group in overview.groups:
        worth = [each for each in group.view.members if each.alive or each.pending]
        rows += [_member(each, overview.at_ms) for each in worth[:MOST_MEMBERS]]
        lines += [line for each in worth[:MOST_MEMBERS] for line in _trouble(each, overview.at_ms)]
        if len(worth) > MOST_MEMBERS:
            rest = len(worth) - MOST_MEMBERS
            lines.append(Line(f"{rest:,} more consumers of {group.view.group}: imsync consumer list", "quiet"))
        if (idle := len(group.view.members) - len(worth)) > 0:
            names = "name is" if idle == 1 else "names are"
            what = f"{idle:,} dead consumer {names} left in {group.view.group}, holding nothing: imsync consumer prune"
            lines.append(Line(what, "quiet"))
    columns = ("group", "consumer", "state", "#holds", "#idle", "#events", "#up")
    return [*([Grid(columns, rows, spare=("#holds",))] if rows else []), *lines]


def _trouble(member: ConsumerView, now_ms: int) -> list[Block]:
    """What its last trouble was, when that is not long ago."""
    vitals = member.life.vitals if member.life else None
    if vitals is None or vitals.last_error is None or vitals.last_error_ms is None:
        return []
    ago = max(0.0, (now_ms - vitals.last_error_ms) / 1000)
    if ago > RECENT_SECONDS:
        return []
    failing = f"; its handler fails on {number(vitals.failing)}" if vitals.failing else ""
    what = f"{member.name}: last trouble {seconds(ago)} ago, {vitals.last_error}, {number(vitals.troubles)} so far"
    return [Line(what + failing, "quiet")]


def _member(member: ConsumerView, now_ms: int) -> tuple[object, ...]:
    life = member.life
    vitals = life.vitals if life else None
    since = life.since_ms if life else None
    return (
        member.group,
        _who(member),
        "alive" if life else "dead",
        number(member.pending),
        seconds(member.idle_ms / 1000),
        "-" if vitals is None or vitals.events is None else number(vitals.events),
        seconds(None if since is None else max(0.0, (now_ms - since) / 1000)),
    )


def _who(member: ConsumerView) -> str:
    """The name, with host and pid where the name does not tell them: one that imsync made does."""
    if member.life is None or member.life.pid is None:
        return member.name
    host, pid = member.life.host or "?", member.life.pid
    told = "".join(c if c.isalnum() else "-" for c in host)[:32]
    return member.name if member.name.startswith(f"{told}.{pid}.") else f"{member.name} ({host}, pid {pid})"


def places(overview: Overview, data_dir: Path) -> list[Block]:
    """The outbox, fan-outs under way, the stream, and which stores are not here."""
    found: list[Block] = []
    if outbox := overview.outbox:
        again = f", {number(outbox.resent)} sent again after they were lost" if outbox.resent else ""
        backlog = outbox.backlog
        found.append(Line(f"outbox: {number(backlog.unsent)} unsent, oldest {seconds(backlog.oldest_seconds)}{again}"))
    elif overview.stores.get("user"):
        found.append(Line("outbox: unknown"))
    for group in overview.groups:
        if (late := group.fan_out) and late.users:
            users = counted(late.users, "user")
            what = f"{group.view.group}: fan-out of {users} unfinished, got on {seconds(late.seconds)} ago"
            found.append(Line(what))
    if held := overview.retention:
        pinned = f", held up by group {held.pinned_by}" if held.pinned_by else ""
        found.append(Line(f"stream: {number(held.length)} entries, oldest {seconds(held.oldest_seconds)}{pinned}"))
    if overview.elsewhere:
        files = " and ".join(f"{name}.db" for name in overview.elsewhere)
        missing = _what_is_missing(overview)
        verb = "is" if len(overview.elsewhere) == 1 else "are"
        found.append(Line(f"{files} {verb} not in {data_dir}: {missing} cannot be told from here", "quiet"))
    return found


def _what_is_missing(overview: Overview) -> str:
    what = ["the outbox and the accounts"] if "user" in overview.elsewhere else []
    what += [f"the accounts and staleness of {name}" for name in overview.elsewhere if name != "user"]
    return ", ".join(what)


def problems(overview: Overview) -> list[Block]:
    """What needs somebody, and what helps; or that nothing does."""
    found: list[Block] = [block for problem in overview.problems for block in _problem(problem)]
    return found or ([Line("healthy", "good")] if overview.healthy else [])


def _problem(problem: Problem) -> list[Block]:
    return [Line(f"! {problem.what}", "bad"), Line(f"  try: {problem.remedy}")]


def _known(value: float | None) -> str:
    return "unknown" if value is None else seconds(value)
