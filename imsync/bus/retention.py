"""Retention: which entries may leave the stream. By age and by number, and never one that some group still needs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from imsync.bus.entry import LAST_ID, following, id_after, id_parts
from imsync.bus.stream import Stream
from imsync.errors import GroupMissing

NO_LIMIT = LAST_ID
"""A bound that bounds nothing."""

WALK_PAGE = 1000
TRIM_LIMIT = 100_000
"""How many entries one call removes, about, so that it takes no longer than a batch."""

_HOUR_MS = 3_600_000


@dataclass(frozen=True, slots=True)
class Floor:
    """The first entry id that some group has not acknowledged, and that group. What is below it, no group needs."""

    id: str
    group: str


def floor(stream: Stream) -> Floor | None:
    """The lowest floor of all groups of the stream, whoever made them; None when there is no group.

    A group's floor is its oldest pending entry, or the id right after the last one that it was given, whichever is
    lower. It rises while the stream is being consumed; it falls only when somebody makes a group, or sets one back.
    """
    floors: list[Floor] = []
    # The groups come first. An entry that is delivered between the two reads is then above the last delivered id that
    # was read, so the floor is too low at worst. Read the other way round it would be below that id and not pending
    # yet: above the floor's protection, and not acknowledged.
    for info in stream.groups():
        try:
            oldest = stream.pending_summary(info.name).oldest_id
        except GroupMissing:  # deleted this moment: it needs nothing any more
            continue
        floors += [Floor(entry_id, info.name) for entry_id in (oldest, id_after(info.last_delivered_id)) if entry_id]
    return min(floors, key=lambda each: id_parts(each.id), default=None)


@dataclass(frozen=True, slots=True)
class Retention:
    """How much of what every group has acknowledged is kept.

    Args:
        hours: entries that are older go.
        entries: when there are more, the oldest go.
        min_hours: entries that are younger stay, whatever the other two say.

    Raises:
        ValueError: one of them is negative, not a number, or no entry would be kept.
    """

    hours: float = 168.0
    entries: int = 1_000_000
    min_hours: float = 24.0

    def __post_init__(self) -> None:
        for name in ("hours", "min_hours"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be a number from 0, not {value}")
        if self.entries < 1:
            raise ValueError(f"entries must be at least 1, not {self.entries}")

    def trim_id(self, now_ms: int, floor_id: str, keep_from: str) -> str:
        """The id below which entries may go. Pure.

        Args:
            now_ms: the server's clock, in unix milliseconds: entry ids are made from it.
            floor_id: the first id that some group has not acknowledged.
            keep_from: the oldest of the `entries` newest entries; `NO_LIMIT` where it need not be known, because
                another bound is lower.
        """
        too_old = _id_at(now_ms, self.hours)
        kept_anyway = _id_at(now_ms, self.min_hours)
        return min(floor_id, kept_anyway, max(too_old, keep_from, key=id_parts), key=id_parts)


def _id_at(now_ms: int, hours: float) -> str:
    """The first id of an entry that is so old."""
    return f"{max(0, now_ms - int(hours * _HOUR_MS))}-0"


@dataclass(frozen=True, slots=True)
class Trimmed:
    """What a trim did.

    Args:
        removed: how many entries went.
        up_to: the id below which entries may go by now; None when the stream has no group.
        pinned_by: the group without which more could go; None when there is none.
        more: whether there was more to do than one call does.
    """

    removed: int = 0
    up_to: str | None = None
    pinned_by: str | None = None
    more: bool = False


def trim(stream: Stream, retention: Retention, *, exact: bool = False, limit: int = TRIM_LIMIT) -> Trimmed:
    """Removes what is past retention and acknowledged by every group. A stream without groups is left alone.

    Any number of processes may do this at the same time. An entry that is pending, or that a group has not read,
    is never removed, with one exception that lies in nobody's hands here: a group that is made, or set back, below
    the floor in the moment between the look at the groups and the removal. What is younger than `min_hours` is safe
    from that too.

    Args:
        exact: to the very entry. Otherwise whole nodes of the stream go, and up to one node's entries (100 by the
            server's default) stay longer than they must: a stream that fits into one node is not trimmed at all.
        limit: about how many entries go at most.

    Raises:
        RedisUnreachable, RedisRefused: it was not done, or only in part.
    """
    lowest = floor(stream)
    if lowest is None:
        return Trimmed()
    now_ms = stream.server_time_ms()
    keep_from, whole = _keep_from(stream, retention, retention.trim_id(now_ms, lowest.id, NO_LIMIT), limit)
    up_to = retention.trim_id(now_ms, lowest.id, keep_from)
    removed = 0
    while removed < limit and (step := stream.trim(up_to)):
        removed += step
    if exact and removed < limit:
        removed += stream.trim(up_to, exact=True)
    unpinned = retention.trim_id(now_ms, NO_LIMIT, keep_from)
    pinned = id_parts(lowest.id) < id_parts(unpinned) and _any_between(stream, lowest.id, unpinned)
    return Trimmed(removed, up_to, lowest.group if pinned else None, more=not whole or removed >= limit)


def _keep_from(stream: Stream, retention: Retention, cap: str, limit: int) -> tuple[str, bool]:
    """The oldest of the newest entries that are to be kept for their number, and whether the walk there was finished.

    Walks from the front, only over what is to go; not past the cap, beyond which nothing may go anyway.
    """
    before = stream.info()
    excess = 0 if before is None else before.length - retention.entries
    if excess <= 0:
        return "0-0", True
    left = min(excess, limit)
    start, last = "-", ""
    while left > 0:
        wanted = min(left, WALK_PAGE)
        page = stream.range(start, cap, count=wanted)
        last = page[-1].id if len(page) == wanted else NO_LIMIT
        if last == NO_LIMIT:
            break
        left -= wanted
        start = following(last)
    after = stream.info()
    if before is None or after is None or before.first_id != after.first_id:
        return "0-0", True  # somebody else is trimming, so there is less to go than was counted
    return id_after(last), excess <= limit or last == NO_LIMIT


def _any_between(stream: Stream, start: str, end: str) -> bool:
    """Whether there is an entry from the one id to before the other."""
    first = stream.range(start, end, count=1)
    return bool(first) and first[0].id != end


def gone_from_the_start(stream: Stream, published: int = 0) -> int | None:
    """How many entries a group that begins at the start of the stream would never see, because they have left it: at
    least so many. None when nobody can tell.

    From Redis 7.0 on the server counts what was ever added; the count is right unless the data was loaded from a dump
    of an older server. Redis 6.2 keeps no such count. There only an emptied stream shows by itself that something
    has left it, and otherwise more must have been published than the stream holds; entries that others added hide
    as many that are gone.

    Args:
        published: how many entries are known to have been published; 0 when unknown.
    """
    info = stream.info()
    if info is None:
        return published
    missing = max(published - info.length, info.removed or 0)
    if missing > 0:
        return missing
    if info.length == 0:
        return 0 if info.last_generated_id == "0-0" else 1
    return info.removed
