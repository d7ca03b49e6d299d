"""What the stream has lost of what was sent to it: by a restart, a failover, a FLUSHALL, a deletion.

Redis forgets backwards. A file that misses its end, a replica that was behind, an empty server: what is gone is always
the last part of what there was, or all of it. So it is enough to look at the rows behind which a loss can have happened
since the last look, and to walk back from there only when one is gone.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence

from imsync.bus.entry import Entry, id_parts
from imsync.bus.publisher import Publisher
from imsync.im.outbox import ALL_PLACES, Outbox, SentRow

log = logging.getLogger(__name__)

CHUNK = 1000
"""How many rows one step of the walk back looks at, and one transaction makes unsent."""

CLOCK_MARGIN_MS = 60_000
"""The server's clock trims, this machine's notes when a row was sent: one this close to the limit may be trimmed."""

_HOUR_MS = 3_600_000


class LossCheck:
    """Finds sent rows that the stream has lost, and makes them unsent.

    Args:
        outbox: the rows, with what was sent and where it was put.
        publisher: where to.
        history_hours: what was sent before may have been trimmed: the `min_hours` of the stream's retention.
        on_lost: called with the number of rows that were made unsent, after they were.
    """

    def __init__(
        self,
        outbox: Outbox,
        publisher: Publisher,
        *,
        history_hours: float = 24.0,
        on_lost: Callable[[int], None] = lambda n: None,
    ) -> None:
        self._outbox = outbox
        self._publisher = publisher
        self._history_ms = int(history_hours * _HOUR_MS) - CLOCK_MARGIN_MS
        self._on_lost = on_lost

    def look(self) -> int:
        """Looks for a loss; how many rows wait to be sent again because of one.

        To be called before every round trip, so that at most one lies between two looks. What a loss took last then
        is, by when it came: the last row of all, the last one before the newest round trip, or, when it came into the
        middle of that, its first row too.

        Raises:
            RedisUnreachable, RedisRefused: what was made unsent by then stays so, and the next look finds the rest.
        """
        lost = self._lost(self._outbox.newest_sent())
        return self._walk_back(min(row.place for row in lost)) if lost else 0

    def _walk_back(self, known: int) -> int:
        """Makes unsent, the newest first, all rows from the first lost one on; how many.

        Those after it go out again even if the stream has them, so that each user's events stand in their order:
        readers recognise the repeats.

        Args:
            known: the place of a row that is lost.
        """
        taken, below = 0, ALL_PLACES
        try:
            while rows := self._outbox.sent_below(below, CHUNK):
                first = min([known, *(row.place for row in self._lost(rows))])
                if rows[0].place < first:
                    break  # this chunk is whole, and so is all that was sent before it
                from_here = max(first, rows[-1].place)
                taken += self._outbox.take_back(from_here, below)
                below = from_here
        finally:
            if taken:
                stream = self._publisher.stream
                log.error("%s at %s has lost events: the last %d are sent again", stream.key, stream.where, taken)
                self._on_lost(taken)
        return taken

    def _lost(self, rows: Sequence[SentRow]) -> list[SentRow]:
        """Those that are gone and were not trimmed: they were sent too lately for that, or the stream as it is never
        came as far as their ids. (Trimming leaves a stream's `last-generated-id` as it is.)
        """
        gone = self._gone(rows)
        trimmed_before_ms = self._outbox.clock_ms() - self._history_ms
        if all(row.sent_ms > trimmed_before_ms for row in gone):
            return gone
        info = self._publisher.persist(self._publisher.stream.info)
        reached = id_parts(info.last_generated_id if info else "0-0")
        return [row for row in gone if row.sent_ms > trimmed_before_ms or id_parts(row.entry_id) > reached]

    def _gone(self, rows: Sequence[SentRow]) -> list[SentRow]:
        """Those that the stream does not hold. Contents are compared: a server that lost entries may give their ids
        again, and does so when its clock is behind them.
        """
        waiting = deque(sorted(rows, key=lambda row: id_parts(row.entry_id)))
        gone: list[SentRow] = []
        while waiting:
            start, end = waiting[0].entry_id, waiting[-1].entry_id
            # other producers' entries may lie in between: then it takes further pages, each from a row of ours on
            page = self._page(start, end, len(rows))
            bodies = {entry.id: entry.body for entry in page}
            reached = id_parts(page[-1].id if len(page) == len(rows) else end)
            while waiting and id_parts(waiting[0].entry_id) <= reached:
                row = waiting.popleft()
                if bodies.get(row.entry_id) != row.body:
                    gone.append(row)
        return gone

    def _page(self, start: str, end: str, count: int) -> Sequence[Entry]:
        return self._publisher.persist(lambda: self._publisher.stream.range(start, end, count))
