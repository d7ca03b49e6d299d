"""Places in a stream on the command line: `start`, `now`, an entry id, a time, or how long ago."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from imsync.cli.durations import milliseconds
from imsync.errors import UsageError

HELP = "start, now, an entry id, a time such as 2026-11-23T02:30:00Z, or how long ago, such as 10m"
"""The forms, for help texts and hints."""

_SMALLEST_BARE_ID = 10**11
"""A number alone that is smaller is no time in milliseconds of this century: somebody has seconds in mind."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def position(text: str, now_ms: int, *, end: bool = False) -> str:
    """The entry id that a place stands for: the first one to read, or with `end` the last one, both included.

    Args:
        text: `start`; `now`; an entry id, whose sequence may be left out (`1795413835783`); a time in ISO 8601, in UTC
            unless it names an offset; or a duration before now.
        now_ms: the clock that makes the entry ids (`Stream.server_time_ms`), in unix milliseconds.
        end: a millisecond without a sequence means its last entry, not its first.

    Raises:
        UsageError: it is none of these.
    """
    from imsync.bus.entry import LARGEST

    text = text.strip()
    if text == "start":
        return "0-0"
    if text == "now":
        text = "0s"
    if numbers := re.fullmatch(r"([0-9]{1,20})(?:-([0-9]{1,20}))?", text):
        return _id(text, numbers[1], numbers[2], end)
    is_duration = re.fullmatch(r"[0-9.]+[a-z]+", text)
    at_ms = max(0, now_ms - milliseconds(text)) if is_duration else _time_ms(text)
    return f"{at_ms}-{LARGEST if end else 0}"


def _id(text: str, first: str, second: str | None, end: bool) -> str:
    from imsync.bus.entry import LARGEST

    at_ms, sequence = int(first), LARGEST if end else 0
    if second is None and 0 < at_ms < _SMALLEST_BARE_ID:
        raise UsageError(
            f"{text} alone is an entry id of the year 1970 to 1973",
            f"entry ids count milliseconds; for seconds write {text}000, for the entry {text}-0",
        )
    if second is not None:
        sequence = int(second)
    if max(at_ms, sequence) > LARGEST:
        raise UsageError(f"{text} is larger than any entry id", "such as 1795413835783-0")
    return f"{at_ms}-{sequence}"


def _time_ms(text: str) -> int:
    try:
        # a number of digits alone would be a date without dashes, which nobody means
        moment = datetime.fromisoformat(text if "-" in text else "")
    except ValueError:
        raise UsageError(f"no such place: {text[:40]!a}", HELP) from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0, (moment - _EPOCH) // timedelta(milliseconds=1))
