"""Replies of the server as what the rest of imsync knows: entries, pending entries, names."""

from __future__ import annotations

from typing import Any

from imsync.bus.entry import FIELD, Entry, Fields, PendingEntry
from imsync.bus.request import Request


class ReadAhead:
    """A read whose entries are already this consumer's, and are taken when it is ready for them.

    Args:
        count: how many entries were asked for.
        since: when, by the consumer's time.
    """

    def __init__(self, request: Request, count: int, since: float) -> None:
        self._request = request
        self.count = count
        self.since = since

    def entries(self) -> list[Entry]:
        """The entries. To be called once. Raises as `Stream.read_new`."""
        return read_entries(self._request.reply())

    def drop(self) -> None:
        """Does not take them. They are pending in the consumer's name."""
        self._request.drop()


def read_entries(reply: Any) -> list[Entry]:
    """The entries of one stream, from an unparsed reply to XREADGROUP: [[key, [[id, [field, value, …]], …]]], and with
    RESP3 a map instead of the outer pair. An entry that was trimmed while it was pending has nil for its fields.
    """
    if not reply:
        return []
    rows = next(iter(reply.values())) if isinstance(reply, dict) else reply[0][1]
    new = tuple.__new__  # a named tuple's own takes twice as long
    return [
        new(Entry, (entry_id.decode(), flat[1], None))
        if flat is not None and len(flat) == 2 and flat[0] == FIELD
        else Entry.of(entry_id.decode(), _fields(flat))
        for entry_id, flat in rows
    ]


def _fields(flat: Any) -> Fields:
    return dict(zip(flat[::2], flat[1::2], strict=True)) if flat else {}


def parsed_entries(rows: Any) -> list[Entry]:
    """Entries as redis-py gives them, with their fields as a dictionary."""
    return [Entry.of(entry_id.decode(), fields or {}) for entry_id, fields in rows]


def pending_entry(row: Any) -> PendingEntry:
    """A row of XPENDING with a range."""
    return PendingEntry(
        id=row["message_id"].decode(),
        consumer=name_of(row["consumer"]),
        idle_ms=row["time_since_delivered"],
        deliveries=row["times_delivered"],
    )


def name_of(raw: bytes) -> str:
    """A group's or consumer's name. Whoever may use the server has chosen it, and it need not be text: other bytes
    become surrogates, and the same bytes on their way back.
    """
    return raw.decode(errors="surrogateescape")


def raw_name(name: str) -> bytes:
    """The bytes of a name that came from the server."""
    return name.encode(errors="surrogateescape")
