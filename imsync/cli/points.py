"""Points in a stream on the command line: `start`, `now`, an entry id, a time, or how long ago."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from imsync.cli.durations import milliseconds
from imsync.errors import UsageError

FORMS = "start, an entry id, a time such as 2026-01-31T08:00:00Z, or how long ago: 30m, 24h, 7d"


@dataclass(frozen=True, slots=True)
class Point:
    """A point in a stream.

    Args:
        bound: as the start or the end of a range: an entry id, or a bare number of milliseconds, which as a start is
            the first and as an end the last entry of that millisecond.
        assumed_utc: a time was given without an offset.
    """

    bound: str
    assumed_utc: bool = False


def point(text: str, now_ms: int) -> Point:
    """What somebody has typed.

    Args:
        now_ms: the server's clock, in unix milliseconds: entry ids are made of it.

    Raises:
        UsageError: it is none of the forms, or a time before 1970.
    """
    from imsync.bus.entry import is_entry_id

    if text == "start":
        return Point("0-0")
    if text == "now":
        return Point(str(now_ms))
    if is_entry_id(text):
        return Point(text)
    try:
        return Point(str(max(0, now_ms - milliseconds(text))))
    except UsageError:
        pass
    try:
        time = datetime.fromisoformat(text)
        aware = time if time.tzinfo else time.replace(tzinfo=UTC)
        unix_ms = int(aware.timestamp() * 1000)
    except (ValueError, OverflowError):
        raise UsageError(f"bad point in the stream {text[:40]!a}", FORMS) from None
    if unix_ms < 0:
        raise UsageError(f"{text[:40]!a} is before 1970", FORMS)
    return Point(str(unix_ms), assumed_utc=time.tzinfo is None)


def time_of(entry_id: str | None) -> str | None:
    """When an entry was added, by its id, as RFC 3339 in UTC; None for ids that are no time."""
    from imsync.bus.entry import id_parts

    if entry_id is None:
        return None
    try:
        return datetime.fromtimestamp(id_parts(entry_id)[0] / 1000, UTC).isoformat(timespec="milliseconds")
    except (ValueError, OverflowError, OSError):
        return None
