"""`imsync trace USER`: one user's way from the edit to every copy, as a picture."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated

import typer

from imsync.cli.run import Run, command

if TYPE_CHECKING:
    from imsync.im.trace import ServiceTrace, Trace, TracedCopies, TracedEvent
    from imsync.store.projection import Projection

EVENTS_SHOWN = 5
LETTERS_SHOWN = 5
BAR = 10
ASCII = str.maketrans(
    {"│": "|", "├": "+", "└": "+", "─": "-", "▶": ">", "▼": "v", "█": "#", "░": ".", "✓": "=", "✗": "!"}
)


def register(app: typer.Typer) -> None:
    """Adds the command."""
    command(app, "trace")(trace)


def trace(run: Run, user: Annotated[int, typer.Argument(help="The user's id.", metavar="USER")]) -> None:
    """Follow one user from the edit to every copy.

    Shows the profile, its events in the outbox and in the stream, where the newest one is in each service, dead letters
    about the user, and which version its rows hold; then what is wrong, if anything is, and what to type. Exits with 3
    when something is; with 4 when Redis is away, and with 5 when a store is, after showing what is known without it.
    """
    from imsync.cli.selection import check_user
    from imsync.im.trace import Standing
    from imsync.im.trace import trace as follow

    check_user(user)
    users = run.workspace.user_store()
    now_ms = users.clock_ms()
    with ExitStack() as closing:
        closing.callback(users.close)
        projections = _projections(run, closing)
        found = follow(users, projections, run.bus, user)
    if run.as_json:
        run.out.row(_described(found, now_ms))
    else:
        for line in _picture(found, now_ms):
            print(line if _speaks_utf8() else line.translate(ASCII))
    if found.redis_error:
        raise typer.Exit(4)
    if any(service.copies is None for service in found.services):
        raise typer.Exit(5)
    if found.standing is Standing.WRONG:
        raise typer.Exit(3)


def _projections(run: Run, closing: ExitStack) -> dict[str, Projection | None]:
    """The stores of the services; None, with a message, for one that cannot be read here."""
    from imsync.errors import StoreUnusable
    from imsync.im.workspace import PROJECTIONS

    found: dict[str, Projection | None] = {}
    for name in PROJECTIONS:
        try:
            store = run.workspace.projection(name)
        except StoreUnusable as error:
            run.out.note(f"{error.message} ({error.hint})")
            found[name] = None
        else:
            closing.callback(store.close)
            found[name] = store
    return found


def _speaks_utf8() -> bool:
    return "utf" in (sys.stdout.encoding or "").lower()


# ── for programs ─────────────────────────────────────────────────────────────────────────────────────────


def _described(found: Trace, now_ms: int) -> dict[str, object]:
    from imsync.bus.clock import seconds_since, timestamp

    profile = found.profile
    return {
        "user": profile.id,
        "user_name": profile.user_name,
        "nick_name": profile.nick_name,
        "version": profile.version,
        "deleted": bool(profile.deleted),
        "edited_at": timestamp(found.edited_ms),
        "edited_seconds": seconds_since(found.edited_ms, now_ms),
        "redis_error": found.redis_error.message if found.redis_error else None,
        "events": [
            {
                "version": each.event.version,
                "event_id": each.event_id,
                "sent": each.event.entry_id is not None,
                "entry_id": each.event.entry_id,
                "in_stream": each.in_stream,
                "created_at": timestamp(each.event.created_ms),
                "age_seconds": seconds_since(each.event.created_ms, now_ms),
            }
            for each in found.events
        ],
        "groups": [_described_service(each) for each in found.services],
        "verdict": str(found.standing),
    }


def _described_service(service: ServiceTrace) -> dict[str, object]:
    from imsync.cli.names import readable

    holder, copies, letters = service.holder, service.copies, service.letters
    return {
        "group": service.name,
        "newest": str(service.stage),
        "consumer": readable(holder.consumer) if holder else None,
        "consumer_alive": holder.alive if holder else None,
        "idle_seconds": holder.idle_ms / 1000 if holder else None,
        "deliveries": holder.deliveries if holder else None,
        "consumers": service.alive,
        "dead_letters": None
        if letters is None
        else [
            {
                "id": each.id,
                "source_id": each.source_id,
                "reason": each.reason,
                "version": each.version,
                "superseded": each.superseded,
            }
            for each in letters
        ],
        "version": copies.version if copies else None,
        "deleted": copies.deleted if copies else None,
        "rows": copies.rows if copies else None,
        "fan_out": {"visited": copies.visited, "rows": copies.rows} if copies and copies.visited is not None else None,
        "overrides": copies.overrides if copies else None,
        "rows_at": [{"version": each.version, "rows": each.rows} for each in copies.at] if copies else [],
        "verdict": str(service.standing),
        "what": service.what,
        "remedy": service.remedy,
    }


# ── for people ───────────────────────────────────────────────────────────────────────────────────────────


def _picture(found: Trace, now_ms: int) -> Iterator[str]:
    from imsync.bus.clock import seconds_since
    from imsync.cli.lines import fold, shorten
    from imsync.cli.render import seconds

    profile = found.profile
    name = f"  {shorten(profile.nick_name, 24)}" if profile.nick_name else ""
    edited = seconds(seconds_since(found.edited_ms, now_ms))
    deleted = ", deleted" if profile.deleted else ""
    yield f"user {profile.id}{name}"
    yield f"  │ version {profile.version}{deleted}, written {edited} ago"
    yield "  │"
    yield "outbox"
    for number, each in enumerate(found.events[:EVENTS_SHOWN]):
        age = seconds(seconds_since(each.event.created_ms, now_ms))
        yield from fold(f"v{each.event.version}  {_sent(each)}  {age} ago", "  │ ")
        if number == 0:
            yield f"  │     event {each.event_id}"
    if len(found.events) > EVENTS_SHOWN:
        yield f"  │ … and {len(found.events) - EVENTS_SHOWN} more"
    if not found.events:
        yield "  │ remembers no event of this user"
    yield "  ▼"
    yield "stream"
    yield from fold(_in_stream(found), "  │ ")
    for index, service in enumerate(found.services):
        last = index == len(found.services) - 1
        yield "  │"
        yield f"  {'└' if last else '├'}─▶ {service.name}"
        for text in _service_lines(service, profile.version):
            yield from fold(text, f"  {' ' if last else '│'}     ")
    yield ""
    yield from _verdict(found)


def _sent(each: TracedEvent) -> str:
    return f"sent {each.event.entry_id}" if each.event.entry_id else "waiting to be sent"


def _in_stream(found: Trace) -> str:
    if found.redis_error:
        return f"unknown: {found.redis_error.message}"
    sent = [each for each in found.events if each.event.entry_id]
    if not sent:
        return "nothing of this user is known to be in it"
    newest, older = sent[0], sent[1:]
    first = f"v{newest.event.version} is {'there' if newest.in_stream else 'not there any more'}"
    if not older:
        return first
    there = sum(bool(each.in_stream) for each in older)
    return f"{first}; of {len(older)} older {'event' if len(older) == 1 else 'events'} {there}"


def _service_lines(service: ServiceTrace, version: int) -> Iterator[str]:
    from imsync.cli.letters import count_letters
    from imsync.cli.render import seconds
    from imsync.im.wording import times

    words = {
        "none": "no event to look for",
        "waiting": "not published yet",
        "undelivered": "not given to this group yet",
        "applied": "the newest event is applied",
        "superseded": "the newest event is superseded",
        "dead": "the newest event is dead",
        "covered": "the newest event is covered by a rebuild",
        "lost": "the newest event is lost",
        "unsettled": "the newest event was given out, and nobody remembers what became of it",
        "unknown": "nobody can tell where the newest event is",
    }
    if holder := service.holder:
        alive = "alive" if holder.alive else "dead"
        if service.stage == "pending":
            yield (
                f"the newest event is pending with {_shown(holder.consumer)} ({alive}), "
                f"idle {seconds(holder.idle_ms / 1000)}, delivered {times(holder.deliveries)}"
            )
        else:
            yield f"{words[service.stage]}, and not acknowledged by {_shown(holder.consumer)} ({alive}) yet"
    else:
        yield words[service.stage]
    if service.copies is None:
        yield "its store is not here"
    else:
        yield from _copies_lines(service.copies, version)
    for letter in (service.letters or ())[:LETTERS_SHOWN]:
        of_version = "" if letter.version is None else f" v{letter.version}"
        drop = ", safe to drop" if letter.superseded else ""
        yield f"dead letter {letter.id}{of_version}: {letter.reason}{drop}"
    more = len(service.letters or ()) - LETTERS_SHOWN
    if more > 0:
        yield f"and {count_letters(more)} more"


def _shown(consumer: str) -> str:
    from imsync.cli.lines import shorten
    from imsync.cli.names import readable

    return shorten(readable(consumer), 40)


def _copies_lines(copies: TracedCopies, newest: int) -> Iterator[str]:
    state = f"version {copies.version}" if copies.version else "has never heard of this user"
    yield f"{state}{', deleted' if copies.deleted else ''}"
    if not copies.rows:
        yield "no rows copy this user"
        return
    first, *rest = copies.at
    share = next((each.rows for each in copies.at if each.version == newest), 0) / copies.rows
    full = max(int(share * BAR), int(share > 0))  # a full bar only when all of them are
    at = [f"{first.rows:,} of {copies.rows:,} rows at {_version(first.version)}"]
    at += [f"{each.rows:,} at {_version(each.version)}" for each in rest]
    yield f"{'█' * full}{'░' * (BAR - full)} {', '.join(at)}"
    if copies.visited is not None:
        yield f"fan-out under way: it has come to {copies.visited:,} of {copies.rows:,} rows"
    if copies.overrides:
        rows = (
            "1 row has a name of its own" if copies.overrides == 1 else f"{copies.overrides:,} rows have their own name"
        )
        yield f"{rows}, which no event touches"


def _version(version: int | None) -> str:
    return "other content" if version is None else f"v{version}"


def _verdict(found: Trace) -> Iterator[str]:
    from imsync.cli.lines import fold
    from imsync.im.trace import Standing

    for service in found.services:
        if service.what:
            mark = {Standing.IN_STEP: "✓", Standing.WRONG: "✗"}.get(service.standing, "…")
            yield from fold(f"{mark} {service.what}")
            if service.remedy:
                yield from fold(f"try: {service.remedy}", "  ")
    words = {
        Standing.IN_STEP: "in step: every copy is as the profile says",
        Standing.ON_ITS_WAY: "on its way: nothing is wrong, and the copies will follow",
        Standing.WRONG: "wrong: it will not get right by itself",
        Standing.UNKNOWN: "unknown: not all could be asked",
    }
    yield words[found.standing]
