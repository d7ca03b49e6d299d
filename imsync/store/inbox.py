"""`Inbox`: exactly-once effects for events without a version.

An event without a version cannot tell whether it was applied before. The inbox can: it writes down each settled event
in the transaction of its effect.
"""

from __future__ import annotations

import inspect
import logging
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from imsync.bus.event import Event
from imsync.bus.handler import Received
from imsync.bus.outcome import APPLIED, DUPLICATE, Ack, DeadLetter, Outcome, Retry
from imsync.errors import InfrastructureError, StoreUnusable
from imsync.store.database import Schema, code_of, is_trouble, statements
from imsync.store.settlement import DEAD
from imsync.store.settlement import SQL as SETTLEMENT_SQL
from imsync.store.settling import SETTLED_HOURS, SettlingStore, StoreMeta
from imsync.store.sql import load

log = logging.getLogger(__name__)

SQL = load("imsync.store", "inbox.sql")

E = TypeVar("E", bound=Event)


class Refuse(Exception):
    """Raised by an effect: this event can never take effect. It becomes a dead letter at once.

    Args:
        reason: a short stable word for programs, such as `unknown_account`.
        message: one line that says what is wrong.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


class Inbox(SettlingStore, Generic[E]):
    """A handler in one SQLite file that makes the effect of each event once, however often the event is delivered.

    The effects of a batch are one transaction, with a row per event that says that it is settled. An effect that
    fails takes back only what it did itself; its event is tried again later, and the others go on. A dead event that
    comes again is tried again.

    An effect writes by the connection that it is given, and leaves the transaction alone: it neither commits nor
    rolls back, which is refused. What it does elsewhere, such as a request to a server, may happen more than once.

    Args:
        path: the file.
        schema_sql: what makes the tables of the effects: scripts, of which the first makes version 1 and each further
            one the next version. Never change one that was used; add another. The names `meta`, `settled`, `tally`
            and `staleness` are taken.
        effect: called with a connection and an event. What it returns does not matter. It raises `Refuse` for an event
            that can never take effect, `InfrastructureError` when something else is in trouble and the whole batch
            should come again, and anything else when it failed.
        name: what messages call it: the consumer group's name, for one.
        create: make the file when it is missing; otherwise it must exist. (A group that was fed before does not take
            a fresh file for its own: see `imsync.bus.BoundStore`.)
        busy_timeout_ms: how long to wait for another process's lock.
        settled_hours: for how long a settled event is remembered at least.

    Raises:
        StoreUnusable: the file is damaged, locked, of another kind or of a newer version.
    """

    def __init__(
        self,
        path: Path,
        *,
        schema_sql: Sequence[str],
        effect: Callable[[sqlite3.Connection, E], object],
        name: str = "",
        create: bool = True,
        busy_timeout_ms: int = 5000,
        settled_hours: float = SETTLED_HOURS,
    ) -> None:
        self.name = name
        self._effect = effect
        self._schema_sql = tuple(schema_sql)
        self._in_effect = False
        self._guarded: sqlite3.Connection | None = None
        super().__init__(
            path,
            Schema(f"{name} inbox".lstrip(), "IMSI", [SETTLEMENT_SQL["schema"], SETTLEMENT_SQL["schema_2"]]),
            create=create,
            busy_timeout_ms=busy_timeout_ms,
            settled_hours=settled_hours,
        )
        try:
            self._check(self._read_meta())
            self._migrate_tables()
        except BaseException:
            self.close()
            raise

    def query(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows of a reading statement.

        Raises:
            StoreUnusable: the file cannot be read.
        """
        return self._database.query(sql, parameters)

    # ── the bus's handler ────────────────────────────────────────────────────────────────────────────

    def apply(self, batch: Sequence[Received[E]]) -> list[Outcome]:
        """Makes the effects of a batch in one transaction. See `imsync.bus.Handler`.

        Raises:
            StoreUnusable: nothing took effect; try again.
            StoreMismatch: the file was replaced while in use, by one that may lack what was acknowledged.
            RuntimeError: an effect ended the transaction; nothing took effect.
        """
        with self._settling() as connection:
            self._guard(connection)
            keys = [received.event.event_id.bytes for received in batch]
            known = self._settlements.known(keys)
            settled = {key for key, outcome in known.items() if outcome != DEAD}
            outcomes: list[Outcome] = []
            for key, received in zip(keys, batch, strict=True):
                outcome = DUPLICATE if key in settled else self._attempt(connection, received.event)
                if isinstance(outcome, Ack):
                    settled.add(key)
                outcomes.append(outcome)
            self._record(connection, keys, batch, outcomes, known)
            self._record_staleness(
                connection,
                [
                    int(received.event.occurred_at.timestamp() * 1000)
                    for received, outcome in zip(batch, outcomes, strict=True)
                    if outcome is APPLIED
                ],
            )
        return outcomes

    def _attempt(self, connection: sqlite3.Connection, event: E) -> Outcome:
        connection.execute(SQL["begin"])
        outcome: Outcome = APPLIED
        self._in_effect = True
        try:
            returned = self._effect(connection, event)
            if inspect.isawaitable(returned):
                raise TypeError("the effect is asynchronous: nobody would wait for it")
            if isinstance(returned, Ack | Retry | DeadLetter):
                raise TypeError("the effect returned an outcome: raise Refuse, or any other error, instead")
        except Refuse as refusal:
            outcome = DeadLetter(refusal.reason, refusal.message)
        except InfrastructureError:
            raise
        except Exception as error:
            if isinstance(error, sqlite3.Error) and is_trouble(error):
                raise
            log.warning("the effect of the %s inbox failed on event %s", self.name, event.event_id, exc_info=True)
            outcome = Retry.after(self._explained(error))
        finally:
            self._in_effect = False
        self._close_savepoint(connection, event, taken_back=outcome is not APPLIED)
        return outcome

    def _close_savepoint(self, connection: sqlite3.Connection, event: E, *, taken_back: bool) -> None:
        try:
            if taken_back:
                connection.execute(SQL["take_back"])
            connection.execute(SQL["end"])
        except sqlite3.OperationalError as error:
            if is_trouble(error):
                raise
            # ON CONFLICT ROLLBACK and RAISE(ROLLBACK) end the transaction, and with it the effects before this one
            raise RuntimeError(
                f"the effect of the {self.name} inbox ended the transaction it was called in, on event {event.event_id}"
            ) from error

    # ── an effect leaves the transaction alone ───────────────────────────────────────────────────────

    def _guard(self, connection: sqlite3.Connection) -> None:
        # once per connection: it makes SQLite compile all statements again
        if connection is not self._guarded:
            connection.set_authorizer(self._authorize)
            self._guarded = connection

    def _authorize(self, action: int, *_: object) -> int:
        # an effect that commits parts the effects before it from their settled rows
        return sqlite3.SQLITE_DENY if self._in_effect and action == sqlite3.SQLITE_TRANSACTION else sqlite3.SQLITE_OK

    def _explained(self, error: Exception) -> Exception:
        if isinstance(error, sqlite3.Error) and code_of(error) == sqlite3.SQLITE_AUTH:
            explained = RuntimeError(
                "the effect must leave the transaction alone (no commit, rollback, executescript or `with connection`)"
            )
            return explained.with_traceback(error.__traceback__)
        return error

    # ── the tables of the effects ────────────────────────────────────────────────────────────────────

    def _migrate_tables(self) -> None:
        if self._read_meta().tables_version >= len(self._schema_sql):
            return
        with self._database.atomic() as connection:
            # read again under the lock: another process may have migrated them meanwhile
            for script in self._schema_sql[self._read_meta().tables_version :]:
                for statement in statements(script):
                    connection.execute(statement)
            connection.execute(SQL["set_tables_version"], (len(self._schema_sql),))

    def _check(self, now: StoreMeta) -> None:
        super()._check(now)
        if now.tables_version > len(self._schema_sql):
            raise StoreUnusable(
                f"{self._database.where} has tables of version {now.tables_version}, "
                f"this program knows {len(self._schema_sql)}",
                "use the newer program",
            )

    def _check_reopened(self) -> None:
        super()._check_reopened()
        self._migrate_tables()
