"""`imsync dead list|show|purge`: the dead letters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from imsync.cli.letters import Reasons, Since, count_letters
from imsync.cli.run import Run, command
from imsync.cli.selection import Group, Ids, UserId

if TYPE_CHECKING:
    from imsync.im.letters import LetterFilter, ReadLetter

PAGE = 1000

Limit = Annotated[int, typer.Option(min=1, max=1_000_000, help="At most so many of each, the oldest first.")]


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    dead = typer.Typer(help="Look at events that could not be applied, and let go of them.", no_args_is_help=True)
    command(dead, "list")(list_)
    command(dead, "show")(show)
    command(dead, "purge")(purge)
    app.add_typer(dead, name="dead")


def list_(
    run: Run,
    group: Group = None,
    id: Ids = None,
    reason: Reasons = None,
    user: UserId = None,
    since: Since = None,
    limit: Limit = 100,
) -> None:
    """List the dead letters with their reasons.

    Safe to drop is one whose event cannot change anything any more, because its version or a newer one is applied.
    With --json one object per line, with the raw bytes of the original entry as text.
    """
    from imsync.cli.letters import chosen, described, in_lines
    from imsync.cli.lines import say
    from imsync.cli.selection import services
    from imsync.im.events import DESTINATION

    wanted_services = services(group)
    wanted = chosen(run, id, reason, user, since)
    listed = droppable = 0
    cut = False
    for service in wanted_services:
        now_ms = run.bus.dead_letters(DESTINATION, service).server_time_ms()
        found = 0
        for read in _letters(run, service, wanted):
            if found == limit:
                cut = True
                break
            found += 1
            droppable += bool(read.about.superseded)
            if run.as_json:
                run.out.row(described(service, read, now_ms) | {"raw": _as_text(read)})
            else:
                for line in in_lines(service, read, now_ms):
                    print(line)
        listed += found
    if run.as_json:
        return
    if not listed:
        print("no dead letters" if wanted.is_everything else "no dead letters match")
        return
    more = f" (there are more: --limit {limit} of each)" if cut else ""
    drop = f"; {droppable:,} safe to drop: imsync dead purge --superseded" if droppable else ""
    say(f"{count_letters(listed)}{more}{drop}")


def show(
    run: Run,
    id: Annotated[str, typer.Argument(help="The letter's own id, or that of its entry in the stream.")],
    group: Group = None,
) -> None:
    """Show a dead letter whole: why and when it died, what it says, and what redriving it would do.

    Letters of both services are shown when both gave up the same entry. With --json one object per letter and line.
    """
    from base64 import b64encode

    from imsync.cli.letters import described
    from imsync.cli.selection import check_ids, services
    from imsync.errors import UsageError
    from imsync.im.events import DESTINATION
    from imsync.im.letters import LetterFilter

    wanted_services = services(group)
    wanted = LetterFilter(ids=frozenset(check_ids([id])))
    run.expect_stores()
    shown = 0
    for service in wanted_services:
        now_ms = run.bus.dead_letters(DESTINATION, service).server_time_ms()
        for read in _letters(run, service, wanted):
            if run.as_json:
                prediction = read.about.prediction
                run.out.row(
                    described(service, read, now_ms)
                    | {
                        "predicted": str(prediction.outcome) if prediction else None,
                        "predicted_reason": (prediction.reason or None) if prediction else None,
                        "applied_version": read.about.applied_version,
                        "event": _event(read),
                        "raw": _as_text(read),
                        "raw_base64": {
                            name.decode(errors="replace"): b64encode(value).decode()
                            for name, value in read.letter.raw.items()
                        },
                    }
                )
            else:
                if shown:
                    print()
                for line in _whole(service, read, now_ms):
                    print(line)
            shown += 1
    if not shown:
        raise UsageError(f"no dead letter {id[:40]!a}", "imsync dead list shows their ids")


def purge(
    run: Run,
    group: Group = None,
    id: Ids = None,
    reason: Reasons = None,
    user: UserId = None,
    since: Since = None,
    superseded: Annotated[
        bool, typer.Option("--superseded", help="Only those that are safe to drop: see `imsync dead list`.")
    ] = False,
    all: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and change nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete dead letters for good.

    Only the letters go. In the accounts their events stay settled as dead, and a copy that misses one stays as it is:
    `imsync verify` names it. Say which with at least one of the options, or --all.
    """
    from imsync.cli.confirm import confirm
    from imsync.cli.letters import chosen
    from imsync.cli.selection import services
    from imsync.errors import UsageError
    from imsync.im.events import DESTINATION

    wanted_services = services(group)
    wanted = chosen(run, id, reason, user, since)
    if wanted.is_everything and not superseded and not all:
        raise UsageError("say which letters to delete", "--superseded, --id, --reason, --user, --since, or --all")
    planned: list[_Planned] = []
    for service in wanted_services:
        for read in _letters(run, service, wanted):
            if not superseded or read.about.superseded:
                planned.append(_Planned.of(service, read))
    if not run.as_json:
        _print_plan(run, planned)
    purged = 0
    if planned and not dry_run:
        confirm(run, f"delete {count_letters(len(planned))} for good?", yes=yes)
        for service in wanted_services:
            ids = [each.id for each in planned if each.group == service]
            for start in range(0, len(ids), PAGE):
                purged += run.bus.dead_letters(DESTINATION, service).delete(ids[start : start + PAGE])
    data = {"planned": len(planned), "purged": purged, "dry_run": dry_run}
    if run.as_json:
        run.out.row(data | {"entries": [asdict(each) for each in planned]})
    elif not planned:
        print("no dead letters match" if not wanted.is_everything or superseded else "no dead letters")
    elif dry_run:
        print(f"{count_letters(len(planned))} would go (dry run: nothing was changed)")
    else:
        print(f"{count_letters(purged)} deleted; in the accounts their events stay settled as dead")


@dataclass(frozen=True, slots=True)
class _Planned:
    """A letter that is to be deleted, without its contents."""

    group: str
    id: str
    source_id: str
    reason: str
    user: int | None
    version: int | None
    superseded: bool | None

    @classmethod
    def of(cls, service: str, read: ReadLetter) -> _Planned:
        letter, about = read.letter, read.about
        return cls(service, letter.id, letter.source_id, letter.reason, about.user, about.version, about.superseded)


def _print_plan(run: Run, planned: list[_Planned]) -> None:
    from imsync.cli.lines import say

    if not planned:
        return
    safe_to_drop = {True: "yes", False: "no", None: "unknown"}
    rows = [(e.group, e.id, e.user or "-", e.version or "-", safe_to_drop[e.superseded], e.reason) for e in planned]
    run.out.plan(("group", "letter", "#user", "#version", "safe", "reason"), rows, flexible="reason")
    for (group, reason), number in sorted(Counter((e.group, e.reason) for e in planned).items()):
        say(f"group {group}: {number:,} {reason or '(no reason)'}")
    needed = sum(not e.superseded for e in planned)
    if needed:
        which = "1 of them is" if needed == 1 else f"{needed:,} of them are"
        say(f"{which} not known to be safe to drop: `imsync replay dead` applies what can be applied")


def _letters(run: Run, service: str, wanted: LetterFilter) -> Iterator[ReadLetter]:
    """The letters of a service that are meant. Its store is opened when there is one."""
    from imsync.cli.letters import store_of
    from imsync.im.events import DESTINATION
    from imsync.im.letters import select

    dead = run.bus.dead_letters(DESTINATION, service)
    if not dead.length():
        return
    store = store_of(run, service)
    try:
        yield from select(dead, store, wanted)
    finally:
        if store is not None:
            store.close()


def _as_text(read: ReadLetter) -> dict[str, str]:
    return {name.decode(errors="replace"): value.decode(errors="replace") for name, value in read.letter.raw.items()}


def _event(read: ReadLetter) -> dict[str, object] | None:
    """The decoded event, as its reader sees it."""
    prediction = read.about.prediction
    if prediction is None or prediction.event is None:
        return None
    event = prediction.event
    about = {"id": str(event.event_id), "source": event.source, "time": event.occurred_at.isoformat()}
    return about | {"data": event.model_dump(mode="json", by_alias=True)}


def _whole(service: str, read: ReadLetter, now_ms: int) -> Iterator[str]:
    """Everything about a letter, in lines."""
    from imsync.cli.letters import age_seconds, foreseen, subject, worth
    from imsync.cli.lines import fold
    from imsync.cli.render import safe, seconds
    from imsync.im.wording import times

    letter, about = read.letter, read.about

    def field(name: str, text: object) -> Iterator[str]:
        first, *rest = fold(text, " " * 12)
        yield f"{name:<12}{first[12:]}"
        yield from rest

    yield from fold(f"dead letter {letter.id} of group {service}")
    yield from field("reason", letter.reason or "-")
    yield from field("message", letter.message or "-")
    for number, frame in enumerate(filter(None, letter.where.split(" < "))):
        yield from field("" if number else "raised at", frame)
    yield from field("event", f"{about.type or 'no event type'}; {subject(about)}")
    yield from field("event id", letter.event_id or "-")
    yield from field("entry", letter.source_id or "-")
    yield from field("published", letter.published_at or "-")
    age = seconds(age_seconds(letter.id, now_ms))
    yield from field("died", f"{letter.dead_at or '-'} ({age} ago), delivered {times(letter.deliveries)}")
    yield from field("consumer", letter.consumer or "-")
    prediction = about.prediction
    detail = f": {prediction.message}" if prediction and prediction.message else ""
    yield from field("redriven", f"{foreseen(prediction)}{detail}")
    if verdict := worth(about):
        yield from field("", verdict)
    if event := _event(read):
        yield "decoded"
        data = event["data"]
        for name, value in data.items() if isinstance(data, dict) else ():
            yield from fold(f"{name} = {value}", "  ")
    for raw_name, raw in letter.raw.items():
        yield from fold(f"raw field {raw_name.decode(errors='backslashreplace')} ({len(raw):,} bytes)")
        yield from fold(safe(raw.decode(errors="backslashreplace")), "  ")
