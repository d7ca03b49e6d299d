"""How far a store's write-ahead log grows: counted in its pages, and in how often it was begun anew."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from imsync.im.group_store import GroupStore, Member
from imsync.store.checkpoints import (
    FULL_BATCH_ROWS,
    KEPT_BYTES,
    LARGE_PAGES,
    LARGEST_PAGES,
    SMALL_IN_A_ROW,
    SMALL_PAGES,
    large_pages,
)
from imsync.store.database import Database, Schema
from tests.projections import GROUP, deliver, update
from tests.stores import MIA, sql

SCHEMA = Schema(
    "test store",
    "TEST",
    ["CREATE TABLE big (n INTEGER PRIMARY KEY, x BLOB); CREATE TABLE many (n INTEGER PRIMARY KEY);"],
)
HEADER, FRAME = 32, 24 + 4096
PER_TRANSACTION = 50
"""How many pages a transaction of these tests changes, and a few."""


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with closing(Database(tmp_path / "test.db", SCHEMA, create=True)) as database:
        yield database


def write(database: Database, *, rows: int = 0, pages: int = PER_TRANSACTION) -> None:
    """One transaction that changes so many pages, and besides so many rows that lie close together."""
    with database.atomic() as connection:
        values = [(n, os.urandom(3000)) for n in range(pages)]
        connection.executemany("INSERT OR REPLACE INTO big VALUES (?, ?)", values)
        connection.executemany("INSERT OR REPLACE INTO many VALUES (?)", ((n,) for n in range(rows)))


def log_of(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")


def log_pages(path: Path) -> int:
    """How many pages the log's file has room for: as many as it has ever held since it was cut."""
    return (log_of(path).stat().st_size - HEADER) // FRAME


def begun_anew(path: Path) -> int:
    """How often the log was copied whole and begun anew since it was made: bytes 12 to 15 of its header
    (https://www.sqlite.org/fileformat2.html#walformat).
    """
    with log_of(path).open("rb") as log:
        return int.from_bytes(log.read(16)[12:], "big")


def test_small_transactions_keep_the_log_small(database: Database) -> None:
    for _ in range(4 * SMALL_PAGES // PER_TRANSACTION):
        write(database)
    assert begun_anew(database.path) >= 3
    assert log_pages(database.path) < SMALL_PAGES + 3 * PER_TRANSACTION


def test_full_batches_are_copied_seldom(database: Database) -> None:
    transactions = 2 * LARGE_PAGES // PER_TRANSACTION
    for _ in range(transactions):
        write(database, rows=FULL_BATCH_ROWS)
    assert begun_anew(database.path) <= 2
    assert LARGE_PAGES < log_pages(database.path) < LARGE_PAGES + 3 * PER_TRANSACTION


def test_pieces_between_full_batches_do_not_make_the_log_small(database: Database) -> None:
    """A fan-out has its turn after every batch, and single edits come in between."""
    for number in range(LARGE_PAGES // PER_TRANSACTION):
        write(database, rows=0 if number % SMALL_IN_A_ROW else FULL_BATCH_ROWS)
    assert begun_anew(database.path) == 0


def test_one_full_batch_among_small_transactions_lets_the_log_grow_again(database: Database) -> None:
    for _ in range(SMALL_IN_A_ROW):
        write(database)
    for _ in range(3 * SMALL_PAGES // PER_TRANSACTION):
        write(database, rows=FULL_BATCH_ROWS)
    assert log_pages(database.path) > 2 * SMALL_PAGES


def test_a_log_that_a_backlog_has_filled_is_given_back_to_the_disk(database: Database) -> None:
    for _ in range(3 * SMALL_PAGES // PER_TRANSACTION):
        write(database, rows=FULL_BATCH_ROWS)
    assert log_of(database.path).stat().st_size > KEPT_BYTES
    for _ in range(SMALL_IN_A_ROW + 1):
        write(database)
    assert log_of(database.path).stat().st_size <= KEPT_BYTES


def test_who_writes_once_leaves_the_copying_to_others(database: Database) -> None:
    """A command beside a consumer with a backlog does not wait for what the consumer has written."""
    for _ in range(2 * SMALL_PAGES // PER_TRANSACTION):
        write(database, rows=FULL_BATCH_ROWS)
    with closing(Database(database.path, SCHEMA)) as other:
        write(other, pages=1)
    write(database, pages=1)
    assert begun_anew(database.path) == 0


def test_a_reader_that_looks_for_long_keeps_the_log_and_its_end_lets_go_of_it(database: Database) -> None:
    write(database)
    with closing(sqlite3.connect(database.path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM big").fetchone()
        for _ in range(3 * SMALL_PAGES // PER_TRANSACTION):
            write(database)
        assert begun_anew(database.path) == 0
        reader.execute("COMMIT")
    for _ in range(2):
        write(database)
    assert begun_anew(database.path) == 1
    assert log_of(database.path).stat().st_size <= KEPT_BYTES


def test_a_giant_fan_out_keeps_the_log_small(tmp_path: Path) -> None:
    with closing(GroupStore(tmp_path / "group.db", create=True)) as store:
        store.bootstrap([MIA], [], (Member(n, MIA.id) for n in range(60_000)))
        sql(store.path, "PRAGMA wal_checkpoint(TRUNCATE)")
        for version in range(2, 6):
            deliver(GROUP, store, update(MIA.id, version))
            while store.go_on():
                pass
        assert begun_anew(store.path) >= 2
        assert log_pages(store.path) < 2 * SMALL_PAGES


@pytest.mark.parametrize(
    ("file_pages", "log"),
    [(1, LARGE_PAGES), (5 * LARGE_PAGES, 5 * LARGE_PAGES // 4), (10_000_000, LARGEST_PAGES)],
)
def test_a_large_log_is_the_fourth_part_of_a_large_file(file_pages: int, log: int) -> None:
    assert large_pages(file_pages) == log
