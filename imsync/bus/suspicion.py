"""Entries that keep coming back, and may be what ended the consumers that had them.

A delivery count alone proves nothing, because a flapping network raises it too: what came back to this living process
is taken off, and the rest is only a suspicion. A suspect is tried alone, under a durable mark.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from imsync.bus.attempts import Attempts
from imsync.bus.entry import Entry, id_parts
from imsync.bus.stream import Stream

SUSPICIOUS_DELIVERIES = 2
"""An entry that others were given so often, and that nobody settled, may be what ended them."""


class Suspicion:
    """The suspects that one consumer holds.

    Args:
        attempts: the records of this consumer's group.
    """

    def __init__(self, stream: Stream, group: str, attempts: Attempts) -> None:
        self._stream = stream
        self._group = group
        self._attempts = attempts
        self._suspects: dict[str, Entry] = {}
        self._given_again: dict[str, int] = {}  # how often entries came back to this process, which lives
        self._marked: set[str] = set()

    def __len__(self) -> int:
        return len(self._suspects)

    def __contains__(self, entry_id: str) -> bool:
        return entry_id in self._suspects

    def sift(self, entries: Sequence[Entry]) -> list[Entry]:
        """Sets suspects aside; the other entries."""
        ids = [entry.id for entry in entries]
        if not ids:
            return []
        self._attempts.look_up(ids)
        deliveries = {held.id: held.deliveries for held in self._stream.pending_among(self._group, ids)}
        unsuspicious: list[Entry] = []
        for entry in entries:
            again = self._given_again[entry.id] = self._given_again.get(entry.id, 0) + 1
            if entry.fields and deliveries.get(entry.id, 0) - again >= SUSPICIOUS_DELIVERIES:
                self._suspects[entry.id] = entry
            else:
                unsuspicious.append(entry)
        return unsuspicious

    def next(self) -> tuple[Entry, int] | None:
        """The suspect on which the fewest consumers died, with the number of these deaths; None without any."""
        if not self._suspects:
            return None
        deaths = self._attempts.deaths(self._suspects)
        entry_id = min(deaths, key=lambda each: (deaths[each], id_parts(each)))
        return self._suspects[entry_id], deaths[entry_id]

    def begin(self, entry_id: str) -> None:
        """Marks a suspect as being tried alone. Must be done before it is."""
        self._marked.add(entry_id)  # first, so that the mark is removed however this ends
        self._attempts.begin(entry_id)

    def survived(self) -> None:
        """Removes the marks: whatever became of what was tried, this process lives."""
        if self._marked:
            self._attempts.survived(sorted(self._marked))
            self._marked.clear()

    def forget(self, ids: Iterable[str]) -> None:
        """Forgets entries that were processed, or that are somebody else's by now."""
        if self._suspects or self._given_again:
            for entry_id in ids:
                self._suspects.pop(entry_id, None)
                self._given_again.pop(entry_id, None)
