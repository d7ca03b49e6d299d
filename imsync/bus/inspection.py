"""What can be seen from outside: of a group its lag, its pending entries, who is alive; of a stream what it holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from imsync.bus.clock import now_ms
from imsync.bus.entry import LAST_ID, GroupInfo, following, id_parts
from imsync.bus.liveness import Life, lives
from imsync.bus.retention import Retention, floor
from imsync.bus.stream import Stream
from imsync.errors import GroupMissing

if TYPE_CHECKING:
    from imsync.bus.bus import Bus

COUNT_LIMIT = 10_000
"""Where the server cannot tell the lag, so many entries are counted at most."""

_LAST = id_parts(LAST_ID)
"""The largest entry id there can be. A stream that has given it takes no more entries."""
NO_TIME_MS = 24 * 3_600_000
"""An entry id that is so far in the future was chosen by somebody, and tells no time."""


@dataclass(frozen=True, slots=True)
class ConsumerView:
    """A consumer at one moment.

    Args:
        name: as the server has it; bytes that are no UTF-8 are surrogates.
        pending: the entries that it holds.
        idle_ms: since it last asked for anything.
        life: what is known of its process; None when it has no heartbeat.
    """

    group: str
    name: str
    pending: int
    idle_ms: int
    life: Life | None

    @property
    def alive(self) -> bool:
        """Whether it has a heartbeat."""
        return self.life is not None


@dataclass(frozen=True, slots=True)
class GroupView:
    """A group at one moment.

    Args:
        exists: whether the group has been created.
        lag: entries not delivered to anybody yet; None when unknown (never 0 by default).
        lag_at_least: the lag, or where it is unknown a number that it is not below.
        lag_seconds: how long ago the oldest of them was published; 0 when there is none, None when unknown.
        oldest_pending_seconds: how long ago the oldest pending entry was published; None when there is none.
        alive: consumers with a heartbeat.
        held_by_dead: pending entries whose consumer has none.
        dead: dead letters.
        members: its consumers that the server remembers, alive or not, in the order of their names.
        beyond_end: the group stands behind the last id of the stream: it will not be given what is published next.
    """

    group: str
    stream: str
    exists: bool
    lag: int | None
    lag_seconds: float | None
    pending: int
    oldest_pending_seconds: float | None
    alive: tuple[str, ...]
    held_by_dead: int
    dead: int
    last_delivered_id: str
    members: tuple[ConsumerView, ...] = ()
    beyond_end: bool = False
    lag_at_least: int = 0

    @property
    def consumers(self) -> int:
        """How many consumers the server remembers, alive or not."""
        return len(self.members)


@dataclass(frozen=True, slots=True)
class RetentionView:
    """What a stream holds, and what it holds it for.

    Args:
        retention: the bounds.
        first_id: the oldest entry; None when there is none.
        oldest_seconds: how long ago that one was added, by the server's clock.
        floor: the first id that some group has not acknowledged; None without groups.
        floor_group: that group.
        waiting_seconds: how long ago the oldest entry was added that some group has not acknowledged; None when every
            group has acknowledged all.
        groups: the names of all groups of the stream, whoever made them.
        last_id: the largest id that the stream has ever given; `0-0` for none.
        added: how many entries were ever added; None where the server cannot tell it (6.2).
    """

    retention: Retention
    length: int
    first_id: str | None
    oldest_seconds: float | None
    floor: str | None
    floor_group: str | None
    waiting_seconds: float | None
    groups: tuple[str, ...]
    last_id: str = "0-0"
    added: int | None = None

    @property
    def full(self) -> bool:
        """Whether the stream has given the last id that there is, so that nothing can be added to it."""
        return id_parts(self.last_id) == _LAST

    @property
    def pinned_by(self) -> str | None:
        """The group that has not acknowledged an entry which would go otherwise; None when there is none."""
        return self.floor_group if self.pinned_beyond(1) else None

    def pinned_beyond(self, times: int) -> bool:
        """Whether a group holds up an entry that is older than the bound, or one of a stream so many times as long
        as its bound.
        """
        if self.waiting_seconds is None:
            return False
        hours = self.waiting_seconds / 3600
        too_many = self.length > times * self.retention.entries
        return hours > self.retention.min_hours and (hours > self.retention.hours or too_many)


def view_group(bus: Bus, destination: str, group: str) -> GroupView:
    """Looks at a group. A few round trips; changes nothing."""
    stream = bus.stream(destination)
    info = next((info for info in stream.groups() if info.name == group), None)
    return _view(bus, destination, group, info)


def view_groups(bus: Bus, destination: str) -> list[GroupView]:
    """Looks at every group of a stream, whoever made it, in the order of their names. Changes nothing."""
    infos = bus.stream(destination).groups()
    return [_view(bus, destination, info.name, info) for info in sorted(infos, key=lambda info: info.name)]


def view_consumers(bus: Bus, destination: str, group: str) -> list[ConsumerView]:
    """Looks at the consumers of a group, in the order of their names. Changes nothing.

    Raises:
        GroupMissing: there is no such group.
    """
    stream = bus.stream(destination)
    consumers = stream.consumers(group)
    known = lives(bus.client, bus.keys(destination), group, [each.name for each in consumers], stream.where)
    return [
        ConsumerView(group, each.name, each.pending, each.idle_ms, known[each.name])
        for each in sorted(consumers, key=lambda each: each.name)
    ]


def view_retention(bus: Bus, destination: str, retention: Retention) -> RetentionView:
    """Looks at what a stream holds. A few round trips; changes nothing."""
    stream = bus.stream(destination)
    lowest = floor(stream)
    waiting = stream.range(lowest.id, count=1) if lowest else []
    info = stream.info()
    now_ms = stream.server_time_ms()
    first_id = info.first_id if info else None
    return RetentionView(
        retention=retention,
        length=info.length if info else 0,
        first_id=first_id,
        oldest_seconds=_seconds_since(first_id, now_ms),
        floor=lowest.id if lowest else None,
        floor_group=lowest.group if lowest else None,
        waiting_seconds=_seconds_since(waiting[0].id if waiting else None, now_ms),
        groups=tuple(sorted(group.name for group in stream.groups())),
        last_id=info.last_generated_id if info else "0-0",
        added=None if info is None or info.removed is None else info.length + info.removed,
    )


def _view(bus: Bus, destination: str, group: str, info: GroupInfo | None) -> GroupView:
    stream = bus.stream(destination)
    dead = bus.dead_letters(destination, group).length()
    if info is None:
        length = stream.length()
        seconds = None if length else 0.0
        return GroupView(group, stream.key, False, length, seconds, 0, None, (), 0, dead, "0-0", lag_at_least=length)
    lag, at_least, oldest_undelivered = _lag(bus, destination, info)
    try:
        pending = stream.pending_summary(group)
        members = view_consumers(bus, destination, group)
    except GroupMissing:  # deleted this moment
        return GroupView(group, stream.key, False, lag, None, 0, None, (), 0, dead, "0-0", lag_at_least=at_least)
    alive = tuple(each.name for each in members if each.alive)
    return GroupView(
        group=group,
        stream=stream.key,
        exists=True,
        lag=lag,
        lag_seconds=0.0 if lag == 0 else _age_seconds(oldest_undelivered),
        pending=pending.count,
        oldest_pending_seconds=_age_seconds(pending.oldest_id),
        alive=alive,
        held_by_dead=sum(n for name, n in pending.by_consumer.items() if name not in alive),
        dead=dead,
        last_delivered_id=info.last_delivered_id,
        members=tuple(members),
        beyond_end=lag == 0 and is_beyond_end(stream, info),
        lag_at_least=at_least,
    )


def is_beyond_end(stream: Stream, group: GroupInfo) -> bool:
    """Whether a group stands behind the last id that the stream has ever given: somebody has moved it there."""
    whole = stream.info()
    return whole is not None and id_parts(group.last_delivered_id) > id_parts(whole.last_generated_id)


def _lag(bus: Bus, destination: str, info: GroupInfo) -> tuple[int | None, int, str | None]:
    """How many entries are undelivered, how many at least, and the id of the first of them."""
    if id_parts(info.last_delivered_id) == _LAST:
        return 0, 0, None  # nothing can come after it, and the server refuses to be asked
    stream = bus.stream(destination)
    start = following(info.last_delivered_id)
    first = stream.range(start, count=1)
    if not first:
        return 0, 0, None
    whole = stream.info()
    if whole and whole.first_id == first[0].id:
        # nothing that was delivered is left, so all of it is undelivered; the server's own number would include
        # what was trimmed unread (7.0, Valkey)
        return whole.length, whole.length, first[0].id
    if info.lag is not None:
        return info.lag, info.lag, first[0].id
    counted = len(stream.range(start, count=COUNT_LIMIT))
    return (counted if counted < COUNT_LIMIT else None), counted, first[0].id


def _age_seconds(entry_id: str | None) -> float | None:
    """How long ago an entry was added, by its id and this machine's clock."""
    return _seconds_since(entry_id, now_ms())


def _seconds_since(entry_id: str | None, now_ms: int) -> float | None:
    if entry_id is None or id_parts(entry_id)[0] > now_ms + NO_TIME_MS:
        return None
    return round(max(0.0, (now_ms - id_parts(entry_id)[0]) / 1000), 3)
