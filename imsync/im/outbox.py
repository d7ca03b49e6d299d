"""The outbox of the user store: what is to be published, what was, and where in the stream it stands.

A row is unsent, then sent. It becomes unsent again when the stream has lost its entry, and it is pruned once it is old
and every group has acknowledged it.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from imsync.bus.entry import id_parts
from imsync.im.announcing import Announcement
from imsync.store.database import Database
from imsync.store.sql import load

SQL = load("imsync.im", "outbox.sql")

ALL_PLACES = 2**63 - 1
"""Above the place of every sent row."""


class OutboxRow(NamedTuple):
    """An event that is to be published."""

    seq: int
    user_id: int
    body: bytes


@dataclass(frozen=True, slots=True)
class OutboxBacklog:
    """What was not sent yet. `oldest_seconds` is None when there is nothing."""

    unsent: int
    oldest_seconds: float | None


@dataclass(frozen=True, slots=True)
class SentRow:
    """An event that was published.

    Args:
        place: its place in the order of sending, which is not that of `seq`: a row that Redis refused at first is
            sent after later ones.
        entry_id: where in the stream it was put.
        sent_ms: when, by this machine's clock.
        body: what was sent.
    """

    place: int
    entry_id: str
    sent_ms: int
    body: bytes


@dataclass(frozen=True, slots=True)
class RememberedEvent:
    """An event of a user that the outbox still remembers.

    Args:
        event_id: its 16 bytes.
        created_ms: when the edit was committed, in unix milliseconds.
        entry_id, sent_ms: where in the stream it was put and when; None when it waits to be sent.
    """

    seq: int
    event_id: bytes
    version: int
    body: bytes
    created_ms: int
    entry_id: str | None
    sent_ms: int | None


class Outbox:
    """The outbox in the user store's file.

    Args:
        database: the open file.
        clock_ms: this machine's clock, in unix milliseconds.
    """

    def __init__(self, database: Database, clock_ms: Callable[[], int]) -> None:
        self._database = database
        self.clock_ms = clock_ms
        """The clock that says when a row was sent."""
        self.filled = threading.Event()
        """Set when a transaction of this process has put rows into the outbox. Who waits for that clears it."""

    # ── sending ──────────────────────────────────────────────────────────────────────────────────────

    def unsent(self, limit: int, after_seq: int = 0) -> list[OutboxRow]:
        """The oldest rows that wait to be sent, in the order of the edits."""
        return [OutboxRow._make(row) for row in self._database.query(SQL["unsent"], (after_seq, limit))]

    def unsent_and_state(self, limit: int, after_seq: int = 0) -> tuple[list[OutboxRow], tuple[int, int] | None]:
        """What `unsent` and `sending_state` return, of one moment. Without rows it does not say in which state."""
        found = self._database.query(SQL["unsent_and_state"], (after_seq, limit))
        return [OutboxRow._make(row[:3]) for row in found], found[0][3:] if found else None

    def mark_sent(self, sent: Iterable[tuple[int, str]]) -> int:
        """Notes (seq, entry id) pairs of one round trip as published, in the order in which they were sent; how many
        were not noted before.
        """
        pairs, now = list(sent), self.clock_ms()
        if not pairs:
            return 0
        seqs = [seq for seq, _ in pairs]
        with self._database.atomic() as connection:
            (last,) = connection.execute(SQL["last_place"]).fetchone()
            if len(pairs) == 1:
                noted = connection.execute(SQL["mark_sent"], (pairs[0][1], now, last + 1, seqs[0])).rowcount
            elif seqs == list(range(seqs[0], seqs[0] + len(seqs))):  # as they mostly are: then one statement does
                ids = json.dumps([entry_id for _, entry_id in pairs])
                noted = connection.execute(SQL["mark_run_sent"], (now, last + 1, seqs[0], ids)).rowcount
            else:
                rows = [(entry_id, now, place, seq) for place, (seq, entry_id) in enumerate(pairs, start=last + 1)]
                noted = connection.executemany(SQL["mark_sent"], rows).rowcount
            if noted:
                connection.execute(SQL["count_round_trip"], (last + 1, noted))
        return noted

    def backlog(self) -> OutboxBacklog:
        """How much waits in the outbox, and for how long."""
        unsent, oldest_ms = self._database.query(SQL["backlog"])[0]
        age = None if oldest_ms is None else max(0.0, (self.clock_ms() - oldest_ms) / 1000)
        return OutboxBacklog(unsent, age)

    def published(self) -> int:
        """How many events were published, since the store was made. Those that were lost count when sent again."""
        return self._counter("published")

    def written(self) -> int:
        """How many events there are: those that were published, and those that wait."""
        return int(self._database.query(SQL["written"])[0][0])

    def events_of(self, user_id: int, limit: int = 100) -> list[RememberedEvent]:
        """A user's newest events that the outbox remembers, the newest first."""
        return [RememberedEvent(*row) for row in self._database.query(SQL["of_user"], (user_id, limit))]

    # ── sending again ────────────────────────────────────────────────────────────────────────────────

    def sending_state(self) -> tuple[int, int]:
        """Two numbers that are others after every round trip that was noted."""
        place, resent = self._database.query(SQL["sending_state"])[0]
        return place, resent

    def newest_sent(self) -> list[SentRow]:
        """Of the last round trip the last and the first row, and the last row before it, as far as there are any."""
        return self._sent(SQL["newest_sent"])

    def sent_below(self, place: int, limit: int) -> list[SentRow]:
        """The rows that were sent last before a place, the last one first."""
        return self._sent(SQL["sent_below"], (place, limit))

    def sent_after(self, place: int, limit: int) -> list[tuple[int, bytes, str]]:
        """The rows that were sent next after a place, the first one first: (place, event id, entry id)."""
        return [
            (at, event_id, entry_id)
            for at, event_id, entry_id in self._database.query(SQL["sent_after"], (place, limit))
        ]

    def take_back(self, first: int, below: int) -> int:
        """Makes the rows from one place to below another unsent again; how many. They count as `resent`."""
        with self._database.atomic() as connection:
            taken = connection.execute(SQL["take_back"], (first, below)).rowcount
            connection.execute(SQL["add_to_counter"], (-taken, "published"))
            connection.execute(SQL["add_to_counter"], (taken, "resent"))
        return taken

    def resent(self) -> int:
        """How many rows became unsent again because the stream had lost them, since the store was made."""
        return self._counter("resent")

    # ── pruning ──────────────────────────────────────────────────────────────────────────────────────

    def oldest_sent_ms(self) -> int | None:
        """When the row that was sent first was sent, of those that are kept; None when there is none."""
        rows = self._database.query(SQL["oldest_sent"], (1,))
        return int(rows[0][2]) if rows else None

    def prune_sent(self, before_ms: int, below_entry_id: str, limit: int) -> int:
        """Deletes sent rows, in one transaction; how many.

        Args:
            before_ms: those that were sent before this time, in unix milliseconds.
            below_entry_id: and that stand below this entry of the stream.
            limit: of the rows that were sent first, how many are looked at.
        """
        floor = id_parts(below_entry_id)
        with self._database.atomic() as connection:
            past = [
                (seq,)
                for seq, entry_id, sent_ms in connection.execute(SQL["oldest_sent"], (limit,))
                if sent_ms < before_ms and id_parts(entry_id) < floor
            ]
            connection.executemany(SQL["forget"], past)
        return len(past)

    # ── inside a transaction ─────────────────────────────────────────────────────────────────────────

    def _enqueue(self, connection: sqlite3.Connection, events: Sequence[Announcement]) -> int:
        """Adds events; the last row's seq, 0 when there are none."""
        if not events:
            return 0
        now = self.clock_ms()
        connection.executemany(SQL["enqueue"], [(*event, now) for event in events])
        return int(connection.execute(SQL["last_seq"]).fetchone()[0])

    def _sent(self, statement: str, parameters: Sequence[int] = ()) -> list[SentRow]:
        return [SentRow(*row) for row in self._database.query(statement, parameters)]

    def _counter(self, name: str) -> int:
        return int(self._database.query(SQL["counter"], (name,))[0][0])
