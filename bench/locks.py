"""How long SQLite's write lock is held: from the end of `BEGIN IMMEDIATE` to the end of the commit.

The connections are watched from the inside. To look from another process would need a lock of its own, which slows what
is being measured.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch


class LockTimes:
    """The longest time so far."""

    def __init__(self) -> None:
        self.longest_seconds = 0.0

    @contextmanager
    def of_connections(self) -> Iterator[None]:
        """Watches every connection that is made while the block runs."""
        times = self
        connect = sqlite3.connect

        class Watched(sqlite3.Connection):
            """A connection that looks at the clock where transactions begin and end."""

            began: float | None = None

            def execute(self, sql: str, *arguments: Any) -> sqlite3.Cursor:
                """Runs a statement."""
                cursor = super().execute(sql, *arguments)
                if self.began is None:
                    if sql.lstrip()[:15].upper() == "BEGIN IMMEDIATE":
                        self.began = time.perf_counter()
                elif not self.in_transaction:
                    self._ended()
                return cursor

            def commit(self) -> None:
                """Commits."""
                super().commit()
                self._ended()

            def rollback(self) -> None:
                """Rolls back."""
                super().rollback()
                self._ended()

            def _ended(self) -> None:
                if self.began is not None:
                    times.longest_seconds = max(times.longest_seconds, time.perf_counter() - self.began)
                    self.began = None

        def watched(*arguments: Any, **named: Any) -> sqlite3.Connection:
            connection: sqlite3.Connection = connect(*arguments, **{"factory": Watched, **named})
            return connection

        with patch("sqlite3.connect", watched):
            yield
