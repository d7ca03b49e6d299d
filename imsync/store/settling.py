"""What every store that follows a group has in common: the settlement log, and what the store knows of itself.

Its identity and its generation bind it to its group (`imsync.bus.BoundStore`); its position says what the snapshot
that it was filled from covers.
"""

from __future__ import annotations

import sqlite3
import threading
import uuid
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from imsync.bus import clock
from imsync.bus.entry import id_parts
from imsync.bus.handler import Received, Rejected
from imsync.bus.outcome import DUPLICATE, Ack, Outcome
from imsync.errors import StoreMismatch
from imsync.store.database import Database, Schema
from imsync.store.forgetting import Forgetting
from imsync.store.settlement import (
    DEAD,
    LOST,
    SQL,
    Histogram,
    Percentiles,
    Settled,
    SettledColumns,
    Settlement,
    SettlementTable,
    key_of,
)

SETTLED_HOURS = 168.0
NOWHERE = (0, 0)
"""The position of a store that was filled from no snapshot since events were published."""

_DUPLICATE = DUPLICATE.effect.value


class StoreMeta(NamedTuple):
    """What a store knows of itself. `tables_version` is the `Inbox`'s."""

    store_id: str
    generation: int
    position: str
    position_source: str
    unfinished: bool
    tables_version: int


class SettlingStore:
    """A store that settles events: base of the projections and of `Inbox`.

    Args:
        path: the file.
        schema: what is in it. Its migrations begin with the settlement log's.
        create: make it when it is missing; otherwise it must exist.
        busy_timeout_ms: how long to wait for another process's lock.
        settled_hours: for how long a settled event is remembered at least, so that a repeat of it is recognised.
            Longer than anybody takes to publish an event again.

    Raises:
        StoreUnusable: it is missing, damaged, locked, of another kind or of a newer version.
    """

    def __init__(
        self,
        path: Path,
        schema: Schema,
        *,
        create: bool = False,
        busy_timeout_ms: int = 5000,
        settled_hours: float = SETTLED_HOURS,
    ) -> None:
        self._database = Database(path, schema, busy_timeout_ms=busy_timeout_ms, create=create)
        self._settlements = SettlementTable(self._database)
        self._forgetting = Forgetting(self._database, self._settlements, settled_hours)
        self._lock = threading.RLock()  # a transaction and what is known after it
        self._meta = self._read_meta()
        self._meta_at: int | None = None  # the `changes` of the file for which that is what it holds
        self._snapshot = (0, 0), ""
        self._database.on_reopen = self._check_reopened

    @property
    def path(self) -> Path:
        """The file."""
        return self._database.path

    def close(self) -> None:
        """Closes the file."""
        self._database.close()

    # ── what the store knows of itself ───────────────────────────────────────────────────────────────

    @property
    def store_id(self) -> str:
        """See `imsync.bus.BoundStore`."""
        return self._meta.store_id

    @property
    def generation(self) -> int:
        """See `imsync.bus.BoundStore`. Reads the file.

        Raises:
            StoreUnusable: it cannot be read.
            StoreMismatch: it is older than it was, or is not whole: filling it from a snapshot was cut short.
        """
        with self._lock:
            self._go_on_as(self._read_meta())
            if self._meta.unfinished:
                raise self._mismatch("is not whole: filling it from a snapshot was begun, and has not ended")
            return self._meta.generation

    @property
    def position(self) -> str:
        """The stream entry id up to which a snapshot covers what this store never settled; `0-0` for none. Reads the
        file.
        """
        return self._read_meta().position

    def begin_filling(self) -> None:
        """Makes it another store, which is not whole until `note_snapshot`: whoever has it open sees that it was
        replaced, its group refuses it, and no copy of what it was can take its place later.

        Raises:
            StoreUnusable: nothing was changed.
        """
        store_id = str(uuid.uuid4())
        with self._lock:
            with self._database.atomic() as connection:
                connection.execute(SQL["begin_filling"], (store_id,))
                connection.execute(SQL["unfinished"])
                now = self._read_meta()
            self._meta, self._meta_at = now, None

    def cover(self, events: Iterable[tuple[bytes, str]]) -> None:
        """Records events that a snapshot covers, as far as they are not settled, in one transaction. They are not
        counted.

        Args:
            events: (event id, entry id) pairs, at most about a thousand.

        Raises:
            StoreUnusable: nothing was changed.
        """
        with self._settling() as connection:
            self._settlements.cover(connection, events)

    def note_snapshot(self, position: str, source: str, covered: int, *, agrees: bool = True) -> None:
        """Notes that a snapshot of the source covers everything published up to a position, in one transaction. With
        it the store is whole.

        Both replace what was noted before: the position, and the number of covered events, because the later snapshot
        covers what the earlier one did. Losses noted so far are covered as well, so their number begins at 0 again.

        Args:
            position: the stream entry id of the last event that the snapshot is sure to contain.
            source: the CloudEvents source that the snapshot is of.
            covered: how many events of this source were published up to there and have never been settled here, those
                that `cover` recorded among them. Others that come after all are taken from it again. Negative when
                more were settled than published.

            agrees: whether the store is as the snapshot in all. Then nothing contradicts the source any more.

        Raises:
            ValueError: the position is no entry id, or the source is empty.
            StoreUnusable: nothing was changed.
        """
        id_parts(position)
        if not source:
            raise ValueError("a snapshot is of a source that has a name")
        with self._lock:
            with self._settling() as connection:
                connection.execute(SQL["set_position"], (position, source))
                self._settlements.recognise(connection, source)
                self._settlements.set_covered(connection, source, covered)
                if agrees:
                    self._settlements.end_conflicts(connection)
                connection.execute(SQL["finished"])
            self._meta_at = None

    @contextmanager
    def _settling(self) -> Iterator[sqlite3.Connection]:
        """A write transaction that settles something: it raises the generation by one."""
        with self._lock:
            with self._database.atomic() as connection:
                now, changes = self._meta, self._database.changes
                if self._meta_at != changes:
                    now = self._read_meta()
                    self._check(now)
                    self._snapshot = id_parts(now.position), now.position_source
                self._meta_at = None  # until it is known that this is committed
                connection.execute(SQL["raise_generation"])
                yield connection
            self._meta, self._meta_at = now._replace(generation=now.generation + 1), changes

    def _read_meta(self) -> StoreMeta:
        ((store_id, generation, position, source, unfinished, tables_version),) = self._database.query(SQL["meta"])
        return StoreMeta(store_id, generation, position, source, bool(unfinished), tables_version or 0)

    def _check(self, now: StoreMeta) -> None:
        before = self._meta
        if now.store_id != before.store_id:
            raise self._mismatch("was replaced by another store while in use")
        if now.generation < before.generation:
            raise self._mismatch(
                f"was replaced by an older copy of itself while in use (generation {now.generation} of "
                f"{before.generation})"
            )

    def _go_on_as(self, now: StoreMeta) -> None:
        self._check(now)
        self._meta = now

    def _check_reopened(self) -> None:
        self._go_on_as(self._read_meta())

    def _mismatch(self, what: str) -> StoreMismatch:
        return StoreMismatch(f"{self._database.where} {what}", self._database.schema.catch_up)

    # ── the settlement log ───────────────────────────────────────────────────────────────────────────

    def record_dead(self, dead: Sequence[Rejected]) -> None:
        """Records events that become dead letters. See `imsync.bus.SettlementLog`."""
        with self._settling() as connection:
            self._record_once(
                connection,
                [
                    Settled(key_of(r.event, r.entry_id), DEAD, r.entry_id, (r.event.source or "") if r.event else "")
                    for r in dead
                ],
            )

    def record_lost(self, entry_ids: Sequence[str]) -> None:
        """Records entries that were trimmed before they could be applied. See `imsync.bus.SettlementLog`.

        What was settled, and only not acknowledged any more, is not lost; nor is what the snapshot covers.
        """
        settled = self._settlements.settled_entries(entry_ids)
        with self._settling() as connection:
            covered, _ = self._snapshot
            lost = [entry_id for entry_id in entry_ids if entry_id not in settled and id_parts(entry_id) > covered]
            self._record_once(connection, [Settled(key_of(None, entry_id), LOST, entry_id, "") for entry_id in lost])

    def settled(self, event_ids: Collection[bytes]) -> dict[bytes, Settlement]:
        """How those of the events were settled that are and that are still remembered, by their ids (16 bytes). An
        entry of which no event is known has the id `key_of` gives it.
        """
        return self._settlements.look_up(event_ids)

    def failures(self, after: bytes, limit: int) -> list[tuple[bytes, Settlement]]:
        """At most `limit` events above the id `after` that became dead letters or were lost, in the order of their
        ids.
        """
        return self._settlements.failures(after, limit)

    def record_redriven(self, entry_ids: Sequence[str]) -> None:
        """Forgets that entries were dead because nobody could decode them. See `imsync.bus.RedrivenLog`."""
        with self._settling() as connection:
            self._settlements.end_undecoded(connection, entry_ids)

    def tallies(self) -> dict[tuple[str, str], int]:
        """How many events were settled, by (source, outcome)."""
        return self._settlements.tallies()

    def staleness(self) -> Percentiles:
        """How old events were when they took effect, over the last day."""
        return self._settlements.staleness()

    def staleness_by_hour(self) -> Histogram:
        """The same as counts, hour by hour, over the last two days."""
        return self._settlements.histogram()

    def _record_once(self, connection: sqlite3.Connection, rows: Sequence[Settled]) -> None:
        known = self._settlements.known([row.key for row in rows])
        new: dict[bytes, Settled] = {}
        for row in rows:
            if row.key not in known:
                new.setdefault(row.key, row)
        self._record_new(connection, SettledColumns.of(new.values()))
        self._settlements.note_copies(connection, ((row.key, row.entry_id) for row in rows))

    def _record(
        self,
        connection: sqlite3.Connection,
        keys: Sequence[bytes],
        batch: Sequence[Received[Any]],
        outcomes: Sequence[Outcome],
        known: Mapping[bytes, str],
    ) -> None:
        """Writes the settlement log: new rows, rows that were dead and are not any more, and the repeats' number.

        Args:
            outcomes: of those that are not acknowledged nothing is written.
            known: the outcomes of those that were settled before.
        """
        # as plain texts: SQLite's module takes a subclass of `str` for something to be adapted, and searches how
        kinds = {id(outcome): outcome for outcome in outcomes}
        texts = {kind: outcome.effect.value for kind, outcome in kinds.items() if isinstance(outcome, Ack)}
        effects = [texts.get(id(outcome), "") for outcome in outcomes]
        entry_ids = [entry_id for _, entry_id in batch]
        sources = [event.source or "" for event, _ in batch]
        if known or len(texts) < len(kinds) or _DUPLICATE in texts.values():
            self._record_mixed(connection, list(map(Settled, keys, effects, entry_ids, sources)), known)
        else:
            self._record_new(connection, SettledColumns(keys, effects, entry_ids, sources))

    def _record_mixed(
        self, connection: sqlite3.Connection, settled: Sequence[Settled], known: Mapping[bytes, str]
    ) -> None:
        """As `_record`, when not all of them are acknowledged for the first time."""
        new: list[Settled] = []
        revived: list[Settled] = []
        copies: list[tuple[bytes, str]] = []
        repeats: Counter[tuple[str, str]] = Counter()
        for row in settled:
            if not row.outcome:
                continue
            if row.outcome == _DUPLICATE:
                repeats[row.source, row.outcome] += 1
                copies.append((row.key, row.entry_id))
            elif row.key in known:
                revived.append(row)
                # its letter goes after this is committed: until then it may be redriven as if it were a new one
                copies.append((row.key, max(row.entry_id, f"{clock.now_ms()}-0", key=id_parts)))
            else:
                new.append(row)
        self._record_new(connection, SettledColumns.of(new))
        if revived:
            self._settlements.change(connection, revived)
        if copies:
            self._settlements.note_copies(connection, copies)
            self._settlements.count(connection, repeats)

    def _record_new(self, connection: sqlite3.Connection, new: SettledColumns) -> None:
        self._settlements.record(connection, new)
        position, source = self._snapshot
        if position != NOWHERE:
            pairs = zip(new.sources, new.entry_ids, strict=True)
            n = sum(of == source and id_parts(entry_id) <= position for of, entry_id in pairs)
            self._settlements.lower_covered(connection, source, n)

    def _record_staleness(self, connection: sqlite3.Connection, occurred_ms: Iterable[int]) -> None:
        """Notes how old events are at the moment they take effect, by when they occurred."""
        now_ms = clock.now_ms()
        self._settlements.add_staleness(connection, [now_ms - ms for ms in occurred_ms], now_ms)

    # ── forgetting ───────────────────────────────────────────────────────────────────────────────────

    def prune(self, first_id: str) -> int:
        """Forgets settled events of which no repeat can come any more; how many. See `imsync.bus.PrunedLog`.

        An event is forgotten when its newest entry is no longer in the stream, when both the event and that entry are
        older than `settled_hours`, and when no dead letter holds it. One that was dead is young again when it is
        applied. Each call looks at the next few rows (`forgetting.PRUNE_LIMIT`), in one short transaction; as long as
        it returns some, there may be more.

        Args:
            first_id: the id of the stream's first entry.

        Raises:
            StoreUnusable: nothing was changed.
        """
        return self._forgetting.step(first_id)
