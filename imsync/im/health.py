"""Does it work, and if not, why, and what helps: the numbers of every group, the accounting, and a verdict."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from imsync.bus.inspection import GroupView, RetentionView
from imsync.bus.outcome import Effect
from imsync.errors import StoreMismatch
from imsync.im.user_store import OutboxBacklog
from imsync.store.settlement import CONFLICT, COVERED, DEAD, LOST, Percentiles

STALLED_SECONDS = 30.0
"""What waits for longer than this without anybody at work on it is red."""
LATE_SECONDS = 60.0
"""What waits for longer than this is red whoever is at work on it: a consumer may beat and yet not get on."""
OVERFULL = 2
"""A stream that holds more than so many times the entries that it may, for the sake of one group, is red."""


@dataclass(frozen=True, slots=True)
class Accounting:
    """Where the published events of our user store are. At rest published = applied + superseded + dead + lost +
    covered; in flight the rest is bounded by pending + undelivered.

    Args:
        undelivered: entries not given to the group yet; None when unknown.
        lost: trimmed before they were applied, and not settled by a later entry.
        covered: events that this store never settled, because the snapshot of its last rebuild had their effect; less
            those that it had settled twice by then.
        duplicates: repeats that changed nothing.
        foreign: settled events that our outbox did not write.
        conflicts: events that contradict what was applied: a restored user store.
        unexplained: what the numbers do not explain: 0 when the accounting closes.
    """

    published: int
    applied: int
    superseded: int
    dead: int
    pending: int
    undelivered: int | None
    lost: int
    covered: int
    duplicates: int
    foreign: int
    conflicts: int
    unexplained: int


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that needs somebody, and what to type."""

    what: str
    remedy: str


def account(
    source: str,
    published: int,
    at_most: int,
    tallies: Mapping[tuple[str, str], int],
    pending: int,
    undelivered: int | None,
) -> Accounting:
    """Closes the accounts of one group. Pure.

    Args:
        source: the CloudEvents source of our user store; events of other sources are foreign.
        published: events that our outbox had noted as sent before the rest was looked at.
        at_most: how many may be in the stream: those noted as sent after the rest was looked at, and those not
            noted yet.
        tallies: the projection's counts by (source, outcome).
    """
    settled = {str(Effect.APPLIED), str(Effect.SUPERSEDED), DEAD}

    def ours(outcome: str) -> int:
        return tallies.get((source, outcome), 0)

    done = ours(str(Effect.APPLIED)) + ours(str(Effect.SUPERSEDED)) + ours(DEAD) + ours(COVERED)
    missing = published - done
    # an entry that was lost says not whose it was: what is not missing was published again, and settled then
    lost = min(max(0, missing), sum(n for (_, outcome), n in tallies.items() if outcome == LOST))
    on_the_way = pending + lost + (undelivered if undelivered is not None else max(0, missing))
    unexplained = max(0, missing - on_the_way) or min(0, at_most - done)
    return Accounting(
        published=published,
        applied=ours(str(Effect.APPLIED)),
        superseded=ours(str(Effect.SUPERSEDED)),
        dead=ours(DEAD),
        pending=pending,
        undelivered=undelivered,
        lost=lost,
        covered=ours(COVERED),
        duplicates=sum(n for (_, outcome), n in tallies.items() if outcome == str(Effect.DUPLICATE)),
        foreign=sum(n for (origin, outcome), n in tallies.items() if origin != source and outcome in settled),
        conflicts=sum(n for (_, outcome), n in tallies.items() if outcome == CONFLICT),
        unexplained=unexplained,
    )


@dataclass(frozen=True, slots=True)
class GroupHealth:
    """One group: what the server knows, what its projection knows, and what is wrong."""

    view: GroupView
    accounting: Accounting
    staleness: Percentiles
    problems: tuple[Problem, ...]


def judge_group(view: GroupView, accounting: Accounting, refused: StoreMismatch | None = None) -> tuple[Problem, ...]:
    """What is wrong with the group of a service. Pure.

    Args:
        refused: why its store is not the one that the group has fed.
    """
    group = view.group
    service = f"the {group} service"
    problems: list[Problem] = []
    if refused:
        problems.append(Problem(f"{service} is stopped: {refused.message}", f"imsync rebuild {group}"))
    if view.beyond_end:
        what = f"{service} will be given nothing: somebody moved its group behind the end of the stream"
        problems.append(Problem(what, f"imsync rebuild {group}"))
    if view.lag != 0 and not view.alive and (view.lag_seconds is None or view.lag_seconds > STALLED_SECONDS):
        waiting = "entries wait" if view.lag is None else _count(view.lag, "entry waits", "entries wait")
        problems.append(Problem(f"{waiting} for {service} and no consumer is alive", f"imsync consume {group}"))
    waits = max(view.lag_seconds or 0.0, view.oldest_pending_seconds or 0.0)
    if view.alive and waits > LATE_SECONDS:
        alive = _count(len(view.alive), "consumer lives", "consumers live")
        problems.append(
            Problem(
                f"{service} is {waits:.0f} s late although {alive}",
                f"look at their messages; imsync replay pending --group {group}",
            )
        )
    if view.held_by_dead and (view.oldest_pending_seconds or 0.0) > STALLED_SECONDS:
        held = _count(view.held_by_dead, "entry", "entries")
        problems.append(Problem(f"dead consumers of {service} hold {held}", f"imsync replay pending --group {group}"))
    if view.dead:
        letters = _count(view.dead, "dead letter", "dead letters")
        problems.append(Problem(f"{service} has {letters}", f"imsync dead list --group {group}"))
    if accounting.lost:
        entries = _count(accounting.lost, "entry", "entries")
        problems.append(
            Problem(f"{service} lost {entries}, trimmed before they were applied", f"imsync rebuild {group}")
        )
    if accounting.conflicts:
        events = _count(accounting.conflicts, "event that contradicts", "events that contradict")
        what = f"{service} met {events} its history"
        problems.append(Problem(what, f"imsync verify, then imsync rebuild {group}"))
    if accounting.unexplained < 0:
        events = _count(-accounting.unexplained, "event", "events")
        what = f"{service} settled {events} more than were published: was the user store restored from a backup?"
        problems.append(Problem(what, f"imsync verify, then imsync rebuild {group}"))
    if accounting.unexplained > 0:
        events = _count(accounting.unexplained, "unexplained event", "unexplained events")
        problems.append(Problem(f"{service} has {events}", f"imsync verify, then imsync rebuild {group}"))
    return tuple(problems)


def judge_retention(view: RetentionView, services: Collection[str]) -> tuple[Problem, ...]:
    """What is wrong with what the stream holds. Pure.

    Args:
        services: the groups whose consumers imsync has; any other group is somebody else's.
    """
    group = view.floor_group
    if group is None or not view.pinned_beyond(OVERFULL):
        return ()
    if group in services:
        who, remedy = f"the {group} service", f"imsync consume {group}"
    else:
        name = shlex.quote(group)  # anybody who may use the server has chosen it, and it is to be typed
        who, remedy = f"group {name}", f"start a consumer of it, or imsync group drop {name}"
    waiting = f"{(view.waiting_seconds or 0.0) / 3600:,.1f} h"
    entries = _count(view.length, "entry", "entries")
    return (Problem(f"{who} has not acknowledged an entry for {waiting}, and the stream keeps {entries}", remedy),)


def judge_outbox(backlog: OutboxBacklog) -> tuple[Problem, ...]:
    """What is wrong with the outbox. Pure."""
    if (backlog.oldest_seconds or 0.0) <= STALLED_SECONDS:
        return ()
    events = _count(backlog.unsent, "event waits", "events wait")
    return (Problem(f"{events} in the outbox", "imsync relay"),)


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"
