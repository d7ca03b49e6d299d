"""What the group store and the friend store have in common: a replica of every profile, and rows that copy it.

Each instance brings its tables, its statements and its view of the event; the transaction is written once, here.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from imsync.bus import clock
from imsync.bus.event import MAX_INT
from imsync.bus.handler import Received
from imsync.bus.outcome import APPLIED, DUPLICATE, SUPERSEDED, Outcome
from imsync.im.events import IMBaseEvent
from imsync.im.fan_out import SQL as FAN_OUT_SQL
from imsync.im.fan_out import FanOut, Left, TooManyRows
from imsync.im.gate import newest
from imsync.im.user_store import Profile
from imsync.store.database import Schema
from imsync.store.projection import NO_ROOM, CopyState, SourceState
from imsync.store.settlement import CONFLICT, DEAD
from imsync.store.settlement import SQL as SETTLEMENT_SQL
from imsync.store.settling import SETTLED_HOURS, SettlingStore
from imsync.store.sql import insert_many, load, look_up

log = logging.getLogger(__name__)

REPLICA_SQL = load("imsync.im", "replica.sql")

CLOCK_TOLERANCE_MS = 300_000
"""How far the clock of the user service may be thought to step back."""


LOOKED_UP_BATCHES = 50
"""From a batch with an event that is older than what was applied, the applied versions are looked up for so many."""


class NotAllNewer(Exception):
    """The newest event of a batch about some user is no newer than what was applied."""


def projection_schema(name: str, application_id: str, tables: str, group: str) -> Schema:
    """The schema of a projection: the settlement log, the replica, and tables of its own.

    Args:
        group: its consumer group, as `imsync rebuild` calls it.
    """
    rebuild = f"run `imsync rebuild {group}`"
    return Schema(
        name,
        application_id,
        [
            ";".join((SETTLEMENT_SQL["schema"], REPLICA_SQL["schema"], tables)),
            SETTLEMENT_SQL["schema_2"],
            FAN_OUT_SQL["schema"],
        ],
        remedy=f"restore it from a backup, then {rebuild}",
        catch_up=rebuild,
    )


class Replica(NamedTuple):
    """A profile as the projection keeps it: `nick_name` and `head_image` are what its rows copy. `deleted` is 0 or 1,
    and no `bool`, for which SQLite's module would search an adapter.
    """

    user_id: int
    version: int
    nick_name: str
    head_image: str
    deleted: int
    occurred_ms: int

    def replaces(self, known: Replica | None) -> bool:
        """Whether this state of the source takes the place of what a projection has: it is newer, or it has other
        content and does not resurrect anybody. Nor does a version stay that leaves no room for a newer one.
        """
        if known is None or self.version > known.version:
            return True
        is_other = self[:-1] != known[:-1]
        if known.version >= NO_ROOM:
            return is_other
        return is_other and self.version == known.version and (bool(self.deleted) or not known.deleted)

    def contradicts(self, event_replica: Replica) -> bool:
        """Whether an event that was superseded by this state, and never seen before, cannot come from the same
        history: it has this version and other content, or a lower version and a much later time, or it comes after
        a tombstone and is none. (Clocks step; they raise an alarm here and decide nothing. A tombstone may come twice:
        a repair publishes a deletion again for the sake of one projection, and every other has it already.)
        """
        other = event_replica
        if other.version < self.version:
            return other.occurred_ms > self.occurred_ms + CLOCK_TOLERANCE_MS
        if other.deleted and self.deleted:
            return False
        return other.version > self.version or (
            (other.nick_name, other.head_image, other.deleted) != (self.nick_name, self.head_image, self.deleted)
        )


class ProfileProjection(SettlingStore):
    """A projection of user profiles in one SQLite file. An instance of `imsync.store.projection.Projection`.

    Args:
        path: the file.
        create: make it; otherwise it must exist.
        busy_timeout_ms, settled_hours: see `SettlingStore`.

    Raises:
        StoreUnusable: it is missing, damaged, locked, of another kind or of a newer version.
    """

    name: ClassVar[str]
    """The projection's name and its consumer group's."""
    events: ClassVar[Sequence[type[IMBaseEvent]]]
    """The views that it takes."""
    schema: ClassVar[Schema]
    sql: ClassVar[Mapping[str, str]]
    lean: ClassVar[bool] = True
    """See `imsync.bus.LeanHandler`."""
    picture: ClassVar[str]
    """The field of the profile that the copies take their picture from."""

    def __init__(
        self,
        path: Path,
        *,
        create: bool = False,
        busy_timeout_ms: int = 5000,
        settled_hours: float = SETTLED_HOURS,
    ) -> None:
        super().__init__(path, self.schema, create=create, busy_timeout_ms=busy_timeout_ms, settled_hours=settled_hours)
        self._fan_out = FanOut(self._database, self.sql)
        self._looked_up_batches = 0

    def replica_of(self, event: IMBaseEvent) -> Replica:
        """What the event says, as this projection keeps it. Empty content for a tombstone."""
        occurred_ms = int(event.occurred_at.timestamp() * 1000)
        if event.final:
            return Replica(event.id, event.version, "", "", 1, occurred_ms)
        view: Any = event
        content = view.nick_name, getattr(view, self.picture)
        # a named tuple's own takes twice as long
        return tuple.__new__(Replica, (event.id, event.version, *content, 0, occurred_ms))

    @classmethod
    def expected(cls, source: SourceState) -> tuple[str, str]:
        """The (nick_name, head_image) that a right copy of this source has."""
        return source.content["nick_name"], source.content[cls.picture]

    # ── the bus's handler ────────────────────────────────────────────────────────────────────────────

    def apply(self, batch: Sequence[Received[IMBaseEvent]]) -> list[Outcome]:
        """Applies a batch in one transaction: newest per user, repeats and older versions change nothing.

        Rows that are too many for one transaction are put off, and the store knows of it: see `go_on`.

        Raises:
            StoreUnusable: nothing was applied; try again.
            StoreMismatch: the file was replaced while in use, by one that may lack what was acknowledged.
        """
        while True:
            try:
                return self._apply(batch)
            except NotAllNewer:
                self._looked_up_batches = LOOKED_UP_BATCHES
            except TooManyRows:
                continue  # once: the next attempt counts them

    def _apply(self, batch: Sequence[Received[IMBaseEvent]]) -> list[Outcome]:
        events = [event for event, _ in batch]
        keys = [event.event_id.int.to_bytes(16, "big") for event in events]  # `bytes` is a property
        with self._settling() as connection:
            known = self._settlements.known(keys)
            repeats = _repeats(keys, known)
            fresh = [event for place, event in enumerate(events) if place not in repeats] if repeats else events
            # writing tells whether all are newer, as they nearly always are, and looking takes a third as long again
            looks = self._looked_up_batches > 0
            winners = newest(fresh, self._versions({event.id for event in fresh}) if looks else {})
            replicas = {user_id: self.replica_of(event) for user_id, event in winners.items()}
            late = self._write(connection, replicas.values(), are_newer=looks)
            outcomes: list[Outcome] = [APPLIED if winners.get(event.id) is event else SUPERSEDED for event in events]
            for place in repeats:
                outcomes[place] = DUPLICATE
            self._record(connection, keys, batch, outcomes, known)
            visible = replicas.values() if not late else [r for r in replicas.values() if r.user_id not in late]
            self._record_staleness(connection, [replica.occurred_ms for replica in visible])
            self._raise_alarms(connection, _doubtful(fresh, winners), replicas)
        self._looked_up_batches -= looks
        return outcomes

    def _write(self, connection: sqlite3.Connection, replicas: Iterable[Replica], *, are_newer: bool) -> set[int]:
        """Writes replicas, and the rows that copy them; the ids of users whose rows are put off.

        Args:
            are_newer: whether each is known to be newer than what was applied.

        Raises:
            NotAllNewer: it was not known, and is not so. The transaction must be rolled back.
        """
        ordered = sorted(replicas, key=lambda replica: replica.user_id)  # as the tables are clustered
        written = insert_many(connection, REPLICA_SQL["write_replica"], ordered)
        if written < len(ordered) and not are_newer:
            raise NotAllNewer
        return self._fan_out.write(connection, ordered, clock.now_ms())

    def go_on(self) -> bool:
        """Writes some of the rows that were put off, in one short transaction; whether more are left. See
        `imsync.bus.Deferring`.

        It does not raise the generation: a copy of the store from before knows itself what is left of it.

        Raises:
            StoreUnusable: nothing was changed; try again.
        """
        if not self._fan_out.is_due():
            return False
        with self._database.atomic() as connection:
            more, ended = self._fan_out.go_on(connection, clock.now_ms())
            if ended:
                self._record_staleness(connection, ended)
        return more

    def _raise_alarms(
        self,
        connection: sqlite3.Connection,
        superseded: Sequence[IMBaseEvent],
        replicas: Mapping[int, Replica],
    ) -> None:
        """Compares events that were superseded, and never seen before, with what superseded them."""
        if not superseded:
            return
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
        found = self._database.query(self.sql["states"], (after, limit))
        last = found[-1][0] if len(found) == limit else MAX_INT
        ((rows,),) = self._database.query(self.sql["rows_between"], (after, last))
        if rows != sum(row[5] for row in found):  # some have no replica; or one came between the two looks
            found = self._database.query(self.sql["all_states"], (after, limit))
        return [_state(row) for row in found]

    def state(self, key: int) -> CopyState | None:
        """One user's state; None when nothing is known of it and no row copies it."""
        found = self._database.query(self.sql["all_states"], (key - 1, 1))
        return _state(found[0]) if found and found[0][0] == key else None

    def applied(self, key: int) -> tuple[int, bool]:
        """The applied version of a user, 0 for none, and whether it is deleted. Looks at no rows."""
        found = self._replicas({key}).get(key)
        return (found.version, bool(found.deleted)) if found else (0, False)

    def contents(self, key: int) -> dict[tuple[str, ...], int]:
        """What the rows that copy a user hold, as (nick_name, head_image), and how many of them hold it."""
        return {tuple(content): n for *content, n in self._database.query(self.sql["contents"], (key,))}

    def overrides(self, key: int) -> int:
        """How many of the rows that copy a user have an override of their own, which no event touches."""
        return int(self._database.query(self.sql["overrides"], (key,))[0][0])

    @property
    def put_off(self) -> Left:
        """How many users have rows that are still to be written by `go_on`, and since when."""
        return self._fan_out.left

    def unvisited(self, key: int) -> tuple[int, int] | None:
        """How many of a user's rows `go_on` has not come to yet, and of how many; None when nothing is put off."""
        return self._fan_out.unvisited(key)

    # ── snapshots of the source ──────────────────────────────────────────────────────────────────────

    def write_snapshot(self, page: Sequence[SourceState]) -> int:
        """Makes users as their source has them, in one transaction; of how many something was wrong.

        What the source says counts from the applied version on: other content at that very version was not written by
        an event, nor were rows that differ. A newer replica is left alone: its event has overtaken the snapshot. So is
        a tombstone, unless the source is newer. The rows are then made as the replica is.

        Args:
            page: states of different users, at most about a thousand, so that consumers need not wait long.

        Raises:
            StoreUnusable: nothing was changed; try again.
        """
        snapshot = [self._replica_of_source(state, clock.now_ms()) for state in page]
        with self._settling() as connection:
            known = self._replicas({replica.user_id for replica in snapshot})
            written = [r for r in snapshot if r.replaces(known.get(r.user_id))]
            connection.executemany(REPLICA_SQL["write_snapshot"], written)
            changed = {r.user_id for r in written}
            replicas = {**known, **{r.user_id: r for r in written}}
            healed, late = self._fan_out.heal(connection, list(replicas.values()), clock.now_ms())
        changed |= healed
        for user_id in late - changed:
            if (state := self.state(user_id)) and state.stale_rows:
                changed.add(user_id)
        return len(changed)

    def ahead_of(self, page: Sequence[SourceState]) -> int:
        """How many of these users have a newer version here than their source says: it was restored from a backup."""
        replicas = self._replicas({source.key for source in page})
        return sum(source.key in replicas and replicas[source.key].version > source.version for source in page)

    def _replica_of_source(self, source: SourceState, now_ms: int) -> Replica:
        nick_name, picture = ("", "") if source.deleted else self.expected(source)
        return Replica(source.key, source.version, nick_name, picture, int(source.deleted), now_ms)

    def _bootstrap_replicas(self, connection: sqlite3.Connection, profiles: Iterable[Profile], source: str) -> None:
        """Fills a fresh store from a snapshot of the source."""
        self._settlements.recognise(connection, source)
        now_ms = clock.now_ms()
        connection.executemany(
            REPLICA_SQL["write_replica"], (self._replica_of_source(_as_source(p), now_ms) for p in profiles)
        )

    def _versions(self, user_ids: set[int]) -> dict[int, int]:
        return dict(self._lookup("versions", user_ids))

    def _replicas(self, user_ids: set[int]) -> dict[int, Replica]:
        return {row[0]: Replica(*row) for row in self._lookup("replicas", user_ids)}

    def _lookup(self, statement: str, user_ids: set[int]) -> Iterable[tuple[Any, ...]]:
        return look_up(self._database.query, REPLICA_SQL[statement], sorted(user_ids))


def _repeats(keys: Sequence[bytes], known: Mapping[bytes, str]) -> set[int]:
    """The places of the events that are settled already: of a repeat within the batch the first counts.

    Args:
        known: the outcomes of those that were settled before; what was dead is tried again.
    """
    if not known and len(set(keys)) == len(keys):
        return set()
    seen: set[bytes] = {key for key, outcome in known.items() if outcome != DEAD}
    repeats: set[int] = set()
    for place, key in enumerate(keys):
        if key in seen:
            repeats.add(place)
        seen.add(key)
    return repeats


def _doubtful(events: Iterable[IMBaseEvent], winners: Mapping[int, IMBaseEvent]) -> list[IMBaseEvent]:
    """The superseded events that may contradict what superseded them: not those that came before a newer version, by
    both their version and their time.
    """
    doubtful: list[IMBaseEvent] = []
    for event in events:
        newer = winners.get(event.id)
        if newer is event:
            continue
        if newer is None or event.version >= newer.version or event.occurred_at > newer.occurred_at:
            doubtful.append(event)
    return doubtful


def _state(row: tuple[Any, ...]) -> CopyState:
    user_id, version, deleted, nick_name, head_image, rows, stale, unvisited = row
    return CopyState(user_id, version, bool(deleted), (nick_name, head_image), rows, stale, unvisited)


def _as_source(p: Profile) -> SourceState:
    content = {"nick_name": p.nick_name, "head_image": p.head_image, "head_image_thumb": p.head_image_thumb}
    return SourceState(p.id, p.version, bool(p.deleted), content)
