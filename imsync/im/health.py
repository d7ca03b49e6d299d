"""Does it work, and if not, why, and what helps: the numbers of every group, the accounting, and a verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from imsync.bus.inspection import GroupView
from imsync.bus.outcome import Effect
from imsync.im.user_store import OutboxBacklog
from imsync.store.settlement import CONFLICT, DEAD, LOST, Percentiles

STALLED_SECONDS = 30.0
"""What waits for longer than this without anybody at work on it is red."""
LATE_SECONDS = 60.0
"""What waits for longer than this is red whoever is at work on it: a consumer may beat and yet not get on."""


@dataclass(frozen=True, slots=True)
class Accounting:
    """Where the published events of our user store are. At rest published = applied + superseded + dead + lost; in
    flight the rest is bounded by pending + undelivered.

    Args:
        undelivered: entries not given to the group yet; None when unknown.
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

    lost = sum(n for (_, outcome), n in tallies.items() if outcome == LOST)
    done = ours(str(Effect.APPLIED)) + ours(str(Effect.SUPERSEDED)) + ours(DEAD)
    missing = published - done
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


def judge_group(view: GroupView, accounting: Accounting) -> tuple[Problem, ...]:
    """What is wrong with a group. Pure."""
    group = view.group
    problems: list[Problem] = []
    if view.lag != 0 and not view.alive and (view.lag_seconds is None or view.lag_seconds > STALLED_SECONDS):
        entries = "entries" if view.lag is None else f"{view.lag:,} entries"
        problems.append(
            Problem(f"{entries} wait for group {group} and no consumer is alive", f"imsync consume {group}")
        )
    waits = max(view.lag_seconds or 0.0, view.oldest_pending_seconds or 0.0)
    if view.alive and waits > LATE_SECONDS:
        problems.append(
            Problem(
                f"group {group} is {waits:.0f} s late although {len(view.alive)} consumers live",
                f"look at their messages; imsync replay pending --group {group}",
            )
        )
    if view.held_by_dead and (view.oldest_pending_seconds or 0.0) > STALLED_SECONDS:
        problems.append(
            Problem(
                f"{view.held_by_dead:,} entries of group {group} are held by dead consumers",
                f"imsync replay pending --group {group}",
            )
        )
    if view.dead:
        problems.append(Problem(f"group {group} has {view.dead:,} dead letters", f"imsync dead list --group {group}"))
    if accounting.lost:
        problems.append(Problem(f"group {group} lost {accounting.lost} trimmed entries", "imsync verify"))
    if accounting.conflicts:
        problems.append(
            Problem(
                f"group {group} met {accounting.conflicts} events that contradict its history",
                "imsync verify",
            )
        )
    if accounting.unexplained:
        problems.append(Problem(f"{accounting.unexplained} events of group {group} are unexplained", "imsync verify"))
    return tuple(problems)


def judge_outbox(backlog: OutboxBacklog) -> tuple[Problem, ...]:
    """What is wrong with the outbox. Pure."""
    if (backlog.oldest_seconds or 0.0) <= STALLED_SECONDS:
        return ()
    return (Problem(f"{backlog.unsent} events wait in the outbox", "imsync relay"),)
