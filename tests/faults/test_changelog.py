"""The change log tells of every change, and cannot be made to forget one."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.faults.changelog import install
from tests.faults.rig import Template
from tests.projections import FRIEND, GROUP, Kind, deliver, tombstone, update
from tests.stores import sql

KINDS = pytest.mark.parametrize("kind", [GROUP, FRIEND], ids=["group", "friend"])


def logged(path: Path, table: str) -> list[tuple[object, ...]]:
    return [row[1:] for row in sql(path, f"SELECT * FROM {table} ORDER BY seq")]


@pytest.fixture
def fresh(template: Template, tmp_path: Path) -> Path:
    """The stores of demo data, with change logs."""
    return template.copy(tmp_path / "stores")


@KINDS
def test_it_begins_with_the_snapshot_and_tells_of_every_change(fresh: Path, kind: Kind) -> None:
    path = fresh / f"{kind.make.name}.db"
    before = logged(path, "fault_replica_log")
    assert before == sql(
        path, "SELECT user_id, version, nick_name, head_image, deleted FROM user_profile_replica ORDER BY user_id"
    )
    ((user,),) = sql(path, f"SELECT user_id FROM user_profile_replica WHERE NOT deleted AND user_id IN "
                           f"(SELECT {kind.columns.split(',')[0]} FROM {kind.table}) LIMIT 1")  # fmt: skip
    with closing(kind.make(path)) as store:
        rows = [row for row in kind.rows(store) if row[0] == user]
        first = update(user, 5)
        deliver(kind, store, first)
        deliver(kind, store, first, update(user, 4))  # a repeat, and one that comes too late
        deliver(kind, store, tombstone(user, 9))
    picture = kind.picture(first)
    changes = logged(path, "fault_replica_log")[len(before) :]
    assert changes == [(user, 5, "name 5", picture, 0), (user, 9, "", "", 1)]
    copies = logged(path, "fault_copy_log")
    assert copies == [(u, p, "name 5", picture, r) for u, p, _, _, r in rows] + [
        (u, p, "", "", r) for u, p, _, _, r in rows
    ]
    outcomes = [row[2:] for row in logged(path, "fault_settled_log")]
    assert outcomes == [(None, "applied"), (None, "superseded"), (None, "applied")]


@KINDS
def test_what_is_rolled_back_is_not_told(fresh: Path, kind: Kind) -> None:
    path = fresh / f"{kind.make.name}.db"
    before = [logged(path, log) for log in ("fault_replica_log", "fault_copy_log", "fault_settled_log")]
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("UPDATE user_profile_replica SET version = version + 1")
        connection.execute("INSERT INTO settled (event_key, outcome, entry_id) VALUES ('k', 'applied', '1-0')")
        connection.execute("ROLLBACK")
    assert [logged(path, log) for log in ("fault_replica_log", "fault_copy_log", "fault_settled_log")] == before


def test_changes_of_outcomes_and_pruning_are_told(fresh: Path) -> None:
    path = fresh / "group.db"
    sql(path, "INSERT INTO settled (event_key, outcome, entry_id) VALUES ('k', 'dead', '1-0')")
    sql(path, "UPDATE settled SET outcome = 'applied'")
    sql(path, "DELETE FROM settled")
    sql(path, "DELETE FROM user_profile_replica WHERE user_id IN (SELECT min(user_id) FROM user_profile_replica)")
    assert logged(path, "fault_settled_log") == [
        ("k", "1-0", None, "dead"),
        ("k", "1-0", "dead", "applied"),
        ("k", "1-0", "applied", None),
    ]
    assert logged(path, "fault_replica_log")[-1][1] is None


@pytest.mark.parametrize("statement", ["UPDATE {} SET seq = seq + 1000", "DELETE FROM {}"])
@pytest.mark.parametrize("log", ["fault_replica_log", "fault_copy_log", "fault_settled_log"])
def test_nothing_can_be_taken_back(fresh: Path, log: str, statement: str) -> None:
    path = fresh / "group.db"
    sql(path, "INSERT INTO settled (event_key, outcome, entry_id) VALUES ('k', 'applied', '1-0')")
    sql(path, "UPDATE im_group_member SET head_image = 'x'")
    before = logged(path, log)
    assert before
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        sql(path, statement.format(log))
    assert logged(path, log) == before


def test_installing_it_twice_changes_nothing(fresh: Path) -> None:
    path = fresh / "group.db"
    before = logged(path, "fault_replica_log")
    install(path, "group")
    assert logged(path, "fault_replica_log") == before
