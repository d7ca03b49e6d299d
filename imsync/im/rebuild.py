"""Filling a projection from a snapshot of its source, in place, and giving it to its group.

What a lost, restored or second store misses, its group has acknowledged already: no event will bring it again. The
source still knows it. Memberships, friendships and overrides belong to the projection and are left as they are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from imsync.bus.bus import Bus
from imsync.bus.deferred import finish
from imsync.bus.handler import Received, Rejected
from imsync.bus.inspection import GroupView, is_beyond_end, view_group
from imsync.bus.options import ConsumerOptions
from imsync.bus.outcome import Effect, Outcome
from imsync.bus.stream import Stream
from imsync.errors import ImsyncError, InfrastructureError, UsageError
from imsync.im.profile_projection import ProfileProjection
from imsync.im.relay import Relay
from imsync.im.user_store import UserStore
from imsync.im.wording import counted
from imsync.store.settlement import DEAD

PAGE = 500
"""How many users one transaction writes: readers and joins wait no longer than that takes."""


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What a rebuild did.

    Args:
        users: how many users the snapshot has.
        changed: how many of them the projection had otherwise, or not at all.
        ahead: how many of them it has in a newer version than the source: they were left as they are.
        covered: published events that this store never settled, and that the snapshot stands for. Negative where it
            has settled some twice, because they were sent again after it had forgotten them.
        position: the stream's last entry id when the snapshot began.
    """

    users: int
    changed: int
    ahead: int
    covered: int
    position: str


class _Unbound:
    """A projection as a plain handler with a settlement log: it is fed before it is its group's store."""

    def __init__(self, projection: ProfileProjection) -> None:
        self._projection = projection

    def apply(self, batch: Sequence[Received[Any]]) -> Sequence[Outcome]:
        return self._projection.apply(batch)

    def go_on(self) -> bool:
        return self._projection.go_on()

    def record_dead(self, dead: Sequence[Rejected]) -> None:
        self._projection.record_dead(dead)

    def record_lost(self, entry_ids: Sequence[str]) -> None:
        self._projection.record_lost(entry_ids)


def rebuild(
    users: UserStore,
    projection: ProfileProjection,
    bus: Bus,
    destination: str,
    relay: Relay,
    *,
    options: ConsumerOptions,
    on_users: Callable[[int], None] = lambda n: None,
    on_trouble: Callable[[InfrastructureError, float], None] = lambda error, delay: None,
) -> Rebuilt:
    """Rebuilds a projection. May be interrupted and run again: the group refuses the store until it is whole.

    Args:
        relay: the user store's. All relays pause while the group is brought up to date, so that nothing is published
            that neither the group nor the snapshot has.
        options: of the consumer that brings the group up to date; it ends when nothing is left.
        on_users: called with the number of users written since the last call.

    Raises:
        UsageError: a consumer of the group is alive.
        ImsyncError: another relay does not give way, or rows cannot be written.
        RedisUnreachable, RedisRefused, StoreUnusable: it was not finished.
    """
    group = projection.name
    check_stopped(view_group(bus, destination, group))
    stream = bus.stream(destination)
    binding = bus.binding(destination, group, projection)
    with relay.alone():
        projection.begin_filling()
        binding.rebind(0)
        bound_at = time.monotonic()
        relay.drain()  # what was sent and not noted as sent would be counted neither here nor there
        bus.consumer(
            destination,
            group=group,
            events=projection.events,
            handler=_Unbound(projection),
            options=options,
            on_trouble=on_trouble,
        ).run()
        _come_back(stream, group)
        info = stream.info()
        position = info.last_generated_id if info else "0-0"
        covered = users.published() - _settled(projection, users.source)
        _cover(users, projection)
        # whoever comes back with another store has noticed by then; what it acknowledges until then is covered
        time.sleep(max(0.0, bound_at + options.heartbeat_ms / 1000 - time.monotonic()))
    changed, ahead, seen, after = 0, 0, 0, 0
    while page := users.states(after, PAGE):
        changed += projection.write_snapshot(page)
        ahead += projection.ahead_of(page)
        seen, after = seen + len(page), page[-1].key
        on_users(len(page))
    finish(projection)
    if late := projection.put_off.users:
        raise ImsyncError(f"the rows of {counted(late, 'user')} could not be written", "the messages say why")
    # where users are ahead, their source has lost events: the accounts must not close over that
    covered = max(0, covered) if ahead else covered
    projection.note_snapshot(position, users.source, covered, agrees=not ahead)
    binding.rebind(projection.generation)
    return Rebuilt(seen, changed, ahead, covered, position)


def check_stopped(view: GroupView) -> None:
    """Makes sure that no consumer of the group is at work.

    Raises:
        UsageError: one is.
    """
    if view.alive:
        alive = counted(len(view.alive), "living consumer")
        raise UsageError(f"group {view.group!a} has {alive}", "stop them, then run it again")


def _come_back(stream: Stream, group: str) -> None:
    """Moves a group that stands behind the end of the stream to its end: the snapshot covers what is before."""
    for info in stream.groups():
        if info.name == group and is_beyond_end(stream, info):
            stream.set_position(group, "$")


def _cover(users: UserStore, projection: ProfileProjection) -> None:
    """Records what the outbox knows as sent: the server may lose it, and it is sent again."""
    after = 0
    while rows := users.sent_after(after, PAGE):
        projection.cover((event_id, entry_id) for _, event_id, entry_id in rows)
        after = rows[-1][0]


def _settled(projection: ProfileProjection, source: str) -> int:
    """How many published events the store settled. What it noted as lost, the snapshot covers."""
    tallies = projection.tallies()
    return sum(tallies.get((source, outcome), 0) for outcome in (Effect.APPLIED, Effect.SUPERSEDED, DEAD))
