"""Stores of version 1: they are migrated whole or not at all, and nothing of them is lost."""

from __future__ import annotations

import signal
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from uuid import UUID

import pytest

from imsync.bus.outcome import APPLIED, DUPLICATE, SUPERSEDED
from imsync.errors import StoreUnusable
from imsync.im.events import IMBaseEvent
from tests import version1
from tests.projections import Kind, deliver, update
from tests.servers import Spawn
from tests.stores import sql


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "copies.db"


def old_store(kind: Kind, path: Path, *, store_id: str | None = None, settled: IMBaseEvent | None = None) -> None:
    """A store of version 1, as `imsync init` made it, and perhaps fed."""
    connection = version1.make(path, kind.make.schema.application_id)
    if store_id:
        connection.execute("INSERT INTO meta VALUES ('store_id', ?)", (store_id,))
    connection.execute("INSERT INTO user_profile_replica VALUES (1, 4, 'name 4', 'picture', 0, 0)")
    connection.execute(
        f"INSERT INTO {kind.table} ({kind.columns}) VALUES (1, 10, 'name 4', 'picture', 'mine')",
    )
    connection.execute("INSERT INTO tally VALUES ('urn:test', 'applied', 3)")
    if settled:
        connection.execute("INSERT INTO settled VALUES (?, 'applied', '5-0')", (settled.event_id.bytes,))
    connection.close()


def test_a_store_of_version_1_is_migrated_and_keeps_everything(kind: Kind, path: Path) -> None:
    event = update(1, 4)
    old_store(kind, path, store_id="11111111-2222-4333-8444-555555555555", settled=event)
    with closing(kind.make(path)) as store:
        assert sql(path, "PRAGMA user_version") == [(3,)]
        assert store.store_id == "11111111-2222-4333-8444-555555555555"
        assert store.generation == 1  # it was fed
        assert store.position == "0-0"
        assert kind.rows(store) == [(1, 10, "name 4", "picture", "mine")]
        assert store.tallies() == {("urn:test", "applied"): 3}
        assert deliver(kind, store, event, update(1, 3), update(1, 5)) == [DUPLICATE, SUPERSEDED, APPLIED]
        assert store.generation == 2
    with closing(kind.make(path)) as again:
        assert (again.store_id[:8], again.generation) == ("11111111", 2)


def test_a_store_of_version_1_without_an_identity_gets_one(kind: Kind, path: Path) -> None:
    old_store(kind, path)
    with closing(kind.make(path)) as store:
        identity = store.store_id
        assert UUID(identity).version == 4
        assert store.generation == 0  # it was never fed
    with closing(kind.make(path)) as again:
        assert again.store_id == identity


def tables(path: Path) -> set[tuple[str, str]]:
    """What a store is made of, apart from how it was laid out."""
    return {(name, " ".join(text.split())) for name, text in sql(path, "SELECT name, sql FROM sqlite_schema") if text}


def test_a_migrated_store_is_made_like_a_fresh_one(kind: Kind, path: Path, tmp_path: Path) -> None:
    old_store(kind, path)
    before = tables(path)
    with closing(kind.make(path)), closing(kind.make(tmp_path / "fresh.db", create=True)) as fresh:
        assert tables(path) == tables(fresh.path)
    with closing(version1.make(tmp_path / "old.db", kind.make.schema.application_id)):
        assert tables(tmp_path / "old.db") == before


def test_the_first_migration_makes_what_version_1_was(kind: Kind, path: Path, tmp_path: Path) -> None:
    """What was shipped is never edited: stores that exist would differ from those to come."""
    version1.make(tmp_path / "old.db", kind.make.schema.application_id).close()
    for statement in kind.make.schema.migrations[0].split(";"):
        sql(path, statement)
    assert tables(path) == tables(tmp_path / "old.db")


KILLED_WHILE_MIGRATING = """
import os, signal, sqlite3, sys
from pathlib import Path
from imsync.im.friend_store import FriendStore
from imsync.im.group_store import GroupStore
statement = sys.argv[3]
def trace(sql):
    if sql.strip().startswith(statement):
        os.kill(os.getpid(), signal.SIGKILL)
class Dying(sqlite3.Connection):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.set_trace_callback(trace)
connect = sqlite3.connect
sqlite3.connect = lambda *args, **kwargs: connect(*args, factory=Dying, **kwargs)
{"group": GroupStore, "friend": FriendStore}[sys.argv[2]](Path(sys.argv[1]))
"""


@pytest.mark.parametrize("statement", ["INSERT INTO meta", "PRAGMA user_version = 2", "COMMIT"])
def test_kill_9_in_the_middle_of_a_migration_leaves_the_old_store(
    kind: Kind, path: Path, spawn: Spawn, statement: str
) -> None:
    event = update(1, 4)
    old_store(kind, path, settled=event)
    dying = spawn("-c", KILLED_WHILE_MIGRATING, path, kind.make.name, statement)
    assert dying.wait(30) == -signal.SIGKILL
    assert sql(path, "PRAGMA user_version") == [(1,)]
    assert sql(path, "SELECT * FROM meta") == []
    with closing(kind.make(path)) as store:
        assert store.generation == 1
        assert deliver(kind, store, event) == [DUPLICATE]


def test_a_store_of_version_2_is_migrated_and_keeps_everything(kind: Kind, path: Path) -> None:
    event = update(1, 4)
    schema = kind.make.schema
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        for script in schema.migrations[:2]:
            connection.executescript(script)
        connection.execute(f"PRAGMA application_id = {schema.magic}")
        connection.execute("PRAGMA user_version = 2")
        connection.execute("UPDATE meta SET value = 41 WHERE key = 'generation'")
        connection.execute("INSERT INTO settled VALUES (?, 'applied', '5-0')", (event.event_id.bytes,))
        connection.execute("INSERT INTO user_profile_replica VALUES (1, 4, 'name 4', 'picture', 0, 0)")
        connection.execute(f"INSERT INTO {kind.table} ({kind.columns}) VALUES (1, 10, 'name 4', 'picture', 'mine')")
        connection.commit()
        ((store_id,),) = connection.execute("SELECT value FROM meta WHERE key = 'store_id'").fetchall()
    with closing(kind.make(path)) as store:
        assert sql(path, "PRAGMA user_version") == [(3,)]
        assert (store.store_id, store.generation, store.put_off.users) == (store_id, 41, 0)
        assert kind.rows(store) == [(1, 10, "name 4", "picture", "mine")]
        assert deliver(kind, store, event, update(1, 5)) == [DUPLICATE, APPLIED]
        assert not store.go_on()


def test_who_opens_an_old_store_at_once_agrees_on_what_it_is(kind: Kind, path: Path) -> None:
    old_store(kind, path)

    def identity(_: int) -> str:
        with closing(kind.make(path)) as store:
            return store.store_id

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(identity, range(4)))) == 1


def test_a_store_that_a_newer_imsync_migrates_meanwhile_is_left_alone(kind: Kind, path: Path) -> None:
    with closing(kind.make(path, create=True)) as store:
        deliver(kind, store, update(1, 1))
        sql(path, "PRAGMA user_version = 4")
        for _ in range(2):
            with pytest.raises(StoreUnusable, match="schema version 4") as raised:
                deliver(kind, store, update(1, 2))
            assert raised.value.hint == "upgrade imsync"
        sql(path, "PRAGMA user_version = 3")
        assert deliver(kind, store, update(1, 2)) == [APPLIED]
