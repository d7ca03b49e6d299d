"""The settlement log: which events are done, how, and how many of each.

Its rows are written in the transaction of the data, so that a repeat is recognised however a process died, and
the accounting closes.
"""

from __future__ import annotations

import math
import sqlite3
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from imsync.bus.event import Event
from imsync.bus.outcome import Effect
from imsync.store.database import Database
from imsync.store.sql import insert_many, load, look_up

SQL = load("imsync.store", "settlement.sql")

DEAD = "dead"
LOST = "lost"
"""The entry was trimmed from the stream before it could be applied."""
CONFLICT = "conflict"
"""An event that nobody had seen before carried a version that is taken, with other content: the source of the
versions was restored from a backup. Counted beside the outcomes, and an alarm."""

COVERED = "covered"
"""An event that was published and that this store never settled: the snapshot that the store was filled from covers
it. Counted beside the outcomes."""

UNDECODED = b"entry:"
"""What the keys of entries begin with that could not be decoded: above each UUIDv7 of the next three thousand years."""

MAX_SOURCES = 64
"""Sources beyond so many are counted together under the empty name: they come from the outside."""

_LOOK_AHEAD = 500
_HOUR_MS = 3_600_000
_STALENESS_HOURS = 48


Histogram = Mapping[int, Mapping[int, int]]
"""How many edits were how old: by hour (since 1970) and bucket, which is floor(20 * log10(milliseconds))."""


class Settled(NamedTuple):
    """One event to record as settled."""

    key: bytes
    outcome: str
    entry_id: str
    source: str


class SettledColumns(NamedTuple):
    """Many events to record as settled, as columns: the first event is the first in each. A batch of thousands takes
    less time and memory so.
    """

    keys: Sequence[bytes] = ()
    outcomes: Sequence[str] = ()
    entry_ids: Sequence[str] = ()
    sources: Sequence[str] = ()

    @classmethod
    def of(cls, rows: Iterable[Settled]) -> SettledColumns:
        """The same as columns."""
        return cls(*zip(*rows, strict=True))


class Settlement(NamedTuple):
    """How an event was settled, and the newest entry of it that is known."""

    outcome: str
    entry_id: str


@dataclass(frozen=True, slots=True)
class Percentiles:
    """How stale copies were when they were brought up to date, in milliseconds, to about 12 %. None: no data."""

    p50_ms: float | None
    p99_ms: float | None


def key_of(event: Event | None, entry_id: str) -> bytes:
    """What a delivery is recognised by: its event id, or its entry id when it could not be decoded."""
    return event.event_id.bytes if event else UNDECODED + entry_id.encode()


def _newest_of(keys: Collection[bytes], least: bytes) -> bytes:
    """The last of these keys that is below the undecoded ones, or `least` if that is later."""
    last = max(keys, default=b"")
    return max(least, last if last < UNDECODED else max((key for key in keys if key < UNDECODED), default=b""))


def _tallied(new: SettledColumns) -> Mapping[tuple[str, str], int]:
    """How many events they are, by (source, outcome)."""
    source = new.sources[0]
    if new.sources.count(source) == len(new.sources):  # as nearly always, and no pair has to be made of each
        return {(source, outcome): n for outcome, n in Counter(new.outcomes).items()}
    return Counter(zip(new.sources, new.outcomes, strict=True))


class SettlementTable:
    """The settlement log in a store. Its methods that write are called inside the caller's transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._sources: set[str] = set()  # that have tallies of their own; no tally ever goes
        self._hour = 0  # for which old staleness was pruned
        # no key above it and below the undecoded ones is settled, as long as only this object writes
        self._newest = b""
        self._newest_at: int | None = None  # the `changes` of the file for which that is so

    def known(self, keys: Sequence[bytes]) -> dict[bytes, str]:
        """The outcomes of those that are settled already. To be asked in a transaction."""
        if not keys:
            return {}
        # in the normal run of things all these events are newer than what is settled, and one look tells, or none
        oldest, changes = min(keys), self._database.changes
        if self._newest_at == changes and oldest > self._newest and max(keys) < UNDECODED:
            return {}
        limit = max(_LOOK_AHEAD, 2 * len(keys))
        newer = dict(self._database.query(SQL["settled_since"], (oldest, limit)))
        if len(newer) < limit:
            self._newest, self._newest_at = _newest_of(newer, oldest), changes
            wanted = set(keys) if newer else ()
            return {key: outcome for key, outcome in newer.items() if key in wanted}
        return dict(look_up(self._database.query, SQL["known"], keys))

    def look_up(self, keys: Collection[bytes]) -> dict[bytes, Settlement]:
        """How those of the events were settled that are."""
        rows = look_up(self._database.query, SQL["settlements"], sorted(keys))
        return {key: Settlement(outcome, entry_id) for key, outcome, entry_id in rows}

    def failures(self, after: bytes, limit: int) -> list[tuple[bytes, Settlement]]:
        """At most `limit` events above a key that are dead or lost, in their order. Reads the whole table."""
        rows = self._database.query(SQL["failures"], (after, limit))
        return [(key, Settlement(outcome, entry_id)) for key, outcome, entry_id in rows]

    def settled_entries(self, entry_ids: Sequence[str]) -> set[str]:
        """Those of the entries that are settled already. Reads the whole table: for what hardly ever happens."""
        return {row[0] for row in look_up(self._database.query, SQL["settled_entries"], entry_ids)}

    def record(self, connection: sqlite3.Connection, new: SettledColumns) -> None:
        """Records events that are not known yet."""
        if not new.keys:
            return
        self._newest = _newest_of(new.keys, self._newest)
        # a bytearray is bound as it is; for bytes SQLite's module searches an adapter, which takes as long as the rest
        rows = zip(map(bytearray, new.keys), new.outcomes, new.entry_ids, strict=True)
        insert_many(connection, SQL["record"], rows)
        self.count(connection, _tallied(new))

    def note_copies(self, connection: sqlite3.Connection, copies: Iterable[tuple[bytes, str]]) -> None:
        """Notes further entries of events that are settled: the newest one is kept, so that an event is not forgotten
        while a copy of it may still come.

        Args:
            copies: (key, entry id) pairs.
        """
        connection.executemany(SQL["move_entry"], [(entry_id, key) for key, entry_id in copies])

    def change(self, connection: sqlite3.Connection, settled: Sequence[Settled]) -> None:
        """Changes the outcome of events that were dead and are not any more."""
        connection.executemany(SQL["change_outcome"], [(row.outcome, row.key) for row in settled])
        self.count(connection, Counter((row.source, row.outcome) for row in settled))
        dead = Counter((row.source, DEAD) for row in settled)
        self.count(connection, {key: -n for key, n in dead.items()})

    def end_undecoded(self, connection: sqlite3.Connection, entry_ids: Iterable[str]) -> None:
        """Forgets that entries were dead because nobody could decode them. Somebody has, and from now on each counts by
        its event id: under both keys it would count twice.
        """
        keys = [(key_of(None, entry_id), DEAD) for entry_id in entry_ids]
        ended = connection.executemany(SQL["end_undecoded"], keys).rowcount if keys else 0
        if ended:
            self.count(connection, {("", DEAD): -ended})

    def count(self, connection: sqlite3.Connection, numbers: Mapping[tuple[str, str], int]) -> None:
        """Adds to the tallies, by (source, outcome)."""
        for (source, outcome), n in numbers.items():
            connection.execute(SQL["count"], (self._countable(connection, source), outcome, n))

    def cover(self, connection: sqlite3.Connection, events: Iterable[tuple[bytes, str]]) -> None:
        """Records events that the snapshot covers, as far as they are not settled: no repeat of them takes effect.

        Args:
            events: (key, entry id) pairs.
        """
        rows = [(key, COVERED, entry_id) for key, entry_id in events]
        self._newest = _newest_of([key for key, _, _ in rows], self._newest)
        connection.executemany(SQL["cover"], rows)

    def set_covered(self, connection: sqlite3.Connection, source: str, n: int) -> None:
        """Sets how many events of a source the snapshot covers. What was lost is among them, and is lost no more."""
        connection.execute(SQL["set_tally"], (source, COVERED, n))
        connection.execute(SQL["clear_tally"], (LOST,))

    def end_conflicts(self, connection: sqlite3.Connection) -> None:
        """Forgets that events have contradicted what was applied: nothing does any more."""
        connection.execute(SQL["clear_tally"], (CONFLICT,))

    def lower_covered(self, connection: sqlite3.Connection, source: str, n: int) -> None:
        """Takes events that were settled after all from those that the snapshot covers."""
        connection.execute(SQL["lower"], (n, source, COVERED))

    def look(self, after: bytes, before: bytes, limit: int) -> list[tuple[bytes, str, str]]:
        """At most `limit` rows with keys between the two, in their order: (key, outcome, entry id)."""
        return [
            (key, outcome, entry_id)
            for key, outcome, entry_id in self._database.query(SQL["look"], (after, before, limit))
        ]

    def forget(self, connection: sqlite3.Connection, rows: Sequence[tuple[bytes, str, str]]) -> int:
        """Deletes rows that are still as they were read; how many."""
        return connection.executemany(SQL["forget"], rows).rowcount

    def recognise(self, connection: sqlite3.Connection, source: str) -> None:
        """Keeps a tally of its own for this source, however many others there will be."""
        connection.execute(SQL["count"], (source, str(Effect.APPLIED), 0))

    def _countable(self, connection: sqlite3.Connection, source: str) -> str:
        if source in self._sources:
            return source
        if not connection.execute(SQL["is_source"], (source,)).fetchone():
            (sources,) = connection.execute(SQL["sources"]).fetchone()
            return source if sources < MAX_SOURCES else ""
        if len(self._sources) < MAX_SOURCES:
            self._sources.add(source)
        return source

    def tallies(self) -> dict[tuple[str, str], int]:
        """How many events were settled, by (source, outcome)."""
        return {(source, outcome): n for source, outcome, n in self._database.query(SQL["tallies"])}

    def add_staleness(self, connection: sqlite3.Connection, ages_ms: Iterable[float], now_ms: int) -> None:
        """Adds the ages of edits at the moment their copies are brought up to date, in milliseconds."""
        buckets: Counter[int] = Counter()
        for age, n in Counter(ages_ms).items():
            buckets[math.floor(20 * math.log10(age)) if age > 1 else 0] += n
        hour = now_ms // _HOUR_MS
        connection.executemany(SQL["add_staleness"], [(hour, bucket, n) for bucket, n in buckets.items()])
        if hour != self._hour:
            connection.execute(SQL["prune_staleness"], (hour - _STALENESS_HOURS,))
            self._hour = hour

    def staleness(self, hours: int = 24) -> Percentiles:
        """The percentiles over the last hours, at most 48."""
        since = time.time_ns() // 1_000_000 // _HOUR_MS - hours
        return percentiles(dict(self._database.query(SQL["staleness"], (since,))))

    def histogram(self) -> Histogram:
        """How old edits were when their copies were brought up to date, hour by hour, over the last 48."""
        since = time.time_ns() // 1_000_000 // _HOUR_MS - _STALENESS_HOURS
        by_hour: dict[int, dict[int, int]] = {}
        for hour, bucket, n in self._database.query(SQL["staleness_by_hour"], (since,)):
            by_hour.setdefault(hour, {})[bucket] = n
        return by_hour


def upper_edge_ms(bucket: int) -> float:
    """Below which age, in milliseconds, the edits of a bucket of `Histogram` were."""
    return float(round(10 ** ((bucket + 1) / 20), 1))


def percentiles(buckets: Mapping[int, int]) -> Percentiles:
    """Of ages that are counted by bucket."""
    total = sum(buckets.values())

    def percentile(share: float) -> float | None:
        passed = 0
        for bucket in sorted(buckets):
            passed += buckets[bucket]
            if total and passed >= share * total:
                return upper_edge_ms(bucket)
        return None

    return Percentiles(percentile(0.50), percentile(0.99))
