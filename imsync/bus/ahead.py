"""What comes next, asked for while a batch is settled, so that the server looks for it meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable

from imsync.bus.entry import Entry
from imsync.bus.replies import ReadAhead
from imsync.bus.stream import Stream

LONG_SECONDS = 3600.0
"""Much less than any store remembers what it has settled."""


class Ahead:
    """The entries that one consumer has asked for and not yet taken. They are pending in its name. True when there are
    any, or may be.

    Args:
        consumer: whose.
        stale_seconds: for how long nobody need tell the server that somebody works on them.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        stream: Stream,
        group: str,
        consumer: str,
        stale_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream
        self._group = group
        self._consumer = consumer
        self._stale_seconds = stale_seconds
        self._clock = clock
        self._request: ReadAhead | None = None
        self.more_waits = False
        """Whether the last look for something new found as much as it asked for."""

    def __bool__(self) -> bool:
        return self._request is not None

    @property
    def since(self) -> float | None:
        """When it asked, by its clock; None when it has not."""
        return self._request.since if self._request else None

    def ask(self, count: int) -> None:
        """Asks for at most so many entries, unless it has asked already."""
        if self._request is None:
            self._request = self._stream.begin_read_new(self._group, self._consumer, count, self._clock())

    def take(self) -> list[Entry]:
        """What was asked for; empty when nothing was."""
        request, self._request = self._request, None
        if request is None:
            return []
        entries = request.entries()
        self.more_waits = len(entries) == request.count
        seconds = self._clock() - request.since
        if seconds < self._stale_seconds:
            return entries
        # all this time the server was not told that somebody works on them: others may have taken some over
        held = {entry.id: entry.consumer for entry in self._stream.pending_among(self._group, [e.id for e in entries])}
        # what nobody holds was settled by others, and will be found to be, or was dropped with this consumer: without
        # it nobody would settle that. But who settled it long ago may have forgotten it.
        nobody = self._consumer if seconds < LONG_SECONDS else ""
        return [entry for entry in entries if held.get(entry.id, nobody) == self._consumer]

    def drop(self) -> None:
        """Leaves pending what was asked for."""
        if self._request is not None:
            self._request.drop()
            self._request = None
