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

Reasons = Annotated[
    list[str] | None,
    typer.Option("--reason", help="Only with this reason, such as invalid; may be given several times.",
                 show_default=False),
]  # fmt: skip
Since = Annotated[
    str | None, typer.Option(help="Only those that died so long ago at most: 30m, 24h, 7d.", show_default=False)
]


def chosen(
    run: Run, ids: list[str] | None, reasons: list[str] | None, user: int | None, since: str | None
) -> LetterFilter:
    """The filter that the options say.

    Raises:
        UsageError: one of them is bad.
    """
    from imsync.cli.durations import milliseconds
    from imsync.cli.selection import check_ids, check_user
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
    from imsync.im.wording import times

    letter, about = read.letter, read.about
    died = f"{seconds(age_seconds(letter.id, now_ms))} ago"
    yield from fold(f"{service:<6}  {letter.id}  {died}  {letter.reason or '(no reason)'}")
    source = f"entry {letter.source_id}, " if letter.source_id else ""
    yield from fold(
        f"{subject(about)}; {about.type or 'no event type'}; {source}delivered {times(letter.deliveries)}", " " * 8
    )
    where = f" (at {letter.where})" if letter.where else ""
    yield from fold(f"{letter.message}{where}", " " * 8)
    if verdict := worth(about):
        yield from fold(verdict, " " * 8)


def count_letters(number: int) -> str:
    """How many letters, for people."""
    from imsync.im.wording import counted

    return counted(number, "dead letter")
