"""What can be seen of a group from the outside: lag, pending entries, who is alive."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from imsync.bus.liveness import remaining_ms
from imsync.bus.stream import GroupInfo, following, id_parts
from imsync.errors import GroupMissing

if TYPE_CHECKING:
    from imsync.bus.bus import Bus

COUNT_LIMIT = 10_000
"""Where the server cannot tell the lag, so many entries are counted at most."""


@dataclass(frozen=True, slots=True)
class GroupView:
    """A group at one moment.

    Args:
        exists: whether the group has been created.
        lag: entries not delivered to anybody yet; None when unknown (never 0 by default).
        lag_seconds: how long ago the oldest of them was published; 0 when there is none, None when unknown.
        oldest_pending_seconds: how long ago the oldest pending entry was published; None when there is none.
        alive: consumers with a heartbeat.
        held_by_dead: pending entries whose consumer has none.
        dead: dead letters.
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


def view_group(bus: Bus, destination: str, group: str) -> GroupView:
    """Looks at a group. A few round trips; changes nothing."""
    stream = bus.stream(destination)
    dead = bus.dead_letters(destination, group).length()
    info = next((info for info in stream.groups() if info.name == group), None)
    if info is None:
        length = stream.length()
        return GroupView(group, stream.key, False, length, None if length else 0.0, 0, None, (), 0, dead, "0-0")
    lag, oldest_undelivered = _lag(bus, destination, info)
    try:
        pending = stream.pending_summary(group)
        names = [consumer.name for consumer in stream.consumers(group)]
    except GroupMissing:  # deleted this moment
        return GroupView(group, stream.key, False, lag, None, 0, None, (), 0, dead, "0-0")
    left = remaining_ms(bus.client, bus.keys(destination), group, names, stream.where)
    return GroupView(
        group=group,
        stream=stream.key,
        exists=True,
        lag=lag,
        lag_seconds=0.0 if lag == 0 else _age_seconds(oldest_undelivered),
        pending=pending.count,
        oldest_pending_seconds=_age_seconds(pending.oldest_id),
        alive=tuple(name for name in names if left[name]),
        held_by_dead=sum(n for name, n in pending.by_consumer.items() if not left.get(name)),
        dead=dead,
        last_delivered_id=info.last_delivered_id,
    )


def _lag(bus: Bus, destination: str, info: GroupInfo) -> tuple[int | None, str | None]:
    """How many entries are undelivered, and the id of the first of them."""
    stream = bus.stream(destination)
    start = following(info.last_delivered_id)
    first = stream.range(start, count=1)
    if not first:
        return 0, None
    whole = stream.info()
    if whole and whole.first_id == first[0].id:
        # nothing that was delivered is left, so all of it is undelivered; the server's own number would include
        # what was trimmed unread (7.0, Valkey)
        return whole.length, first[0].id
    if info.lag is not None:
        return info.lag, first[0].id
    counted = len(stream.range(start, count=COUNT_LIMIT))
    return (counted if counted < COUNT_LIMIT else None), first[0].id


def _age_seconds(entry_id: str | None) -> float | None:
    """How long ago an entry was added, by its id and this machine's clock."""
    return None if entry_id is None else round(max(0.0, time.time() - id_parts(entry_id)[0] / 1000), 3)
