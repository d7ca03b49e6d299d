"""One SQLite file by itself: it stays on the right file, and trouble leaves it usable."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from imsync.errors import StoreUnusable
from imsync.store.database import Database, Schema
from tests.stores import sql

SCHEMA = Schema("test store", "TEST", ["CREATE TABLE t (n INTEGER PRIMARY KEY);"])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "test.db"


def test_nothing_is_written_into_a_file_that_was_replaced(path: Path, tmp_path: Path) -> None:
    """Also when nobody can say whether the new one is right: then it is refused, until there is a new start."""
    Database(path, SCHEMA, create=True).close()
    with closing(Database(path, SCHEMA)) as database:
        sql(path, "VACUUM INTO ?", (str(tmp_path / "copy.db"),))
        lost = path.rename(tmp_path / "lost.db")
        for suffix in ("-wal", "-shm"):
            path.with_name(path.name + suffix).rename(tmp_path / f"lost.db{suffix}")
        (tmp_path / "copy.db").rename(path)
        for _ in range(2):
            with pytest.raises(StoreUnusable, match="was replaced while in use") as raised, database.atomic() as t:
                t.execute("INSERT INTO t VALUES (1)")
            assert raised.value.hint == "stop what uses it, and start it again"
        assert sql(lost, "SELECT * FROM t") == sql(path, "SELECT * FROM t") == []


@pytest.mark.parametrize("how", ["deleted", "replaced"])
def test_a_commit_into_a_file_that_is_lost_meanwhile_is_not_believed(path: Path, tmp_path: Path, how: str) -> None:
    with closing(Database(path, SCHEMA, create=True)) as database:
        sql(path, "VACUUM INTO ?", (str(tmp_path / "copy.db"),))

        def write() -> None:
            with database.atomic() as connection:
                connection.execute("INSERT INTO t VALUES (1)")
                if how == "deleted":
                    path.unlink()
                else:
                    (tmp_path / "copy.db").rename(path)

        with pytest.raises(StoreUnusable, match=how):
            write()


def test_it_tells_when_others_have_written(path: Path, tmp_path: Path) -> None:
    def write(database: Database) -> int:
        with database.atomic() as connection:
            connection.execute("INSERT INTO t DEFAULT VALUES")
            return database.changes

    with closing(Database(path, SCHEMA, create=True)) as one, closing(Database(path, SCHEMA)) as other:
        before = write(one)
        assert write(one) == write(one) == before, "what it writes itself it knows"
        write(other)
        after = write(one)
        assert after != before
        sql(path, "PRAGMA wal_checkpoint")
        other.query("SELECT count(*) FROM t")
        assert write(one) in (after, after + 1), "to be careful does no harm"
        with pytest.raises(ZeroDivisionError), one.atomic():
            raise ZeroDivisionError
        settled = write(one)
        assert write(one) == settled
        one.on_reopen = lambda: None
        assert sql(path, "VACUUM INTO ?", (str(tmp_path / "copy.db"),)) == []
        other.close()
        for suffix in ("-wal", "-shm"):
            path.with_name(path.name + suffix).unlink()
        (tmp_path / "copy.db").rename(path)
        assert write(one) != settled, "it was opened anew"


def test_a_file_that_is_deleted_while_it_is_being_opened_is_not_made_anew(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Database(path, SCHEMA, create=True).close()
    connect = sqlite3.connect

    def late(*arguments: Any, **options: Any) -> sqlite3.Connection:
        path.unlink()
        return connect(*arguments, **options)

    monkeypatch.setattr("imsync.store.database.sqlite3.connect", late)
    with pytest.raises(StoreUnusable, match="unable to open"):
        Database(path, SCHEMA)
    assert not path.exists()


def test_a_closed_store_stays_closed(path: Path) -> None:
    database = Database(path, SCHEMA, create=True)
    database.close()
    with pytest.raises(ValueError, match="is closed"):
        database.query("SELECT 1")
    with pytest.raises(ValueError, match="is closed"), database.atomic():
        pass


def test_threads_share_a_store_one_transaction_at_a_time(path: Path) -> None:
    with closing(Database(path, SCHEMA, create=True)) as database:
        entered, leave = threading.Event(), threading.Event()

        def write() -> None:
            with database.atomic() as connection:
                connection.execute("INSERT INTO t VALUES (1)")
                entered.set()
                leave.wait(10)

        writer = threading.Thread(target=write)
        writer.start()
        assert entered.wait(10)
        seen: list[Any] = []
        reader = threading.Thread(target=lambda: seen.extend(database.query("SELECT * FROM t")))
        reader.start()
        assert seen == []  # not what is uncommitted
        leave.set()
        for thread in (writer, reader):
            thread.join(10)
        assert seen == [(1,)]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda connection: connection.close(),
        lambda connection: connection.rollback(),
        lambda connection: connection.commit(),
    ],
    ids=["close", "rollback", "commit"],
)
def test_a_transaction_that_is_ended_from_within_is_an_error(path: Path, spoil: Callable[[Any], None]) -> None:
    with closing(Database(path, SCHEMA, create=True)) as database:

        def write(n: int) -> None:
            with database.atomic() as connection:
                connection.execute("INSERT INTO t VALUES (?)", (n,))
                spoil(connection)

        with pytest.raises(Exception, match=r"closed|in the middle of a transaction"):
            write(1)
        with database.atomic() as connection:
            connection.execute("INSERT INTO t VALUES (2)")
        assert (2,) in database.query("SELECT n FROM t")


def test_by_a_relative_path_and_by_a_link(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    Database(path, SCHEMA, create=True).close()
    link = tmp_path / "link ?#%41.db"
    link.symlink_to(path)
    monkeypatch.chdir(tmp_path)
    with closing(Database(Path(link.name), SCHEMA)) as database:
        monkeypatch.chdir("/")
        with database.atomic() as connection:
            connection.execute("INSERT INTO t VALUES (1)")
        link.unlink()
        with pytest.raises(StoreUnusable, match="gone"):
            database.query("SELECT * FROM t")
        os.symlink(path, link)
        assert database.query("SELECT * FROM t") == [(1,)]
