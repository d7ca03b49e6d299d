"""How far the write-ahead log grows before SQLite copies it into the file: a little, while transactions are small, and
far, while full batches fill it.

Whoever commits past the bound copies, and waits for that. A small log makes this wait short, which is what the latency
of single edits needs. A large one makes it rare, and copies a page once that many batches have changed, which is what a
backlog needs.
"""

from __future__ import annotations

import sqlite3

SMALL_PAGES = 1000
LARGE_PAGES, LARGEST_PAGES = 8000, 32_000
"""Of SQLite's pages, 4 KiB each. A full batch changes about a thousand pages of a small file, and seven thousand of a
large one, of which the next batch changes few again."""
FILE_SHARE = 4
"""A large log grows to the fourth part of its file, within those two bounds."""

FULL_BATCH_ROWS = 2000
"""A transaction that changes more rows is that of a full batch. A piece of a fan-out changes half as many."""
SMALL_IN_A_ROW = 16
"""After so many small transactions the backlog is over. Pieces of a fan-out come between full batches one by one."""

KEPT_BYTES = 2 * SMALL_PAGES * 4096
"""Of the log's file, while transactions are small: the rest is given back to the disk."""


class Checkpoints:
    """The bound of one connection, which begins with the large one: who writes only once leaves the copying to others.

    Other connections have bounds of their own, and any that commits past its own copies what all have written.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._changes = connection.total_changes
        self._small = 0
        self._grow()

    def before_commit(self) -> None:
        """Chooses the bound by what the transaction that ends here has changed, and those before it."""
        before, self._changes = self._changes, self._connection.total_changes
        if self._changes - before > FULL_BATCH_ROWS:
            if self._small >= SMALL_IN_A_ROW:
                self._grow()
            self._small = 0
        elif self._small < SMALL_IN_A_ROW:
            self._small += 1
            if self._small == SMALL_IN_A_ROW:
                self._shrink()

    def _grow(self) -> None:
        (pages,) = self._connection.execute("PRAGMA page_count").fetchone()
        self._set(large_pages(pages), -1)

    def _shrink(self) -> None:
        self._set(SMALL_PAGES, KEPT_BYTES)

    def _set(self, pages: int, kept_bytes: int) -> None:
        self._connection.execute(f"PRAGMA wal_autocheckpoint = {pages}")
        # with a limit all the time, a large log's file would be cut and made anew again and again, which is dear
        self._connection.execute(f"PRAGMA journal_size_limit = {kept_bytes}")


def large_pages(file_pages: int) -> int:
    """The bound while full batches fill the log of a file that has so many pages."""
    return min(max(LARGE_PAGES, file_pages // FILE_SHARE), LARGEST_PAGES)
