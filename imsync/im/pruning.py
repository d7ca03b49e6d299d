"""Pruning of the outbox: what was sent goes when it is old and no group needs it any more."""

from __future__ import annotations

import time
from collections.abc import Callable

from imsync.bus.retention import floor
from imsync.bus.stream import Stream
from imsync.im.outbox import Outbox

EVERY_SECONDS = 60.0
BATCH = 1000
"""How many rows one transaction deletes at most, so that no edit waits for long."""

_HOUR_MS = 3_600_000


class Pruning:
    """Deletes sent rows of an outbox, a batch at a time, about once a minute.

    Only those go that every group has acknowledged. Such a row is never missed: wherever its entry is lost, its effect
    is in every store.

    Args:
        outbox: the rows.
        stream: whose groups are asked. While it has none, nothing goes.
        keep_hours: how long rows stay at least.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        outbox: Outbox,
        stream: Stream,
        *,
        keep_hours: float = 168.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._outbox = outbox
        self._stream = stream
        self._keep_ms = int(keep_hours * _HOUR_MS)
        self._clock = clock
        self._next = 0.0

    def step(self) -> bool:
        """Deletes a batch when it is time to; whether there may be another one at once.

        Raises:
            RedisUnreachable, RedisRefused, StoreUnusable: tried again in a minute.
        """
        if (now := self._clock()) < self._next:
            return False
        self._next = now + EVERY_SECONDS
        if not self._delete():
            return False
        self._next = now
        return True

    def _delete(self) -> int:
        now_ms = self._outbox.clock_ms()
        oldest_ms = self._outbox.oldest_sent_ms()
        # a row from the future was sent before the clock was set back, and older ones may come after it
        if oldest_ms is None or now_ms - self._keep_ms < oldest_ms <= now_ms:
            return 0
        needed = floor(self._stream)
        return self._outbox.prune_sent(now_ms - self._keep_ms, needed.id, BATCH) if needed else 0
