"""What needs somebody, and what helps: each red state of a group, of the stream, of the outbox. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from imsync.bus.inspection import GroupView, RetentionView
from imsync.errors import ImsyncError, StoreMismatch
from imsync.im.accounts import Accounting, Outcomes, account
from imsync.im.outbox import OutboxBacklog
from imsync.im.relay_lock import Holder
from imsync.im.wording import counted

__all__ = ["Accounting", "Problem", "account", "judge_group", "judge_outbox", "judge_retention", "judge_store"]

STALLED_SECONDS = 30.0
"""What waits for longer than this without anybody at work on it is red."""
LATE_SECONDS = 60.0
"""What waits for longer than this is red whoever is at work on it: a consumer may beat and yet not get on."""
OVERFULL = 2
"""A stream that holds more than so many times the entries that it may, for the sake of one group, is red."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that needs somebody, and what to type.

    Args:
        kind: what is wrong, as programs may test for it.
        group: whose group it is about; None for the outbox, a store or the stream.
    """

    what: str
    remedy: str
    kind: str
    group: str | None = None


@dataclass(frozen=True, slots=True)
class Unfinished:
    """Fan-outs that are under way in a store.

    Args:
        users: of how many users.
        seconds: since the one that has waited for longest got on; None when there is none.
    """

    users: int
    seconds: float | None


def judge_group(
    view: GroupView,
    accounting: Accounting | None,
    refused: StoreMismatch | None = None,
    *,
    outcomes: Outcomes | None = None,
    fan_out: Unfinished | None = None,
    here: bool = True,
) -> tuple[Problem, ...]:
    """What is wrong with the group of a service. Pure.

    Args:
        accounting: None where it is not known, because the store or the user store is on another host.
        refused: why its store is not the one that the group has fed.
        outcomes: how its store has settled events, where the accounting is not known.
        fan_out: what its store has put off; None where it is not known.
        here: whether the service's store is on this host: its commands are run where it is.
    """
    group = view.group
    service = f"the {group} service"
    problems: list[Problem] = []

    def add(kind: str, what: str, remedy: str) -> None:
        where = "" if here or "imsync" not in remedy else f", where {group}.db is"
        problems.append(Problem(what, remedy + where, kind, group))

    rebuild, consume, replay = (
        f"imsync rebuild {group}",
        f"imsync consume {group}",
        f"imsync replay pending --group {group}",
    )
    if refused:
        add("store_mismatch", f"{service} is stopped: {refused.message}", rebuild)
    if view.beyond_end:
        add(
            "beyond_end",
            f"{service} will be given nothing: somebody moved its group behind the end of the stream",
            rebuild,
        )
    if view.lag != 0 and not view.alive and (view.lag_seconds is None or view.lag_seconds > STALLED_SECONDS):
        waiting = "entries wait" if view.lag is None else counted(view.lag, "entry waits", "entries wait")
        add("no_consumer", f"{waiting} for {service} and no consumer is alive", consume)
    waits = max(view.lag_seconds or 0.0, view.oldest_pending_seconds or 0.0)
    if view.alive and waits > LATE_SECONDS:
        alive = counted(len(view.alive), "consumer lives", "consumers live")
        add("late", f"{service} is {waits:.0f} s late although {alive}{_last_trouble(view)}",
            f"look at their messages; {replay}")  # fmt: skip
    if view.held_by_dead and (view.oldest_pending_seconds or 0.0) > STALLED_SECONDS:
        held = counted(view.held_by_dead, "entry", "entries")
        # the dead need no patience, and what they got a moment ago is younger than what replay waits for by itself
        add("held_by_dead", f"dead consumers of {service} hold {held}", f"{replay} --min-idle 0s")
    if fan_out and (fan_out.seconds or 0.0) > (LATE_SECONDS if view.alive else STALLED_SECONDS):
        what = f"{service} has not finished the fan-out of {counted(fan_out.users, 'user')}"
        if view.alive:
            alive = counted(len(view.alive), "consumer lives", "consumers live")
            add("fan_out", f"{what} although {alive}{_last_trouble(view)}", "look at their messages")
        else:
            add("fan_out", f"{what} and no consumer is alive", consume)
    if view.dead:
        letters = counted(view.dead, "dead letter", "dead letters")
        add("dead_letters", f"{service} has {letters}",
            f"imsync dead list --group {group}, then imsync replay dead --group {group}; "
            f"imsync dead purge --group {group} --all lets go of what stays")  # fmt: skip
    for problem in _of_accounts(group, accounting, outcomes):
        add(*problem)
    return tuple(problems)


def _of_accounts(
    group: str, accounting: Accounting | None, outcomes: Outcomes | None
) -> Iterator[tuple[str, str, str]]:
    """What the accounts of a group say: kind, what is wrong, what helps."""
    service, rebuild = f"the {group} service", f"imsync rebuild {group}"
    conflicts = accounting.conflicts if accounting else outcomes.conflicts if outcomes else 0
    if conflicts:
        events = counted(conflicts, "event that contradicts", "events that contradict")
        yield "conflicts", f"{service} met {events} its history", f"imsync verify, then {rebuild}"
    if accounting and accounting.lost:
        entries = counted(accounting.lost, "entry", "entries")
        yield "lost", f"{service} lost {entries}, trimmed before they were applied", rebuild
    if accounting and accounting.unexplained is not None and accounting.unexplained < 0:
        events = counted(-accounting.unexplained, "event", "events")
        what = f"{service} settled {events} more than were published: was the user store restored from a backup?"
        # a rebuild leaves alone what is ahead of the source, and the accounts open: the repair comes first
        yield "unexplained", what, f"imsync verify --repair, then {rebuild}"
    if accounting and accounting.unexplained is not None and accounting.unexplained > 0:
        events = counted(accounting.unexplained, "unexplained event", "unexplained events")
        yield "unexplained", f"{service} has {events}", f"imsync verify, then {rebuild}"


def _last_trouble(view: GroupView) -> str:
    """What the living consumers tell of their latest trouble."""
    told = [each.life.vitals for each in view.members if each.life and each.life.vitals]
    latest = max((each for each in told if each.last_error), key=lambda each: each.last_error_ms or 0, default=None)
    return f" (last trouble: {latest.last_error})" if latest else ""


def judge_retention(view: RetentionView, services: Collection[str]) -> tuple[Problem, ...]:
    """What is wrong with what the stream holds. Pure.

    Args:
        services: the groups whose consumers imsync has; any other group is somebody else's.
    """
    problems: list[Problem] = []
    if view.full:
        what = "the stream has given the last entry id that there is: nothing can be published any more"
        remedy = "let the consumers catch up, then delete the stream: they and imsync relay make it anew"
        problems.append(Problem(what, remedy, "stream_full"))
    group = view.floor_group
    if group is None or not view.pinned_beyond(OVERFULL):
        return tuple(problems)
    if group in services:
        who, remedy = f"the {group} service", f"imsync consume {group}"
    else:
        name = shlex.quote(group)  # anybody who may use the server has chosen it, and it is to be typed
        who, remedy = f"group {name}", f"start a consumer of it, or imsync group drop {name}"
    waiting = f"{(view.waiting_seconds or 0.0) / 3600:,.1f} h"
    entries = counted(view.length, "entry", "entries")
    what = f"{who} has not acknowledged an entry for {waiting}, and the stream keeps {entries}"
    return (*problems, Problem(what, remedy, "pinned", group))


def judge_outbox(
    backlog: OutboxBacklog, relay: Holder | None = None, pause: Holder | None = None, *, redis_away: bool = False
) -> tuple[Problem, ...]:
    """What is wrong with the outbox. Pure.

    Args:
        relay: who holds the relay's lock; None for nobody.
        pause: who keeps every relay from its work.
        redis_away: whether nothing can be sent at this moment.
    """
    if not is_stalled(backlog):
        return ()
    what = f"{counted(backlog.unsent, 'event waits', 'events wait')} in the outbox"
    if pause:
        what += f": relays pause for a rebuild ({pause})"
        remedy = _wake(pause, "wait for its end")
    elif relay and relay.stopped:
        what += f", and the relay that holds it is stopped ({relay})"
        remedy = _wake(relay, "")
    elif relay and not redis_away:
        what += f" although a relay is at work on it ({relay})"
        end = f"end it, kill -9 {relay.pid}" if relay.here else "end it"
        remedy = f"look at its messages; if it hangs, {end}, and run imsync relay"
    elif redis_away:
        remedy = "none is needed before Redis is back" if relay else "imsync relay, when Redis is back"
    else:
        remedy = "imsync relay"
    return (Problem(what, remedy, "outbox"),)


def is_stalled(backlog: OutboxBacklog) -> bool:
    """Whether the outbox waits for so long that somebody must look."""
    return (backlog.oldest_seconds or 0.0) > STALLED_SECONDS


def judge_store(name: str, error: ImsyncError) -> Problem:
    """A store that cannot be used. `name`: `user`, or the group of the service."""
    hint = error.hint or "check the file and its folder"
    return Problem(error.message, hint, "store_unusable", None if name == "user" else name)


def _wake(holder: Holder, otherwise: str) -> str:
    if not holder.stopped:
        return otherwise
    return f"kill -CONT {holder.pid}; or kill -9 {holder.pid}, and another takes over: imsync relay"
