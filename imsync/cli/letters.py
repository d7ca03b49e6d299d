"""What the commands about dead letters share: their filters, and how a letter is told in a line and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from imsync.cli.run import Run

if TYPE_CHECKING:
    from imsync.im.letters import About, LetterFilter, ReadLetter
    from imsync.im.prediction import Prediction
    from imsync.store.projection import Projection

Group = Annotated[
    str | None, typer.Option(help="Only this service: group or friend. Both without.", show_default=False)
]
Ids = Annotated[
    list[str] | None,
    typer.Option(
        "--id",
        help="Only this letter, by its own id or that of its entry in the stream; may be given several times.",
        show_default=False,
    ),
]
Reasons = Annotated[
    list[str] | None,
    typer.Option("--reason", help="Only with this reason, such as invalid; may be given several times.",
                 show_default=False),
]  # fmt: skip
UserId = Annotated[int | None, typer.Option(help="Only about this user, where that can be read.", show_default=False)]
Since = Annotated[
    str | None, typer.Option(help="Only those that died so long ago at most: 30m, 24h, 7d.", show_default=False)
]


def services(group: str | None) -> list[str]:
    """The services that are meant.

    Raises:
        UsageError: there is none of this name.
    """
    from imsync.errors import UsageError
    from imsync.im.workspace import PROJECTIONS

    if group is not None and group not in PROJECTIONS:
        raise UsageError(f"no service {group!a}", f"one of {', '.join(PROJECTIONS)}")
    return [group] if group else list(PROJECTIONS)


def check_ids(ids: list[str] | None) -> tuple[str, ...]:
    """The entry ids that were typed, in full.

    Raises:
        UsageError: one is none.
    """
    from imsync.bus.entry import id_parts, is_entry_id
    from imsync.errors import UsageError

    if bad := [each for each in ids or () if not is_entry_id(each)]:
        raise UsageError(f"bad entry id {bad[0][:40]!a}", "such as 1795413835783-0")
    return tuple("{}-{}".format(*id_parts(each)) for each in ids or ())


def check_user(user: int | None) -> None:
    """Refuses a number that no user can have.

    Raises:
        UsageError: it is out of range.
    """
    from imsync.errors import UsageError

    if user is not None and not 1 <= user < 2**63:
        raise UsageError(f"bad user {user}", "ids are whole numbers from 1 to 9223372036854775807")


def chosen(
    run: Run, ids: list[str] | None, reasons: list[str] | None, user: int | None, since: str | None
) -> LetterFilter:
    """The filter that the options say.

    Raises:
        UsageError: one of them is bad.
    """
    from imsync.cli.durations import milliseconds
    from imsync.im.events import DESTINATION
    from imsync.im.letters import LetterFilter

    checked = check_ids(ids)
    check_user(user)
    span = None if since is None else milliseconds(since)
    run.expect_stores()
    # the letters' ids are made of the server's clock
    since_ms = None if span is None else run.bus.stream(DESTINATION).server_time_ms() - span
    return LetterFilter(frozenset(reasons or ()), user, since_ms, frozenset(checked))


def store_of(run: Run, service: str) -> Projection | None:
    """The store of a service, for telling what its letters are worth; None, with a message, where it cannot be read."""
    from imsync.errors import StoreUnusable

    try:
        return run.workspace.projection(service)
    except StoreUnusable as error:
        run.out.note(f"{error.message}: nobody can tell which letters of group {service} are safe to drop")
        return None


def age_seconds(letter_id: str, now_ms: int) -> float:
    """How long ago a letter was written, by its id."""
    from imsync.bus.clock import seconds_since
    from imsync.bus.entry import id_parts

    return seconds_since(id_parts(letter_id)[0], now_ms)


def described(service: str, read: ReadLetter, now_ms: int) -> dict[str, object]:
    """A letter for programs, without its contents."""
    letter, about = read.letter, read.about
    return {
        "group": service,
        "id": letter.id,
        "source_id": letter.source_id,
        "event_id": letter.event_id,
        "reason": letter.reason,
        "message": letter.message,
        "where": letter.where,
        "consumer": letter.consumer,
        "deliveries": letter.deliveries,
        "published_at": letter.published_at,
        "dead_at": letter.dead_at,
        "age_seconds": age_seconds(letter.id, now_ms),
        "type": about.type,
        "user": about.user,
        "version": about.version,
        "superseded": about.superseded,
    }


def subject(about: About) -> str:
    """Whom it is about, for people."""
    if about.user is None:
        return "nobody can tell whom it is about"
    return f"user {about.user}" + ("" if about.version is None else f", version {about.version}")


def worth(about: About) -> str:
    """Whether the letter can still change anything, for people; empty when it can or when that cannot be told."""
    from imsync.im.prediction import Predicted

    if not about.superseded:
        return ""
    if about.prediction and about.prediction.outcome is Predicted.DUPLICATE:
        return "safe to drop: its event is settled already"
    if about.applied_version is not None and about.version is not None and about.applied_version >= about.version:
        return f"safe to drop: version {about.applied_version} is applied already"
    return "safe to drop: the user is deleted"


def foreseen(prediction: Prediction | None) -> str:
    """What would become of it, for people."""
    if prediction is None:
        return "unknown"
    return f"{'still bad' if prediction.reason else prediction.outcome}" + (
        f": {prediction.reason}" if prediction.reason else ""
    )


def in_lines(service: str, read: ReadLetter, now_ms: int) -> Iterator[str]:
    """A letter in a few lines for people."""
    from imsync.cli.lines import fold
    from imsync.cli.render import seconds

    letter, about = read.letter, read.about
    died = f"{seconds(age_seconds(letter.id, now_ms))} ago"
    yield from fold(f"{service:<6}  {letter.id}  {died}  {letter.reason or '(no reason)'}")
    times = "once" if letter.deliveries == 1 else f"{letter.deliveries:,} times"
    source = f"entry {letter.source_id}, " if letter.source_id else ""
    yield from fold(f"{subject(about)}; {about.type or 'no event type'}; {source}delivered {times}", " " * 8)
    where = f" (at {letter.where})" if letter.where else ""
    yield from fold(f"{letter.message}{where}", " " * 8)
    if verdict := worth(about):
        yield from fold(verdict, " " * 8)


def count_letters(number: int) -> str:
    """How many letters, for people."""
    return "1 dead letter" if number == 1 else f"{number:,} dead letters"
