"""Writing the rows that copy a user: as many as one transaction may touch at once, the others later, a few at a time.

What is put off is noted in the store, in the transaction of the replica: the event is settled, and whoever uses the
store next goes on. Each piece copies the replica as it is by then, so a newer version takes the place of what is left.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from imsync.store.database import Database, is_trouble
from imsync.store.sql import load

if TYPE_CHECKING:
    from imsync.im.profile_projection import Replica

SQL = load("imsync.im", "fan_out.sql")

FAN_OUT_ROWS = 1000
"""A user with more rows is put off, wherever the rows of a user are counted."""
TRANSACTION_ROWS = 20_000
ROWS_PER_USER = 8
"""The most rows that a batch's transaction writes: `TRANSACTION_ROWS`, or so many per user if that is more, so that a
large batch of usual users is written at once."""
PIECE_ROWS = 1000
"""The most rows that one piece of a fan-out visits."""
PIECE_USERS = 100
"""The most users that one piece goes on with."""

COUNTED_USERS = 64
"""The rows of so few users are counted before they are written: it is little beside the commit."""
COUNTED_BATCHES = 50
"""After a batch that was too much for one transaction, the rows of so many larger ones are counted too."""

_STEPS_PER_ROW = 20
"""Of SQLite's virtual machine, to write a row: a few less than were measured (23 and more, version 3.40)."""
_STEPS_AT_ONCE = 4096

_FIRST = -(2**63)
_LAST = 2**63 - 1
_BEHIND_ALL = b"\xff"
"""SQLite orders bytes behind every number and text that may be in a key."""


class TooManyRows(Exception):
    """A transaction came to its bound, and was rolled back: count the rows first."""


class Left(NamedTuple):
    """What is put off: of how many users, and when the one got on that has waited for longest, in unix milliseconds;
    None when there is none.
    """

    users: int
    oldest_ms: int | None


class _Job(NamedTuple):
    user_id: int
    position: int
    until: int
    wrapped: int
    occurred_ms: int | None
    nick_name: str
    head_image: str


class FanOut:
    """The rows of a projection. Its methods that write are called inside the caller's transaction.

    Args:
        sql: the projection's statements.
    """

    def __init__(self, database: Database, sql: Mapping[str, str]) -> None:
        self._database = database
        self._sql = sql
        self._counted_batches = 0
        self._after = _FIRST  # whose turn was last
        self._failed: set[int] = set()
        self._none_at: int | None = None  # the `changes` of the file for which nothing is put off

    # ── in the transaction of the replica ────────────────────────────────────────────────────────────

    def write(self, connection: sqlite3.Connection, replicas: Sequence[Replica], now_ms: int) -> set[int]:
        """Makes the rows of users as their replicas are, or puts that off; the ids of those that were put off.

        Args:
            replicas: as they were written, in the order of their users.

        Raises:
            TooManyRows: the transaction is over, and nothing was changed. The next attempt counts.
        """
        late: set[int] = set()
        if len(replicas) <= COUNTED_USERS or self._counted_batches:
            self._counted_batches -= len(replicas) > COUNTED_USERS
            late = self._too_many(connection, [replica.user_id for replica in replicas])
            self._write_all(connection, [replica for replica in replicas if replica.user_id not in late])
        else:
            try:
                with _at_most(connection, rows_at_once(len(replicas))):
                    self._write_all(connection, replicas)
            except TooManyRows:
                self._counted_batches = COUNTED_BATCHES
                raise
        self._note(connection, replicas, late, now_ms)
        return late

    def heal(
        self, connection: sqlite3.Connection, replicas: Sequence[Replica], now_ms: int
    ) -> tuple[set[int], set[int]]:
        """Makes those rows of users as their replicas are that differ, or puts that off.

        Returns:
            The ids of the users of whom rows differed, as far as that was looked at, and of those that were put off.
        """
        late = self._too_many(connection, [replica.user_id for replica in replicas])
        healed: set[int] = set()
        for replica in replicas:
            if replica.user_id not in late:
                copied = replica.nick_name, replica.head_image, replica.user_id
                if connection.execute(self._sql["heal_copies"], copied).rowcount:
                    healed.add(replica.user_id)
        self._note(connection, replicas, late, now_ms, is_edit=False)
        return healed, late

    def _write_all(self, connection: sqlite3.Connection, replicas: Iterable[Replica]) -> None:
        connection.executemany(self._sql["write_copies"], [(r.nick_name, r.head_image, r.user_id) for r in replicas])

    def _too_many(self, connection: sqlite3.Connection, user_ids: Sequence[int]) -> set[int]:
        """The users whose rows are put off: who has very many, and of the others those with the most, as long as all
        are more than one transaction may write.
        """
        if not user_ids:
            return set()
        single = len(user_ids) == 1  # a list in JSON takes as long as the counting
        counted, users = ("count_rows_of", user_ids[0]) if single else ("count_rows", json.dumps(user_ids))
        counts: dict[int, int] = dict(connection.execute(self._sql[counted], (users, FAN_OUT_ROWS + 1)))
        late = {user_id for user_id, rows in counts.items() if rows > FAN_OUT_ROWS}
        rows, most = sum(counts[user_id] for user_id in counts.keys() - late), rows_at_once(len(user_ids))
        if rows > most:
            for user_id in sorted(counts.keys() - late, key=counts.__getitem__, reverse=True):
                late.add(user_id)
                rows -= counts[user_id]
                if rows <= most:
                    break
        return late

    def _note(
        self,
        connection: sqlite3.Connection,
        replicas: Sequence[Replica],
        late: set[int],
        now_ms: int,
        *,
        is_edit: bool = True,
    ) -> None:
        """Notes what is put off, and what is not any more."""
        if self._none_at != self._database.changes:
            if connection.execute(SQL["is_any"]).fetchone()[0]:
                done = [(replica.user_id,) for replica in replicas if replica.user_id not in late]
                connection.executemany(SQL["end"], done)
            else:
                self._none_at = self._database.changes
        if not late:
            return
        self._none_at = None
        put_off = [
            (r.user_id, _FIRST, r.occurred_ms if is_edit else None, now_ms) for r in replicas if r.user_id in late
        ]
        connection.executemany(SQL["put_off"], put_off)

    # ── afterwards ───────────────────────────────────────────────────────────────────────────────────

    @property
    def left(self) -> Left:
        """What is put off."""
        users, oldest_ms = self._database.query(SQL["left"])[0]
        return Left(users, oldest_ms)

    def unvisited(self, user_id: int) -> tuple[int, int] | None:
        """How many of a user's rows are still to be visited, and of how many; None when no fan-out is under way."""
        rows = self._database.query(self._sql["progress"], (user_id,))
        return (int(rows[0][0]), int(rows[0][1])) if rows else None

    def is_due(self) -> bool:
        """Whether there is something to go on with. What has failed is left for the next time that this is asked."""
        if not self._database.query(SQL["is_any"])[0][0]:
            self._failed.clear()
            return False
        return True

    def go_on(self, connection: sqlite3.Connection, now_ms: int) -> tuple[bool, list[int]]:
        """Visits the next `PIECE_ROWS` rows at most. Users have their turns in the order of their ids.

        Returns:
            Whether there is more to go on with, and when the edits occurred that are now visible everywhere.
        """
        room = PIECE_ROWS
        ended: list[int] = []
        for job in self._next(connection):
            if room <= 0:
                break
            self._after = job.user_id
            try:
                visited, is_done = self._visit(connection, job, room, now_ms)
            except sqlite3.Error as error:
                if not is_trouble(error):  # with this user: the others do not wait for it
                    self._failed.add(job.user_id)
                raise
            room -= max(visited, 1)
            if is_done and job.occurred_ms is not None:
                ended.append(job.occurred_ms)
            if self._failed:
                break  # one by one, so that a further failure is nobody else's
        else:
            connection.execute(SQL["end_without_replica"])
        left = connection.execute(SQL["left"]).fetchone()[0]
        if left <= len(self._failed):
            self._failed.clear()  # it is their turn again, next time
            return False, ended
        return True, ended

    def _next(self, connection: sqlite3.Connection) -> Iterator[_Job]:
        """The users whose turn it is, from the one after the last, round to that one."""
        began = self._after
        for after, last in ((began, _LAST), (_FIRST, began)):
            for row in connection.execute(SQL["next"], (after, PIECE_USERS)).fetchall():
                job = _Job(*row)
                if job.user_id <= last and job.user_id not in self._failed:
                    yield job

    def _visit(self, connection: sqlite3.Connection, job: _Job, room: int, now_ms: int) -> tuple[int, bool]:
        """Goes on with a user; how many rows were visited, and whether that was all."""
        position, wrapped, visited = job.position, job.wrapped, 0
        while True:
            before = job.until if wrapped else _BEHIND_ALL
            look = job.user_id, position, before, room - visited
            last, found = connection.execute(self._sql["look_ahead"], look).fetchone()
            if found:
                copied = job.nick_name, job.head_image, job.user_id, position, last
                connection.execute(self._sql["heal_between"], copied)
            visited += found
            if visited >= room and last != _LAST:
                behind = last + 1 if isinstance(last, int) else last  # what somebody wrote there need not be a number
                connection.execute(SQL["move"], (behind, wrapped, now_ms, job.user_id))
                return visited, False
            if wrapped or job.until == _FIRST:
                connection.execute(SQL["end"], (job.user_id,))
                return visited, True
            position, wrapped = _FIRST, 1
            if visited >= room:
                connection.execute(SQL["move"], (position, wrapped, now_ms, job.user_id))
                return visited, False


def rows_at_once(users: int) -> int:
    """The most rows that the transaction of a batch about so many users writes."""
    return max(TRANSACTION_ROWS, ROWS_PER_USER * users)


@contextmanager
def _at_most(connection: sqlite3.Connection, rows: int) -> Iterator[None]:
    """Ends the transaction when its block writes more rows than that, or not many less.

    To count the rows that will be written takes a quarter of the time of writing them. SQLite counts its steps anyway.

    Raises:
        TooManyRows: it was rolled back.
    """
    left = rows * _STEPS_PER_ROW // _STEPS_AT_ONCE

    def goes_too_far() -> bool:
        nonlocal left
        left -= 1
        return left < 0

    connection.set_progress_handler(goes_too_far, _STEPS_AT_ONCE)
    try:
        yield
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_INTERRUPT:
            raise TooManyRows from error
        raise
    finally:
        connection.set_progress_handler(None, 0)
