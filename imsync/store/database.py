"""One SQLite file, opened the one way that keeps the promises: WAL, `synchronous=FULL`, `BEGIN IMMEDIATE`.

sqlite3's errors become `StoreUnusable` here and travel no further. A store that was in trouble is usable again as
soon as the trouble is over: it opens its file anew.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from imsync.errors import StoreUnusable
from imsync.store.checkpoints import Checkpoints
from imsync.store.watch import FileWatch, Identity

log = logging.getLogger(__name__)

_HINTS = {
    sqlite3.SQLITE_BUSY: "another process is writing to it: try again",
    sqlite3.SQLITE_LOCKED: "another process is writing to it: try again",
    sqlite3.SQLITE_PROTOCOL: "another process is writing to it: try again",
    sqlite3.SQLITE_FULL: "free some disk space; nothing is lost meanwhile",
    sqlite3.SQLITE_IOERR: "check the disk, and limits on the size of files; nothing is lost meanwhile",
    sqlite3.SQLITE_READONLY: "check the permissions of the file and its folder, and that the disk is mounted writable",
    sqlite3.SQLITE_CANTOPEN: "check the permissions of the file and its folder, and that the disk is mounted writable",
    sqlite3.SQLITE_PERM: "check the permissions of the file and its folder",
    sqlite3.SQLITE_NOMEM: "free some memory; nothing is lost meanwhile",
    sqlite3.SQLITE_CORRUPT: "the file is damaged: {remedy}",
    sqlite3.SQLITE_NOTADB: "the file is damaged or is something else: {remedy}",
}
"""What helps against trouble with the disk, by primary result code (https://www.sqlite.org/rescode.html)."""

_WAITING = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL}
"""Trouble that leaves the connection as it was. After any other, its cache may hold what the disk does not."""
_DAMAGE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


def code_of(error: sqlite3.Error) -> int:
    """SQLite's primary result code; 0 when the error is not SQLite's own but its Python module's."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def is_trouble(error: sqlite3.Error) -> bool:
    """Whether the disk or another process is the cause, and not the statement."""
    return code_of(error) in _HINTS


_text = partial(str, encoding="utf-8", errors="replace")


def statements(script: str) -> Iterator[str]:
    """The single statements of a script. Triggers may have semicolons of their own."""
    statement = ""
    for part in script.split(";"):
        statement += f"{part};"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
    if statement.strip(" \n;"):
        yield statement  # cut short: SQLite says where


@dataclass(frozen=True, slots=True)
class Schema:
    """What is in a file.

    Args:
        name: what people call this store, such as "group store".
        application_id: SQLite's application_id, four letters, so that one store is never taken for another.
        migrations: scripts; the first makes version 1, each further one the next version.
        remedy: what to do when the file is lost or damaged for good.
        catch_up: what to do when the file is another one, or an older copy, than the one that was in use.
    """

    name: str
    application_id: str
    migrations: Sequence[str]
    remedy: str = "restore it from a backup"
    catch_up: str = "put the newest copy back"

    @property
    def magic(self) -> int:
        """The application_id as the number that the file header holds."""
        return int.from_bytes(self.application_id.encode("ascii"), "big")


class Database:
    """An open store. Threads may share it: one transaction at a time.

    Before each transaction, and before its end is believed, it looks whether its file is still the one at the path:
    nothing is written into a file that was deleted or replaced, or it is not said to be written. When a file is there
    again, it is opened anew.

    Args:
        path: the file. Created with mode 0600, its folder 0700, when `create` is set.
        schema: what must be in it. An older version is migrated in a transaction, a newer one refused.
        busy_timeout_ms: how long to wait for another process's lock.
        create: make the file; otherwise it must exist.

    Raises:
        StoreUnusable: it is missing, damaged, locked, of another kind, or of a newer version.
    """

    def __init__(self, path: Path, schema: Schema, *, busy_timeout_ms: int = 5000, create: bool = False) -> None:
        self.path = path
        self.schema = schema
        self.on_reopen: Callable[[], None] | None = None
        """Called after the file was opened anew, to check that it is still the same store; what it raises, the caller
        gets. Without it, another file at the path is refused."""
        self._location = os.path.abspath(path)
        self._busy_seconds = busy_timeout_ms / 1000
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._writing = False
        self._closed = False
        self._suspect = False
        self._log_lost = False
        self._first: Identity | None = None
        self._last: FileWatch | None = None
        self._data_version: int | None = None
        self.changes = 0
        """Another number whenever others have written to the file, or it was opened anew: right in a transaction."""
        if create:
            self._make_file()
        elif not path.is_file():
            others = any(path.parent.glob("*.db")) if path.parent.is_dir() else False
            hint = schema.remedy if others else "run `imsync init` first, or check --data-dir"
            raise StoreUnusable(f"there is no {schema.name} at {path}", hint)
        try:
            self._open(create=create)
        except sqlite3.DatabaseError as error:
            self._raise_translated(error)
        self._first = self._watch.identity

    @property
    def where(self) -> str:
        """What error messages call it."""
        return f"{self.schema.name} {self.path}"

    # ── use ──────────────────────────────────────────────────────────────────────────────────────────

    @contextmanager
    def atomic(self) -> Iterator[sqlite3.Connection]:
        """A write transaction: committed when the block ends, rolled back when it raises.

        Raises:
            StoreUnusable: locked for longer than the busy timeout, disk full, IO error, damaged; the file was
                deleted or replaced, or another imsync has migrated it. Nothing was changed, or nothing that anybody
                will find.
        """
        with self._lock:
            try:
                connection = self._ready()
                connection.execute("BEGIN IMMEDIATE")
                self._writing = True
                try:
                    self._note_changes(connection)
                    yield connection
                    if not connection.in_transaction:  # commit() would not mind
                        raise self._unusable("was rolled back in the middle of a transaction", "nothing was changed")
                    self._checkpoints.before_commit()
                    connection.commit()  # not as a statement, which would stay in the cache, at an effect's disposal
                except BaseException:
                    self._roll_back(connection)
                    raise
                finally:
                    self._writing = False
                self._confirm(connection)
            except sqlite3.DatabaseError as error:
                self._raise_translated(error)

    def query(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows of a reading statement.

        Raises:
            StoreUnusable: as `atomic`.
        """
        with self._lock:
            try:
                return self._ready().execute(sql, parameters).fetchall()
            except sqlite3.DatabaseError as error:
                self._raise_translated(error)

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            self._closed = True
            self._drop()

    # ── opening ──────────────────────────────────────────────────────────────────────────────────────

    def _make_file(self) -> None:
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))
        except OSError as error:
            raise StoreUnusable(f"{self.where} cannot be made: {error.strerror}", "check the folder") from error

    def _open(self, *, create: bool = False) -> sqlite3.Connection:
        try:
            watch = FileWatch(self._location)
        except FileNotFoundError as error:
            raise self._unusable("is gone: it was deleted or moved away", self._put_it_back) from error
        except OSError as error:
            raise self._unusable(f"cannot be opened: {error.strerror}", "check the folder") from error
        if self._last and self._last.identity != watch.identity and not self._last.log_is_lost():
            raise self._unusable(  # SQLite would take the log for this file's, and mix the two
                "was replaced while in use, and the write-ahead log beside it is still that of the file before",
                f"move {self.path.name}-wal and {self.path.name}-shm away",
            )
        self._watch = watch
        self._data_version = None  # it is the connection's
        # mode=rw: a file that is deleted in this moment is not made anew, and empty
        connection = self._connection = sqlite3.connect(
            f"{Path(self._location).as_uri()}?mode=rw",
            uri=True,
            isolation_level=None,
            timeout=self._busy_seconds,
            check_same_thread=False,
        )
        # what somebody else wrote there need not be text: it is compared as it can be read, and found to be wrong
        connection.text_factory = _text
        try:
            self._prepare(connection, create)
            if change := self._watch.change():
                raise self._unusable(change, "try again")
        except BaseException:
            self._drop()
            raise
        return connection

    def _prepare(self, connection: sqlite3.Connection, create: bool) -> None:
        execute = connection.execute
        (tables,) = execute("SELECT count(*) FROM sqlite_schema").fetchone()
        (magic,), (version,) = (
            execute("PRAGMA application_id").fetchone(),
            execute("PRAGMA user_version").fetchone(),
        )
        if tables == 0 and not create:
            # never made anew in passing: a store that was emptied must not look like one that has no data
            raise StoreUnusable(f"{self.path} is empty", "restore it, or delete it and run `imsync init`")
        if tables and magic != self.schema.magic:
            raise StoreUnusable(f"{self.path} is not a {self.schema.name}", "check --data-dir")
        (journal,) = execute("PRAGMA journal_mode = WAL").fetchone()
        if journal != "wal":
            raise self._unusable("cannot have a write-ahead log there", "put it on a local disk")
        execute("PRAGMA synchronous = FULL")
        execute("PRAGMA temp_store = MEMORY")
        self._checkpoints = Checkpoints(connection)
        execute("SELECT count(*) FROM sqlite_schema").fetchone()  # opens the log, if nothing has
        self._watch.note_log()
        self._last = self._watch
        if version < self._latest:
            self._migrate()
        else:
            self._check_version(connection)

    @property
    def _latest(self) -> int:
        return len(self.schema.migrations)

    def _note_changes(self, connection: sqlite3.Connection) -> None:
        """Finds out whether others have written, in a transaction. https://www.sqlite.org/pragma.html#pragma_data_version"""
        (data_version,) = connection.execute("PRAGMA data_version").fetchone()
        if data_version != self._data_version:
            self._check_version(connection)
            self.changes += 1  # first: should this be interrupted, it is asked again
            self._data_version = data_version

    def _check_version(self, connection: sqlite3.Connection) -> None:
        # also in the middle of the day: another imsync may migrate the file while this one has it open
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > self._latest:
            raise StoreUnusable(
                f"{self.path} has schema version {version}, this imsync knows {self._latest}", "upgrade imsync"
            )

    def _migrate(self) -> None:
        with self.atomic() as connection:
            # read again under the lock: another process may have migrated it meanwhile
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            for number, script in enumerate(self.schema.migrations[version:], start=version + 1):
                for statement in statements(script):
                    connection.execute(statement)
                connection.execute(f"PRAGMA application_id = {self.schema.magic}")
                connection.execute(f"PRAGMA user_version = {number}")

    # ── staying on the right file ────────────────────────────────────────────────────────────────────

    def _ready(self) -> sqlite3.Connection:
        """The connection, on the file that is at the path at this moment."""
        if self._connection is not None:
            if self._writing:
                return self._connection
            if self._log_lost:
                self._save_log(self._connection)
            change = self._watch.change()
            if not change:
                return self._connection
            log.warning("%s %s", self.where, change)
            self._drop(suspect=True)
        elif self._writing:
            raise self._unusable("failed in the middle of a transaction", "nothing was changed")
        return self._reopened()

    def _reopened(self) -> sqlite3.Connection:
        if self._closed:
            raise ValueError(f"{self.where} is closed")
        connection = self._open()
        try:
            if self._suspect:
                (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
                if verdict != "ok":
                    raise self._unusable("is damaged", self.schema.remedy)
            if self.on_reopen:
                self.on_reopen()
            elif self._watch.identity != self._first:
                raise self._unusable("was replaced while in use", "stop what uses it, and start it again")
        except BaseException:
            self._drop()
            raise
        self._suspect = False
        log.info("%s was opened again", self.where)
        return connection

    def _confirm(self, connection: sqlite3.Connection) -> None:
        """Sees to it that what was committed is in files that others find."""
        if change := self._watch.change():
            self._drop(suspect=True)
            raise self._unusable(change, self._put_it_back)
        if self._watch.log_is_lost():
            self._save_log(connection)

    def _save_log(self, connection: sqlite3.Connection) -> None:
        """Copies a write-ahead log that has no name any more into the file, and lets go of it. Always raises."""
        # waits for those who read or write by the same log; they find out in their turn
        (busy, _, _) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        self._log_lost = bool(busy)
        if not busy:
            self._drop()
        raise self._unusable(
            "has lost its write-ahead log: it was deleted while in use",
            "leave the -wal and -shm files beside a store alone: they are part of it; what they held is being saved",
        )

    @property
    def _put_it_back(self) -> str:
        return f"put it back; if it is lost, {self.schema.remedy}; nothing is written meanwhile"

    def _drop(self, *, suspect: bool = False) -> None:
        """Lets go of the connection; the next use opens the file anew, and checks it through when it is suspect."""
        connection, self._connection = self._connection, None
        self._suspect |= suspect
        self._log_lost = False
        if connection is not None:
            try:
                connection.close()
            except sqlite3.Error as error:
                log.debug("%s: closing: %s", self.where, error)

    def _roll_back(self, connection: sqlite3.Connection) -> None:
        if connection is not self._connection:
            return  # closed already, and rolled back with that
        try:
            connection.rollback()
        except sqlite3.Error as error:  # the error that led here is the one to report
            log.warning("%s: rolling back: %s", self.where, error)
            self._drop()

    # ── errors ───────────────────────────────────────────────────────────────────────────────────────

    def _unusable(self, what: str, hint: str) -> StoreUnusable:
        return StoreUnusable(f"{self.where} {what}", hint)

    def _raise_translated(self, error: sqlite3.DatabaseError) -> NoReturn:
        if isinstance(error, sqlite3.IntegrityError | sqlite3.ProgrammingError):
            raise error  # a defect of ours, not of the disk
        code = code_of(error)
        if code in _HINTS and code not in _WAITING:
            self._drop(suspect=code in _DAMAGE)
        hint = _HINTS.get(code, "check the file and its folder").format(remedy=self.schema.remedy)
        name = getattr(error, "sqlite_errorname", "")
        detail = f" ({name})" if getattr(error, "sqlite_errorcode", 0) > 0xFF else ""
        raise StoreUnusable(f"{self.where}: {error}{detail}", hint) from error
