"""What is on its way to a group, as `verify` asks it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol
from uuid import UUID

from imsync.bus.entry import StreamInfo, id_parts
from imsync.errors import GroupMissing
from imsync.im.causes import Cause, Place, Whereabouts

if TYPE_CHECKING:
    from imsync.bus.stream import Stream

LETTERS = 1000
"""How many dead letters one look for a reason reads at most."""


class Flight(Protocol):
    """What is on its way to a group, as it was at the last `refresh`."""

    def refresh(self, entry_ids: Sequence[str]) -> None:
        """Looks at the group, and at these entries, again. An entry that is neither undelivered nor pending was then
        settled before this returns.
        """
        ...

    def look(self, entry_id: str) -> Whereabouts:
        """Where one of these entries was."""
        ...

    def reason(self, event_id: bytes, entry_id: str) -> str:
        """Why an event became a dead letter; empty when its dead letter is not found.

        Args:
            entry_id: of the event, in the stream.
        """
        ...


class GroupFlight:
    """The undelivered and pending entries of a group. An instance of `Flight`.

    Args:
        stream: the events.
        group: the consumer group.
        dead: the group's dead letters, for their reasons.
    """

    def __init__(self, stream: Stream, group: str, dead: Stream | None = None) -> None:
        self._stream = stream
        self._group = group
        self._dead = dead
        self._last_delivered = (0, 0)
        self._existing: set[str] = set()
        self._pending: dict[str, str] = {}
        self._info: StreamInfo | None = None

    def refresh(self, entry_ids: Sequence[str]) -> None:
        """Looks at the group: first how far it was given entries, then what it holds."""
        groups = {info.name: info.last_delivered_id for info in self._stream.groups()}
        self._last_delivered = id_parts(groups.get(self._group, "0-0"))
        try:
            held = self._stream.pending_among(self._group, entry_ids)
            self._pending = {entry.id: entry.consumer for entry in held}
        except GroupMissing:
            self._pending = {}
        self._existing = self._stream.existing(entry_ids)
        if len(self._existing) < len(set(entry_ids)):
            self._info = self._stream.info()

    def look(self, entry_id: str) -> Whereabouts:
        """Where one of these entries was."""
        holder = self._pending.get(entry_id)
        if holder is not None:
            place = Place.PENDING
        else:
            place = Place.UNDELIVERED if id_parts(entry_id) > self._last_delivered else Place.PASSED
        return Whereabouts(place, holder or "", None if entry_id in self._existing else self._gone(entry_id))

    def _gone(self, entry_id: str) -> Cause:
        """Why an entry is not in the stream. Trimming takes the front, and leaves the ids that were given as they
        are; what a server loses is the end, or all.
        """
        info = self._info
        if info is None or id_parts(entry_id) > id_parts(info.last_generated_id) or info.removed == 0:
            return Cause.LOST_BY_SERVER
        in_front = info.first_id is None or id_parts(entry_id) < id_parts(info.first_id)
        return Cause.TRIMMED if in_front else Cause.LOST_BY_SERVER

    def reason(self, event_id: bytes, entry_id: str) -> str:
        """Why an event became a dead letter; empty when its dead letter is not among the first that were written
        after its entry.
        """
        from imsync.bus.dead_letter import read

        if self._dead is None:
            return ""
        wanted = str(UUID(bytes=event_id))
        letters = map(read, self._dead.range(f"{id_parts(entry_id)[0]}-0", "+", LETTERS))
        return next((letter.reason for letter in letters if letter.event_id == wanted), "")


class ExportFlight:
    """What was on its way to a group when its copies were exported. An instance of `Flight`.

    Args:
        barrier: the entry id below which everything had been settled before the copies were read.
        live: the group as it is now; None when nobody can look at it.
    """

    def __init__(self, barrier: str, live: Flight | None = None) -> None:
        self._barrier = id_parts(barrier)
        self._live = live

    def refresh(self, entry_ids: Sequence[str]) -> None:
        """Looks at the group as it is now."""
        if self._live is not None:
            self._live.refresh(entry_ids)

    def look(self, entry_id: str) -> Whereabouts:
        """Where one of these entries was when the copies were read; or now, if it never came to them."""
        now = self._live.look(entry_id) if self._live is not None else None
        if id_parts(entry_id) < self._barrier:
            return Whereabouts(Place.PASSED, gone=now.gone if now else None)
        if now is not None and now.place is not Place.PASSED:
            return now
        return Whereabouts(Place.AFTER_EXPORT)

    def reason(self, event_id: bytes, entry_id: str) -> str:
        """Why an event became a dead letter; empty when nobody can look."""
        return self._live.reason(event_id, entry_id) if self._live is not None else ""


def barrier(stream: Stream, group: str) -> str:
    """An entry id below which everything has been settled by the group: what it was never given is at it or above,
    and so is what its consumers hold.
    """
    last = next((info.last_delivered_id for info in stream.groups() if info.name == group), None)
    if last is None:
        return "0-0"
    milliseconds, sequence = id_parts(last)
    following = milliseconds, sequence + 1
    try:
        oldest = stream.pending_summary(group).oldest_id
    except GroupMissing:
        return "0-0"
    lowest = min(following, id_parts(oldest)) if oldest else following
    return f"{lowest[0]}-{lowest[1]}"
