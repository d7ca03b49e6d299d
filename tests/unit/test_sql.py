"""Statements for many rows at once."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

import pytest

from imsync.store.sql import LOOK_UP_AT_ONCE, ROWS_PER_STATEMENT, insert_many, look_up


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:")) as opened:
        opened.execute("CREATE TABLE number (n INTEGER, square INTEGER)")
        yield opened


@pytest.mark.parametrize("rows", [0, 1, ROWS_PER_STATEMENT - 1, ROWS_PER_STATEMENT, 3 * ROWS_PER_STATEMENT + 7])
def test_every_row_is_inserted_once(connection: sqlite3.Connection, rows: int) -> None:
    numbers = [(n, n * n) for n in range(rows)]
    insert_many(connection, "INSERT INTO number (n, square) VALUES (?, ?)", iter(numbers))
    assert connection.execute("SELECT n, square FROM number ORDER BY n").fetchall() == numbers


def test_what_is_looked_up_is_found_once_by_few_statements(connection: sqlite3.Connection) -> None:
    """Each statement costs memory, for as long as its connection keeps it."""
    connection.executemany("INSERT INTO number VALUES (?, ?)", [(n, n * n) for n in range(0, 1300, 2)])
    statements: set[str] = set()

    def query(sql: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
        statements.add(sql)
        return connection.execute(sql, parameters).fetchall()

    for values in (0, 1, 2, 9, 10, 11, 100, 101, 499, 500, 501, 1207):
        found = sorted(look_up(query, "SELECT n, square FROM number WHERE n IN", range(values)))
        assert found == [(n, n * n) for n in range(0, values, 2)]
    assert len(statements) == len(LOOK_UP_AT_ONCE)
