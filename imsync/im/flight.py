"""What is on its way to a group, as `verify` asks it."""

from __future__ import annotations

from collections.abc import Sequence

from imsync.bus.entry import id_parts
from imsync.bus.stream import Stream
from imsync.errors import GroupMissing


class GroupFlight:
    """The undelivered and pending entries of a group. An instance of `imsync.im.verify.Flight`."""

    def __init__(self, stream: Stream, group: str) -> None:
        self._stream = stream
        self._group = group
        self._last_delivered = (0, 0)
        self._existing: set[str] = set()
        self._pending: set[str] = set()

    def refresh(self, entry_ids: Sequence[str]) -> None:
        """Looks at the group: first how far it was given entries, then what it holds. An entry that is neither
        undelivered nor pending was then settled before this returns.
        """
        groups = {info.name: info.last_delivered_id for info in self._stream.groups()}
        self._last_delivered = id_parts(groups.get(self._group, "0-0"))
        try:
            self._pending = {entry.id for entry in self._stream.pending_among(self._group, entry_ids)}
        except GroupMissing:
            self._pending = set()
        self._existing = self._stream.existing(entry_ids)

    def is_undelivered(self, entry_id: str) -> bool:
        """Whether the group was not given this entry when last looked at."""
        return id_parts(entry_id) > self._last_delivered

    def is_pending(self, entry_id: str) -> bool:
        """Whether a consumer held it when last looked at."""
        return entry_id in self._pending

    def is_gone(self, entry_id: str) -> bool:
        """Whether the stream did not hold the entry when last looked at."""
        return entry_id not in self._existing
