"""One SQLite file, opened the one way that keeps the promises: WAL, `synchronous=FULL`, `BEGIN IMMEDIATE`.

sqlite3's errors become `StoreUnusable` here and travel no further.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imsync.errors import StoreUnusable

CACHE_KIB = 8 * 1024
CHECKPOINT_PAGES = 8000
"""How many pages of 4 KiB the write-ahead log grows to before it is copied into the file: a batch touches about a
thousand, and the default would copy them after every one."""

_HINTS = {
    "locked": "another process is writing to it: try again",
    "full": "free some disk space; nothing is lost meanwhile",
    "readonly": "check the permissions of the file and its folder",
    "malformed": "the file is damaged: restore it, or rebuild it from the source",
    "not a database": "the file is damaged or is something else",
    "disk i/o": "check the disk; nothing is lost meanwhile",
}


@dataclass(frozen=True, slots=True)
class Schema:
    """What is in a file.

    Args:
        name: what people call this store, such as "group store".
        application_id: SQLite's application_id, four letters, so that one store is never taken for another.
        migrations: scripts; the first makes version 1, each further one the next version.
    """

    name: str
    application_id: str
    migrations: Sequence[str]

    @property
    def magic(self) -> int:
        """The application_id as the number that the file header holds."""
        return int.from_bytes(self.application_id.encode("ascii"), "big")


class Database:
    """An open store.

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
        if create:
            self._make_file()
        elif not path.is_file():
            raise StoreUnusable(f"there is no {schema.name} at {path}", "run `imsync init` first, or check --data-dir")
        with self._translated():
            self._connection = sqlite3.connect(path, isolation_level=None, timeout=busy_timeout_ms / 1000)
            try:
                self._prepare(create)
            except BaseException:
                self._connection.close()
                raise

    def _make_file(self) -> None:
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))
        except OSError as error:
            raise StoreUnusable(
                f"{self.schema.name} {self.path} cannot be made: {error.strerror}", "check the folder"
            ) from error

    def _prepare(self, create: bool) -> None:
        execute = self._connection.execute
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
        execute("PRAGMA journal_mode = WAL")
        execute("PRAGMA synchronous = FULL")
        execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        execute("PRAGMA temp_store = MEMORY")
        execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
        latest = len(self.schema.migrations)
        if version > latest:
            raise StoreUnusable(
                f"{self.path} has schema version {version}, this imsync knows {latest}", "upgrade imsync"
            )
        if version < latest:
            self._migrate()

    def _migrate(self) -> None:
        with self.atomic() as connection:
            # read again under the lock: another process may have migrated it meanwhile
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            for number, script in enumerate(self.schema.migrations[version:], start=version + 1):
                for statement in script.split(";"):
                    connection.execute(statement)
                connection.execute(f"PRAGMA application_id = {self.schema.magic}")
                connection.execute(f"PRAGMA user_version = {number}")

    @contextmanager
    def atomic(self) -> Iterator[sqlite3.Connection]:
        """A write transaction: committed when the block ends, rolled back when it raises.

        Raises:
            StoreUnusable: locked for longer than the busy timeout, disk full, IO error, damaged.
        """
        with self._translated():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def query(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows of a reading statement.

        Raises:
            StoreUnusable: as `atomic`.
        """
        with self._translated():
            return self._connection.execute(sql, parameters).fetchall()

    def close(self) -> None:
        """Closes the file."""
        self._connection.close()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.OperationalError, sqlite3.DatabaseError) as error:
            if isinstance(error, sqlite3.IntegrityError | sqlite3.ProgrammingError):
                raise  # a defect of ours, not of the disk
            text = str(error)
            hint = next((hint for word, hint in _HINTS.items() if word in text), "check the file and its folder")
            raise StoreUnusable(f"{self.schema.name} {self.path}: {text}", hint) from error


def placeholders(count: int) -> str:
    """The list `(?,?,…)` for an IN."""
    return f"({','.join('?' * count)})"
