"""A user with very many rows: they are written a few at a time, and none is forgotten or left behind."""

from __future__ import annotations

import random
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from unittest.mock import patch

import pytest

from imsync.bus import Deferring
from imsync.bus.deferred import finish
from imsync.bus.outcome import APPLIED
from imsync.im import fan_out
from imsync.im.fan_out import FAN_OUT_ROWS, PIECE_ROWS, TRANSACTION_ROWS, rows_at_once
from imsync.im.group_store import GroupStore, Member
from imsync.store.projection import FanningOut, SourceState
from tests.projections import GROUP, Kind, Store, assert_rows_equal_the_replica, deliver, tombstone, update
from tests.stores import sql


@contextmanager
def small(*, rows: int = 2, piece: int = 2) -> Iterator[None]:
    """Few rows are very many."""
    with patch.multiple(fan_out, FAN_OUT_ROWS=rows, PIECE_ROWS=piece):
        yield


def fill(kind: Kind, store: Store, rows: dict[int, int]) -> None:
    """Rows of users that nobody has heard of yet, so many of each."""
    user, container = kind.columns.split(", ")[:2]
    nick_name, picture = kind.columns.split(", ")[2:4]
    with closing(sqlite3.connect(store.path)) as connection, connection:
        connection.executemany(
            f"INSERT INTO {kind.table} ({user}, {container}, {nick_name}, {picture}) VALUES (?, ?, '', '')",
            [(user_id, place) for user_id, number in rows.items() for place in range(10, 10 + number)],
        )


def jobs(store: Store) -> dict[int, tuple[int, int, int]]:
    return {row[0]: row[1:] for row in sql(store.path, "SELECT user_id, position, until, wrapped FROM fan_out")}


def names(kind: Kind, store: Store, user_id: int = 1) -> list[str]:
    """What a user's rows show, in the order of what contains them."""
    return [row[2] for row in kind.rows(store) if row[0] == user_id]


# ── one user ─────────────────────────────────────────────────────────────────────────────────────────


def test_the_event_is_settled_at_once_and_the_rows_follow(kind: Kind, store: Store) -> None:
    assert isinstance(store, Deferring)
    assert isinstance(store, FanningOut)
    fill(kind, store, {1: 5, 2: 2})
    with small():
        assert deliver(kind, store, update(1, 1), update(2, 1)) == [APPLIED, APPLIED]
        assert names(kind, store) == [""] * 5
        assert names(kind, store, 2) == ["name 1"] * 2, "who has few rows does not wait"
        assert (store.put_off.users, store.unvisited(1), store.unvisited(2)) == (1, (5, 5), None)
        assert [store.go_on() for _ in range(3)] == [True, True, False]
    assert names(kind, store) == ["name 1"] * 5
    assert (store.put_off, store.unvisited(1)) == ((0, None), None)
    assert store.go_on() is False


def test_each_piece_is_durable_and_anybody_goes_on(kind: Kind, store: Store) -> None:
    fill(kind, store, {1: 5})
    with small():
        deliver(kind, store, update(1, 1))
        store.go_on()
        with closing(kind.make(store.path)) as another:
            assert another.unvisited(1) == (3, 5)
            another.go_on()
        assert names(kind, store) == ["name 1"] * 4 + [""]
        finish(store)
    assert_rows_equal_the_replica(kind, store)


@pytest.mark.parametrize("who", ["itself", "another"])
def test_what_was_put_off_is_ended_by_whoever_writes_all(kind: Kind, store: Store, who: str) -> None:
    """Also by one that has known for long that nothing is put off."""
    fill(kind, store, {1: 5, 2: 1})
    with small():
        for version in range(1, 4):
            deliver(kind, store, update(2, version))
        with closing(kind.make(store.path)) as another:
            deliver(kind, another if who == "another" else store, update(1, 1))
        assert store.put_off.users == 1
    deliver(kind, store, update(1, 2))  # by now five rows are not many
    assert (store.put_off.users, names(kind, store)) == (0, ["name 2"] * 5)


def test_a_newer_version_goes_on_where_the_older_one_stands_and_comes_round(kind: Kind, store: Store) -> None:
    fill(kind, store, {1: 6})
    with small():
        deliver(kind, store, update(1, 1))
        store.go_on()
        deliver(kind, store, update(1, 2))
        assert store.unvisited(1) == (6, 6)
        store.go_on()
        assert names(kind, store) == ["name 1"] * 2 + ["name 2"] * 2 + [""] * 2
        store.go_on()
        deliver(kind, store, update(1, 3))  # behind the last row
        assert store.go_on()
        assert names(kind, store) == ["name 3"] * 2 + ["name 2"] * 4
        deliver(kind, store, update(1, 4))
        assert [store.go_on() for _ in range(4)] == [True, True, True, False]
    assert names(kind, store) == ["name 4"] * 6


def test_who_is_edited_all_the_time_has_every_row_written_now_and_then(kind: Kind, store: Store) -> None:
    fill(kind, store, {1: 10})
    seen: list[set[str]] = [set() for _ in range(10)]
    with small():
        for version in range(1, 31):
            deliver(kind, store, update(1, version))
            store.go_on()
            for found, name in zip(seen, names(kind, store), strict=True):
                found.add(name)
    assert [len(found) >= 6 for found in seen] == [True] * 10, "none starves"


def test_a_tombstone_empties_what_is_left(kind: Kind, store: Store) -> None:
    fill(kind, store, {1: 5})
    with small():
        deliver(kind, store, update(1, 1))
        store.go_on()
        deliver(kind, store, tombstone(1, 2))
        finish(store)
    assert names(kind, store) == [""] * 5
    assert store.put_off.users == 0


def test_whoever_joins_meanwhile_is_right_at_once(kind: Kind, store: Store) -> None:
    fill(kind, store, {1: 5})
    with small():
        deliver(kind, store, update(1, 1))
        store.go_on()
        for container in (1, 11, 14, 99):  # before it, visited, not visited yet, behind all
            kind.join(store, 1, container, remark="own")
        assert names(kind, store) == ["name 1", "name 1", "name 1", "", "", "name 1", "name 1"]
        finish(store)
    assert names(kind, store) == ["name 1"] * 7
    assert [row[4] for row in kind.rows(store)] == ["own", "", "", "", "", "", "own"]


def test_a_fan_out_that_has_become_small_ends_with_the_next_event(kind: Kind, store: Store) -> None:
    fill(kind, store, {1: 5})
    with small():
        deliver(kind, store, update(1, 1))
        store.go_on()
        sql(store.path, f"DELETE FROM {kind.table} WHERE {kind.columns.split(', ')[1]} > 11")
        deliver(kind, store, update(1, 2))
    assert jobs(store) == {}
    assert names(kind, store) == ["name 2"] * 2


def test_containers_may_have_any_number(kind: Kind, store: Store) -> None:
    user, container, nick_name, picture = kind.columns.split(", ")[:4]
    places = [-(2**63), -5, 0, 2**63 - 2, 2**63 - 1]
    for place in places:
        sql(
            store.path,
            f"INSERT INTO {kind.table} ({user}, {container}, {nick_name}, {picture}) VALUES (1, ?, '', '')",
            [place],
        )
    for piece in (1, 2, 5, 9):
        with small(piece=piece):
            deliver(kind, store, update(1, 10 * piece))
            store.go_on()
            deliver(kind, store, update(1, 10 * piece + 1))
            finish(store)
        assert names(kind, store) == [f"name {10 * piece + 1}"] * 5
        assert jobs(store) == {}


def test_the_staleness_of_an_edit_is_noted_when_its_last_row_is_written(kind: Kind, store: Store) -> None:
    fill(kind, store, {1: 5, 2: 1})

    def edits() -> int:
        return sum(n for (n,) in sql(store.path, "SELECT n FROM staleness"))

    with small():
        deliver(kind, store, update(1, 1), update(2, 1))
        assert edits() == 1
        store.go_on()
        deliver(kind, store, update(1, 2))
        assert edits() == 1
        finish(store)
    assert edits() == 2


# ── many users ───────────────────────────────────────────────────────────────────────────────────────


def test_users_take_turns(kind: Kind, store: Store) -> None:
    fill(kind, store, {1: 9, 2: 3, 3: 9})
    with small():
        deliver(kind, store, update(1, 1), update(2, 1), update(3, 1))
        for _ in range(3):
            store.go_on()
        assert [names(kind, store, user).count("name 1") for user in (1, 2, 3)] == [2, 2, 2]
        store.go_on()
        store.go_on()
    assert [names(kind, store, user).count("name 1") for user in (1, 2, 3)] == [4, 3, 3], (
        "what is spare goes to the next"
    )


def changes_of(store: Store) -> list[int]:
    """The number of rows that each transaction of the store writes from now on, whatever they are."""
    found: list[int] = []
    atomic = store._database.atomic

    @contextmanager
    def counted() -> Iterator[sqlite3.Connection]:
        with atomic() as connection:
            before = connection.total_changes
            try:
                yield connection
            finally:
                found.append(connection.total_changes - before)

    store._database.atomic = counted  # type: ignore[method-assign]
    return found


@pytest.mark.parametrize(
    "rows",
    [
        {1: 3 * TRANSACTION_ROWS},
        {1: 3 * TRANSACTION_ROWS, **dict.fromkeys(range(2, 200), 4)},
        dict.fromkeys(range(1, 60), FAN_OUT_ROWS - 1),
        dict.fromkeys(range(1, 200), FAN_OUT_ROWS - 1),
        dict.fromkeys(range(1, 3000), 20),
        {1: TRANSACTION_ROWS - 1000, **dict.fromkeys(range(2, 100), 50)},
    ],
    ids=["one", "one among many", "some of some", "many of some", "very many of few", "nearly too many"],
)
def test_no_transaction_writes_more_rows_than_it_may(kind: Kind, store: Store, rows: dict[int, int]) -> None:
    fill(kind, store, rows)
    changes = changes_of(store)
    deliver(kind, store, *(update(user, 1) for user in rows))
    beside = 3 * len(rows) + 10  # the replicas, the settlement log, what is put off, and the numbers
    assert max(changes) <= rows_at_once(len(rows)) + beside
    assert store.put_off.users
    changes.clear()
    finish(store)
    assert 0 < max(changes) <= PIECE_ROWS + fan_out.PIECE_USERS + 10
    assert_rows_equal_the_replica(kind, store)


def test_those_with_the_most_rows_are_put_off(kind: Kind, store: Store) -> None:
    rows = dict.fromkeys(range(1, 101), 10) | {7: 400, 8: 300}
    fill(kind, store, rows)
    with patch.multiple(fan_out, TRANSACTION_ROWS=990, ROWS_PER_USER=0):
        store._fan_out._counted_batches = 1
        deliver(kind, store, *(update(user, 1) for user in rows))
        assert jobs(store).keys() == {7, 8}
        finish(store)
    assert_rows_equal_the_replica(kind, store)


def test_a_large_batch_of_usual_users_is_written_at_once(kind: Kind, store: Store) -> None:
    rows = dict.fromkeys(range(1, 5001), 5)
    fill(kind, store, rows)
    deliver(kind, store, *(update(user, 1) for user in rows))
    assert store.put_off.users == 0
    assert_rows_equal_the_replica(kind, store)


def test_a_batch_that_went_too_far_is_applied_once(kind: Kind, store: Store) -> None:
    rows = dict.fromkeys(range(1, 101), 600)
    fill(kind, store, rows)
    transactions = changes_of(store)
    batch = [update(user, 1) for user in rows]
    assert deliver(kind, store, *batch) == [APPLIED] * 100
    assert len(transactions) == 2, "the first was rolled back"
    assert store.generation == 1
    assert store.tallies() == {("urn:test", "applied"): 100}
    deliver(kind, store, *(update(user, 2) for user in rows))
    assert len(transactions) == 3, "and the next ones are counted"


# ── at once ──────────────────────────────────────────────────────────────────────────────────────────


def test_many_who_go_on_at_once_do_it_once(kind: Kind, store: Store) -> None:
    fill(kind, store, dict.fromkeys(range(1, 30), 40))
    with small(rows=10, piece=7):
        deliver(kind, store, *(update(user, 1) for user in range(1, 30)))
        pieces: list[int] = []

        def help_out() -> None:
            with closing(kind.make(store.path)) as own:
                while own.go_on():
                    pieces.append(1)

        helpers = [threading.Thread(target=help_out) for _ in range(3)]
        for each in helpers:
            each.start()
        for version in range(2, 12):
            deliver(kind, store, *(update(user, version) for user in range(1, 30, version)))
        for each in helpers:
            each.join()
        finish(store)
    assert pieces
    assert_rows_equal_the_replica(kind, store)
    assert jobs(store) == {}


def test_rows_that_cannot_be_written_hold_up_nobody_else(
    kind: Kind, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    user, container = kind.columns.split(", ")[:2]
    fill(kind, store, {1: 5, 2: 5, 3: 5})
    with small():
        deliver(kind, store, update(1, 1), update(2, 1), update(3, 1))
        sql(
            store.path,
            f"CREATE TRIGGER bad BEFORE UPDATE ON {kind.table} WHEN old.{user} = 2 AND old.{container} = 13 "
            "BEGIN SELECT raise(ABORT, 'not this one'); END",
        )
        finish(store)
        assert "what was put off failed" in caplog.text
        assert jobs(store).keys() == {2}
        assert store.unvisited(2) == (3, 5)
        assert [names(kind, store, each).count("name 1") for each in (1, 2, 3)] == [5, 2, 5]
        sql(store.path, "DROP TRIGGER bad")
        finish(store)
    assert_rows_equal_the_replica(kind, store)


def test_without_its_replica_a_fan_out_ends(kind: Kind, store: Store) -> None:
    fill(kind, store, {1: 5})
    with small():
        deliver(kind, store, update(1, 1))
        sql(store.path, "DELETE FROM user_profile_replica")
        finish(store)
    assert jobs(store) == {}


# ── snapshots ────────────────────────────────────────────────────────────────────────────────────────


def source(user_id: int, version: int) -> SourceState:
    event = update(user_id, version)
    content = {name: getattr(event, name) for name in ("nick_name", "head_image", "head_image_thumb")}
    return SourceState(user_id, version, False, content)


def test_a_snapshot_heals_a_few_rows_at_a_time_too(kind: Kind, store: Store) -> None:
    fill(kind, store, {1: 5, 2: 2, 3: 5})
    with small():
        assert store.write_snapshot([source(1, 1), source(2, 1), source(3, 1)]) == 3
        assert jobs(store).keys() == {1, 3}
        finish(store)
        assert_rows_equal_the_replica(kind, store)
        assert store.write_snapshot([source(1, 1), source(2, 1), source(3, 1)]) == 0, "nothing was wrong"
        finish(store)
        user, container, nick_name = kind.columns.split(", ")[:3]
        sql(store.path, f"UPDATE {kind.table} SET {nick_name} = 'by hand' WHERE {user} = 3 AND {container} = 12")
        assert store.write_snapshot([source(1, 1), source(2, 1), source(3, 1)]) == 1
        finish(store)
    assert_rows_equal_the_replica(kind, store)
    assert sql(store.path, "SELECT count(*) FROM staleness") == [(0,)], "nobody has edited anything"


# ── histories ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("seed", range(60))
def test_random_histories(kind: Kind, store: Store, seed: int) -> None:
    """Edits, joins, deletions and pieces in any order: at every moment each row is right, or its turn will come."""
    rng = random.Random(seed)
    users, containers = range(1, 4), range(10, 20)
    fill(kind, store, {1: 7, 2: 3, 3: 1})
    versions = dict.fromkeys(users, 0)
    shown: dict[int, str] = dict.fromkeys(users, "")
    gone: set[int] = set()
    fresh: set[tuple[int, int]] = set()  # right since the last edit of their user, whatever a fan-out does
    with small(rows=rng.choice([0, 2, 4]), piece=rng.choice([1, 2, 3])):
        for _ in range(60):
            user = rng.choice(users)
            match rng.choice(["edit", "edit", "piece", "piece", "piece", "join", "quit", "delete", "reopen"]):
                case "edit" if user not in gone:
                    versions[user] += 1
                    shown[user] = f"name {versions[user]}"
                    deliver(kind, store, update(user, versions[user]))
                    fresh -= {each for each in fresh if each[0] == user}
                case "delete" if rng.random() < 0.1 and user not in gone:
                    versions[user] += 1
                    shown[user] = ""
                    gone.add(user)
                    deliver(kind, store, tombstone(user, versions[user]))
                    fresh -= {each for each in fresh if each[0] == user}
                case "piece":
                    store.go_on()
                case "join":
                    container = rng.choice(containers)
                    kind.join(store, user, container)
                    fresh.add((user, container))
                case "quit":
                    column = kind.columns.split(", ")
                    container = rng.choice(containers)
                    sql(
                        store.path,
                        f"DELETE FROM {kind.table} WHERE {column[0]} = ? AND {column[1]} = ?",
                        [user, container],
                    )
                case "reopen":
                    store.close()
                    store = kind.make(store.path)
            check(kind, store, shown, fresh)
        finish(store)
    assert jobs(store) == {}
    assert_rows_equal_the_replica(kind, store)
    assert {user: set(names(kind, store, user)) - {shown[user]} for user in users} == {key: set() for key in users}
    store.close()


def check(kind: Kind, store: Store, shown: dict[int, str], fresh: set[tuple[int, int]]) -> None:
    wrong: dict[int, list[int]] = {user: [] for user in shown}
    for user, container, nick_name, _, _ in kind.rows(store):
        if nick_name != shown[user]:
            assert (user, container) not in fresh
            wrong[user].append(container)
    under_way = jobs(store)
    for user, containers in wrong.items():
        if containers:
            position, until, wrapped = under_way[user]
            for each in containers:
                assert position <= each < until if wrapped else each >= position or each < until
        state = store.state(user)
        assert state is None or state.stale_rows == state.unvisited == len(containers)
    assert {each.key: each.unvisited for each in store.states(0, 10)} == {
        user: len(containers) for user, containers in wrong.items() if store.state(user)
    }


def test_a_row_that_was_visited_and_is_stale_is_not_excused(kind: Kind, store: Store) -> None:
    fill(kind, store, {1: 6})
    nick_name, container = kind.columns.split(", ")[2], kind.columns.split(", ")[1]
    with small():
        deliver(kind, store, update(1, 1))
        store.go_on()
        sql(store.path, f"UPDATE {kind.table} SET {nick_name} = 'by hand' WHERE {container} IN (10, 15)")
        state = store.state(1)
        assert state is not None
        assert (state.stale_rows, state.unvisited) == (5, 4)
        deliver(kind, store, update(1, 2))  # which visits them all
        state = store.state(1)
        assert state is not None
        assert (state.stale_rows, state.unvisited) == (6, 6)


def test_a_row_that_is_visited_before_the_fan_out_comes_round_is_not_excused_either(kind: Kind, store: Store) -> None:
    fill(kind, store, {1: 6})
    nick_name, container = kind.columns.split(", ")[2], kind.columns.split(", ")[1]
    with small(piece=4):
        deliver(kind, store, update(1, 1))
        store.go_on()
        deliver(kind, store, update(1, 2))
        store.go_on()
        assert jobs(store)[1] == (12, 14, 1), "it has come round, and 12 and 13 are left"
        sql(store.path, f"UPDATE {kind.table} SET {nick_name} = 'by hand' WHERE {container} IN (10, 13, 14)")
        state = store.state(1)
        assert state is not None
        assert (state.stale_rows, state.unvisited) == (4, 2)
        assert store.states(0, 9) == [state]


def test_a_store_that_is_restored_from_the_middle_goes_on_from_there(tmp_path: Path) -> None:
    path, copy = tmp_path / "group.db", tmp_path / "copy.db"
    with closing(GroupStore(path, create=True)) as store, small():
        store.bootstrap([], [], [Member(each, 1) for each in range(1, 9)])
        fill(GROUP, store, {1: 8})
        deliver(GROUP, store, update(1, 1))
        store.go_on()
        with closing(sqlite3.connect(path)) as here, closing(sqlite3.connect(copy)) as there:
            here.backup(there)
        finish(store)
        generation = store.generation
    with closing(GroupStore(copy)) as store:
        assert store.generation == generation, "it has everything that was acknowledged"
        assert store.unvisited(1) == (6, 8)
        finish(store)
        assert_rows_equal_the_replica(GROUP, store)
