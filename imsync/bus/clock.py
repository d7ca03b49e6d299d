"""Times as they are told to programs, and this machine's clock."""

from __future__ import annotations

import time
from datetime import UTC, datetime

from imsync.bus.entry import id_parts


def now_ms() -> int:
    """This machine's clock, in unix milliseconds."""
    return time.time_ns() // 1_000_000


def timestamp(unix_ms: int | None) -> str | None:
    """RFC 3339, in UTC, to the millisecond; None for None, and for what no datetime holds."""
    if unix_ms is None:
        return None
    try:
        return datetime.fromtimestamp(unix_ms / 1000, UTC).isoformat(timespec="milliseconds")
    except (ValueError, OverflowError, OSError):
        return None


def time_of(entry_id: str | None) -> str | None:
    """When an entry was added, by the server's time in its id, as `timestamp` tells it."""
    return None if entry_id is None else timestamp(id_parts(entry_id)[0])


def seconds_since(unix_ms: int, now_ms: int) -> float:
    """How long ago that was, to the millisecond; 0 for what is to come."""
    return round(max(0.0, (now_ms - unix_ms) / 1000), 3)
