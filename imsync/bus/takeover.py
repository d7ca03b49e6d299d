"""Taking over what the dead hold, and leaving alone what the living hold."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from imsync.bus.entry import Entry
from imsync.bus.keys import Keys
from imsync.bus.liveness import remaining_ms
from imsync.bus.stream import Stream

if TYPE_CHECKING:
    from redis import Redis

POLL_SECONDS = 0.05

GiveUp = Callable[[Sequence[str]], None]
"""Settles entries that were trimmed while they were pending; their ids are given."""


class TakeOver:
    """Claims entries of consumers without a heartbeat.

    Args:
        client: the client of the consumer that takes over.
        name: that consumer.
        heartbeat_ms: its heartbeat's interval. Entries idle for less than half of it are left alone, so that two
            survivors do not take the same entries from each other.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        client: Redis,
        stream: Stream,
        keys: Keys,
        group: str,
        name: str,
        heartbeat_ms: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._stream = stream
        self._keys = keys
        self._group = group
        self._name = name
        self._heartbeat_ms = heartbeat_ms
        self._clock = clock
        self._refused_since: dict[str, float] = {}  # when the entries of a dead consumer were first not idle enough
        self.held = 0
        """How many entries this consumer held itself, at the last look."""

    def take(self, count: int, give_up: GiveUp) -> list[Entry]:
        """Claims at most `count` entries, of one dead consumer.

        Args:
            give_up: called with the ids of those found to be trimmed while they were pending.
        """
        others = self._others()
        self._refused_since = {name: since for name, since in self._refused_since.items() if name in others}
        for holder, left in others.items():
            if left or count == 0:
                self._refused_since.pop(holder, None)
                continue
            ids = [entry.id for entry in self._stream.pending(self._group, consumer=holder, count=count)]
            if entries := claim_all(self._stream, self._group, self._name, ids, self._min_idle_ms(holder), give_up):
                del self._refused_since[holder]
                return entries
        return []

    def _min_idle_ms(self, holder: str) -> int:
        """Half a heartbeat, by the server's clock. When that stands behind the deliveries, because it was set back,
        nothing ever seems idle: what a dead consumer has held for two heartbeats of this clock is free for all.
        """
        since = self._refused_since.setdefault(holder, self._clock())
        return self._heartbeat_ms // 2 if self._clock() - since < 2 * self._heartbeat_ms / 1000 else 0

    def any_dead_soon(self, stop: threading.Event) -> bool:
        """Whether entries are held by a consumer that is dead, or that dies while this waits.

        A heartbeat that is renewed proves life, one that expires proves death; either takes at most as long as a
        heartbeat lasts.
        """
        seen: dict[str, int] = {}
        while others := self._others():
            if 0 in others.values():
                stop.wait(self._heartbeat_ms / 2000)
                return not stop.is_set()
            renewed = {name for name, left in others.items() if left > seen.get(name, left)}
            doubtful = others.keys() - renewed
            if not doubtful or stop.is_set():
                return False
            seen = {name: min(left, seen.get(name, left)) for name, left in others.items()}
            if renewed:
                seen |= dict.fromkeys(renewed, 0)  # proven once is enough
            stop.wait(POLL_SECONDS)
        return False

    def _others(self) -> dict[str, int]:
        """The other consumers that hold entries, with the milliseconds that each heartbeat has left."""
        held = self._stream.pending_summary(self._group).by_consumer
        self.held = held.get(self._name, 0)
        holders = held.keys() - {self._name}
        return dict(remaining_ms(self._client, self._keys, self._group, sorted(holders), self._stream.where))


def claim_all(
    stream: Stream, group: str, consumer: str, ids: Sequence[str], min_idle_ms: int, give_up: GiveUp
) -> list[Entry]:
    """Claims those of these pending entries that are idle for so long; they are the consumer's now.

    Args:
        give_up: called with the ids of those that no longer exist in the stream. It is called before they are
            claimed, because from Redis 7 on XCLAIM forgets them: nobody would then know that they are lost.
    """
    existing = stream.existing(ids)
    give_up([entry_id for entry_id in ids if entry_id not in existing])
    return stream.claim(group, consumer, [entry_id for entry_id in ids if entry_id in existing], min_idle_ms)
