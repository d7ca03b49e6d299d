"""What the group store and the friend store have in common: a replica of every profile, and rows that copy it.

Each instance brings its tables, its statements and its view of the event; the transaction is written once, here.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple
from uuid import uuid4

from imsync.bus.handler import Received, Rejected
from imsync.bus.outcome import APPLIED, DUPLICATE, SUPERSEDED, Outcome
from imsync.im.events import IMBaseEvent
from imsync.im.gate import newest
from imsync.im.user_store import Profile
from imsync.store.database import Database, Schema, placeholders
from imsync.store.projection import CopyState, SourceState
from imsync.store.settlement import CONFLICT, DEAD, LOST, Percentiles, Settled, SettlementTable, key_of
from imsync.store.settlement import SQL as SETTLEMENT_SQL
from imsync.store.sql import load

log = logging.getLogger(__name__)

REPLICA_SQL = load("imsync.im", "replica.sql")

CLOCK_TOLERANCE_MS = 300_000
"""How far the clock of the user service may be thought to step back."""

_LOOKUP_CHUNK = 500


def projection_schema(name: str, application_id: str, tables: str) -> Schema:
    """The schema of a projection: the settlement log, the replica, and tables of its own."""
    return Schema(name, application_id, [";".join((SETTLEMENT_SQL["schema"], REPLICA_SQL["schema"], tables))])


class Replica(NamedTuple):
    """A profile as the projection keeps it: `nick_name` and `head_image` are what its rows copy."""

    user_id: int
    version: int
    nick_name: str
    head_image: str
    deleted: int
    occurred_ms: int

    def contradicts(self, event_replica: Replica) -> bool:
        """Whether an event that was superseded by this state, and never seen before, cannot come from the same
        history: it has this version and other content, or a lower version and a much later time, or it comes after
        a tombstone. (Clocks step; they raise an alarm here and decide nothing.)
        """
        other = event_replica
        if other.version < self.version:
            return other.occurred_ms > self.occurred_ms + CLOCK_TOLERANCE_MS
        return other.version > self.version or (
            (other.nick_name, other.head_image, other.deleted) != (self.nick_name, self.head_image, self.deleted)
        )


class ProfileProjection:
    """A projection of user profiles in one SQLite file. An instance of `imsync.store.projection.Projection`.

    Args:
        path: the file.
        create: make it; otherwise it must exist.

    Raises:
        StoreUnusable: it is missing, damaged, locked, of another kind or of a newer version.
    """

    name: ClassVar[str]
    """The projection's name and its consumer group's."""
    events: ClassVar[Sequence[type[IMBaseEvent]]]
    """The views that it takes."""
    schema: ClassVar[Schema]
    sql: ClassVar[Mapping[str, str]]
    picture: ClassVar[str]
    """The field of the profile that the copies take their picture from."""

    def __init__(self, path: Path, *, create: bool = False, busy_timeout_ms: int = 5000) -> None:
        self._database = Database(path, self.schema, busy_timeout_ms=busy_timeout_ms, create=create)
        self._settlements = SettlementTable(self._database)

    @property
    def path(self) -> Path:
        """The file."""
        return self._database.path

    def replica_of(self, event: IMBaseEvent) -> Replica:
        """What the event says, as this projection keeps it. Empty content for a tombstone."""
        occurred_ms = int(event.occurred_at.timestamp() * 1000)
        if event.final:
            return Replica(event.id, event.version, "", "", True, occurred_ms)
        view: Any = event
        return Replica(event.id, event.version, view.nick_name, getattr(view, self.picture), False, occurred_ms)

    def expected(self, source: SourceState) -> tuple[str, ...]:
        """The (nick_name, head_image) that a right copy of this source has."""
        return source.content["nick_name"], source.content[self.picture]

    # ── the bus's handler ────────────────────────────────────────────────────────────────────────────

    def apply(self, batch: Sequence[Received[IMBaseEvent]]) -> list[Outcome]:
        """Applies a batch in one transaction: newest per user, repeats and older versions change nothing.

        Raises:
            StoreUnusable: nothing was applied; try again.
        """
        with self._database.atomic() as connection:
            keys = [received.event.event_id.bytes for received in batch]
            known = self._settlements.known(keys)
            fresh: dict[bytes, Received[IMBaseEvent]] = {}  # of a repeat within the batch the first counts
            for key, received in zip(keys, batch, strict=True):
                if key not in fresh and known.get(key, DEAD) == DEAD:
                    fresh[key] = received
            events = [received.event for received in fresh.values()]
            winners = newest(events, self._versions({event.id for event in events}))
            replicas = {user_id: self.replica_of(event) for user_id, event in winners.items()}
            self._write(connection, replicas.values())
            outcomes: list[Outcome] = [
                DUPLICATE
                if fresh.get(key) is not received
                else APPLIED
                if winners.get(received.event.id) is received.event
                else SUPERSEDED
                for key, received in zip(keys, batch, strict=True)
            ]
            self._record(connection, keys, batch, outcomes, known)
            now_ms = _now_ms()
            ages = [now_ms - replica.occurred_ms for replica in replicas.values()]
            self._settlements.add_staleness(connection, ages, now_ms)
            self._raise_alarms(connection, [event for event in events if winners.get(event.id) is not event], replicas)
        return outcomes

    def record_dead(self, dead: Sequence[Rejected]) -> None:
        """Records events that become dead letters. See `imsync.bus.SettlementLog`."""
        self._record_once(
            Settled(key_of(r.event, r.entry_id), DEAD, r.entry_id, (r.event.source or "") if r.event else "")
            for r in dead
        )

    def record_lost(self, entry_ids: Sequence[str]) -> None:
        """Records entries that were trimmed before they could be applied. See `imsync.bus.SettlementLog`."""
        settled = self._settlements.settled_entries(entry_ids)  # settled, and killed before it was acknowledged
        self._record_once(
            Settled(key_of(None, entry_id), LOST, entry_id, "") for entry_id in entry_ids if entry_id not in settled
        )

    def _record_once(self, settled: Iterable[Settled]) -> None:
        with self._database.atomic() as connection:
            rows = {row.key: row for row in settled}
            known = self._settlements.known(list(rows))
            self._settlements.record(connection, [row for key, row in rows.items() if key not in known])

    def _record(
        self,
        connection: sqlite3.Connection,
        keys: Sequence[bytes],
        batch: Sequence[Received[IMBaseEvent]],
        outcomes: Sequence[Outcome],
        known: Mapping[bytes, str],
    ) -> None:
        """Writes the settlement log: new rows, rows that were dead and are not any more, and the repeats' number."""
        new: list[Settled] = []
        revived: list[Settled] = []
        repeats: Counter[tuple[str, str]] = Counter()
        for key, received, outcome in zip(keys, batch, outcomes, strict=True):
            source = received.event.source or ""
            if outcome is DUPLICATE:
                repeats[source, DUPLICATE.effect] += 1
            else:
                effect = APPLIED.effect if outcome is APPLIED else SUPERSEDED.effect
                (revived if key in known else new).append(Settled(key, effect, received.entry_id, source))
        self._settlements.record(connection, new)
        self._settlements.change(connection, revived)
        self._settlements.count(connection, repeats)

    def _write(self, connection: sqlite3.Connection, replicas: Iterable[Replica]) -> None:
        ordered = sorted(replicas, key=lambda replica: replica.user_id)  # as the tables are clustered
        connection.executemany(REPLICA_SQL["write_replica"], ordered)
        connection.executemany(self.sql["write_copies"], [(r.nick_name, r.head_image, r.user_id) for r in ordered])

    def _raise_alarms(
        self,
        connection: sqlite3.Connection,
        superseded: Sequence[IMBaseEvent],
        replicas: Mapping[int, Replica],
    ) -> None:
        """Compares events that were superseded, and never seen before, with what superseded them."""
        elsewhere = {event.id for event in superseded} - replicas.keys()
        applied = {**replicas, **self._replicas(elsewhere)}
        for event in superseded:
            if applied[event.id].contradicts(self.replica_of(event)):
                self._settlements.count(connection, {(event.source or "", CONFLICT): 1})
                log.error(
                    "user %d: unknown event %s at version %d contradicts the applied version %d: "
                    "was the user store restored from a backup?",
                    event.id, event.event_id, event.version, applied[event.id].version,
                )  # fmt: skip

    # ── reading ──────────────────────────────────────────────────────────────────────────────────────

    def states(self, after: int, limit: int) -> list[CopyState]:
        """The states of at most `limit` users above the id `after`, in rising order."""
        return [
            CopyState(user_id, version, bool(deleted), (nick_name, head_image), rows, int(stale))
            for user_id, version, deleted, nick_name, head_image, rows, stale in self._database.query(
                self.sql["states"], (after, limit)
            )
        ]

    def state(self, key: int) -> CopyState | None:
        """One user's state; None when nothing is known of it and no row copies it."""
        rows = self.states(key - 1, 1)
        return rows[0] if rows and rows[0].key == key else None

    def tallies(self) -> dict[tuple[str, str], int]:
        """How many events were settled, by (source, outcome)."""
        return self._settlements.tallies()

    def staleness(self) -> Percentiles:
        """How old edits were when their copies were brought up to date, over the last day."""
        return self._settlements.staleness()

    def close(self) -> None:
        """Closes the file."""
        self._database.close()

    # ── bootstrap ────────────────────────────────────────────────────────────────────────────────────

    def _bootstrap_replicas(self, connection: sqlite3.Connection, profiles: Iterable[Profile], source: str) -> None:
        """Fills a fresh store from a snapshot of the source."""
        self._settlements.recognise(connection, source)
        now_ms = _now_ms()
        connection.execute(REPLICA_SQL["set_meta"], ("store_id", str(uuid4())))
        connection.executemany(
            REPLICA_SQL["write_replica"],
            (
                (p.id, p.version, *self.expected(_as_source(p)), p.deleted, now_ms)
                for p in profiles
            ),
        )  # fmt: skip

    def _versions(self, user_ids: set[int]) -> dict[int, int]:
        return dict(self._lookup("versions", user_ids))

    def _replicas(self, user_ids: set[int]) -> dict[int, Replica]:
        return {row[0]: Replica(*row) for row in self._lookup("replicas", user_ids)}

    def _lookup(self, statement: str, user_ids: set[int]) -> Iterable[tuple[Any, ...]]:
        ids = sorted(user_ids)
        for start in range(0, len(ids), _LOOKUP_CHUNK):
            chunk = ids[start : start + _LOOKUP_CHUNK]
            yield from self._database.query(REPLICA_SQL[statement] + placeholders(len(chunk)), chunk)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _as_source(p: Profile) -> SourceState:
    content = {"nick_name": p.nick_name, "head_image": p.head_image, "head_image_thumb": p.head_image_thumb}
    return SourceState(p.id, p.version, bool(p.deleted), content)
