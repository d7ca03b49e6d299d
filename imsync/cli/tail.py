"""`imsync tail`: the events as they come."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from imsync.cli import event_format, positions
from imsync.cli.run import Run, command

if TYPE_CHECKING:
    from imsync.bus.dead_letter import DeadLetterRecord
    from imsync.bus.entry import Entry
    from imsync.bus.envelope import Envelope
    from imsync.bus.follow import Interrupted, Resumed
    from imsync.bus.stream import Stream

_LETTERS = "; ".join(f"%{letter} {meaning}" for letter, meaning in event_format.LETTERS.items())


def register(app: typer.Typer) -> None:
    """Adds the command."""
    command(app, "tail")(tail)


def tail(
    run: Run,
    from_: Annotated[
        str | None,
        typer.Option(
            "--from",
            help=f"Where to begin: {positions.HELP}. Without: now; with an end, the start.",
            show_default=False,
        ),
    ] = None,
    to: Annotated[
        str | None, typer.Option(help="Where to end: an entry id, a time, or how long ago.", show_default=False)
    ] = None,
    until_end: Annotated[bool, typer.Option("--until-end", "-e", help="End where the stream ends by now.")] = False,
    count: Annotated[int | None, typer.Option(min=1, help="End after so many.", show_default=False)] = None,
    user: Annotated[int | None, typer.Option(min=1, help="Only events about this user.", show_default=False)] = None,
    type: Annotated[str | None, typer.Option(help="Only events of this type.", show_default=False)] = None,
    dead: Annotated[
        str | None, typer.Option(help="The dead letters of this group instead.", show_default=False)
    ] = None,
    format: Annotated[
        str | None, typer.Option(help=f"How to write one: {_LETTERS}; \\n, \\t.", show_default=False)
    ] = None,
) -> None:
    r"""Follow the events, for no group: nothing is moved, whatever is read.

    Goes on until it is told to stop, also when Redis goes away and comes back. For example:
    imsync tail --from 10m --user 7 --format '%T\t%i\t%v\t%d'
    """  # fmt: skip
    from imsync.cli.signals import ending_at_once
    from imsync.errors import UsageError
    from imsync.im.wording import counted

    if format is not None and run.as_json:
        raise UsageError("--format and --json are two ways to write an event", "keep one of them")
    if to is not None and until_end:
        raise UsageError("--to and --until-end are two ends", "keep one of them")
    written = _written(run, format, dead)
    run.expect_stores()
    wanted = Filter(user, type)
    with ending_at_once():
        for look in _limited(_looks(run, from_, to, until_end, dead, wanted), count):
            written(look)
        if wanted.unreadable:
            run.out.note(f"{counted(wanted.unreadable, 'entry', 'entries')} cannot be read, and may have been wanted")


@dataclass(frozen=True, slots=True)
class Look:
    """An entry as it is looked at. `now_ms`: the server's clock at that moment, in unix milliseconds."""

    entry: Entry
    body: bytes | None
    envelope: Envelope
    letter: DeadLetterRecord | None
    now_ms: int


@dataclass
class Filter:
    """Which events are wanted. `unreadable`: how many entries told too little to be chosen."""

    user: int | None
    type: str | None
    unreadable: int = 0

    def wants(self, envelope: Envelope) -> bool:
        """Whether it is one of them."""
        if self.user is None and self.type is None:
            return True
        if envelope.event is None:
            self.unreadable += 1
            return False
        if self.type is not None and envelope.type != self.type:
            return False
        data = envelope.event.get("data")
        by_data = isinstance(data, dict) and data.get("id") == self.user
        return self.user is None or envelope.subject == str(self.user) or by_data


def _looks(
    run: Run, from_: str | None, to: str | None, until_end: bool, dead: str | None, wanted: Filter
) -> Iterator[Look]:
    from imsync.bus.dead_letter import read
    from imsync.bus.entry import FIELD, id_after
    from imsync.bus.envelope import look
    from imsync.bus.follow import BLOCK_MS, follow
    from imsync.bus.retention import NO_LIMIT
    from imsync.bus.stream import Stream
    from imsync.im.events import DESTINATION

    keys = run.bus.keys(DESTINATION)
    with closing(run.bus.endpoint.connect(block_ms=BLOCK_MS)) as client:
        stream = Stream(client, keys.stream, str(run.bus.endpoint))
        if dead is not None:
            stream = Stream(client, keys.dead(_group(stream, dead)), stream.where)
        info, server_ms, here = stream.info(), stream.server_time_ms(), time.monotonic()
        last = info.last_generated_id if info else "0-0"
        end = last if until_end else NO_LIMIT
        if to is not None:
            end = positions.position(to, server_ms, end=True)
        place = from_ or ("now" if end == NO_LIMIT else "start")
        start = id_after(last) if place == "now" else positions.position(place, server_ms)
        over_already = until_end or int(end.partition("-")[0]) < server_ms
        for page in follow(stream, start, end=end, wait=not over_already, on_trouble=_tell(run)):
            now_ms = server_ms + int((time.monotonic() - here) * 1000)
            for entry in page:
                letter = None if dead is None else read(entry)
                body = entry.body if letter is None else letter.raw.get(FIELD)
                envelope = look(body)
                if wanted.wants(envelope):
                    yield Look(entry, body, envelope, letter, now_ms)
            sys.stdout.flush()


def _group(stream: Stream, typed: str) -> str:
    """The group whose dead letters are meant."""
    from imsync.cli.names import find_group
    from imsync.im.workspace import PROJECTIONS

    return find_group(typed, {*PROJECTIONS, *(group.name for group in stream.groups())})


def _limited(looks: Iterator[Look], count: int | None) -> Iterator[Look]:
    """At most so many; ends with the last one, without waiting for another."""
    for number, each in enumerate(looks, start=1):
        yield each
        if number == count:
            return


def _tell(run: Run) -> Callable[[Interrupted | Resumed], None]:
    """Says when the connection breaks, and when it works again."""
    from imsync.bus.follow import Interrupted

    def tell(what: Interrupted | Resumed) -> None:
        sys.stdout.flush()
        if isinstance(what, Interrupted):
            run.out.note(f"{what.error.message}; tried again until it answers")
        elif what.after is None:
            run.out.note("connected again to a stream that was made anew: read from its start")
        else:
            run.out.note(f"connected again, goes on after {what.after}")

    return tell


def _written(run: Run, format: str | None, dead: str | None) -> Callable[[Look], None]:
    """What writes an entry."""
    if run.as_json:
        return lambda look: run.out.row(_described(look))
    default = event_format.DEFAULT if dead is None else event_format.DEFAULT_DEAD
    readable = event_format.compiled(default if format is None else format)
    as_it_is = format is not None or dead is not None
    unreadable = readable if as_it_is else event_format.compiled(event_format.UNREADABLE)

    def write(look: Look) -> None:
        line = unreadable if look.envelope.event is None else readable
        print(line(event_format.values(look.entry, look.envelope, look.body, look.letter, look.now_ms)), end="")

    return write


def _described(look: Look) -> dict[str, object]:
    from imsync.bus.clock import time_of

    letter = look.letter
    fields = look.entry.fields if letter is None else letter.raw
    row: dict[str, object] = {
        "id": look.entry.id,
        "published_at": time_of(look.entry.id) or "",
        "event": look.envelope.event,
        "error": look.envelope.error or None,
        "raw": None
        if look.envelope.event is not None
        else {
            name.decode(errors="backslashreplace"): value.decode(errors="backslashreplace")
            for name, value in fields.items()
        },
    }
    if letter is not None:
        row["dead"] = {
            name: getattr(letter, name)
            for name in ("reason", "message", "where", "group", "consumer", "deliveries", "source_id", "dead_at")
        }
    return row
