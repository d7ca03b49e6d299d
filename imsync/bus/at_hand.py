"""The entries that a consumer is working on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from imsync.bus.entry import Entry
from imsync.bus.stream import Stream

if TYPE_CHECKING:
    from redis import Redis


class AtHand:
    """What is being settled, or is to be tried again when the store has healed.

    Args:
        stream: on the consumer's own connection.
        consumer: who holds the entries.
        heartbeat_ms: time between two heartbeats, each of which keeps what is at hand.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        stream: Stream,
        group: str,
        consumer: str,
        heartbeat_ms: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream
        self._group = group
        self._consumer = consumer
        self._heartbeat_ms = heartbeat_ms
        self._clock = clock
        self._held: tuple[tuple[Entry, ...], float] = (), 0.0  # in one: the heartbeat's thread reads it

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._held[0])

    def hold(self, entries: Sequence[Entry]) -> None:
        """Begins to work on these."""
        self._held = tuple(entries), self._clock()

    def let_go(self) -> None:
        """Has nothing at hand any more."""
        self._held = (), 0.0

    def take_back(self) -> list[Entry]:
        """What trouble with the store left here, as far as nobody took it over meanwhile."""
        entries, _ = self._held
        if not entries:
            return []
        ours = self.still_ours([entry.id for entry in entries])
        self.let_go()
        return [entry for entry in entries if entry.id in ours]

    def still_ours(self, ids: Sequence[str]) -> set[str]:
        """Those of the entries that are still pending in this consumer's name."""
        held = self._stream.pending_among(self._group, ids)
        return {entry.id for entry in held if entry.consumer == self._consumer}

    def keep(self, client: Redis) -> None:
        """Resets the idle time of what a slow batch holds. Called from the heartbeat's thread, with its client."""
        entries, since = self._held
        if not entries or self._clock() - since < self._heartbeat_ms / 1000:
            return
        stream = Stream(client, self._stream.key, self._stream.where)
        held = stream.pending_among(self._group, [entry.id for entry in entries])
        # a stalled consumer that resumes must not take its former entries back; and what was trimmed is at hand still,
        # while XCLAIM would forget that it is pending
        existing = stream.existing([entry.id for entry in held if entry.consumer == self._consumer])
        ours = [entry.id for entry in held if entry.id in existing]
        stream.keep(self._group, self._consumer, ours, max(1, self._heartbeat_ms // 2))
