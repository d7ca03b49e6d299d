"""The group store and the friend store: the copies follow the newest event, and whoever joins gets them."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from imsync.bus.outcome import APPLIED, DUPLICATE, SUPERSEDED
from imsync.errors import StoreUnusable
from imsync.im import profile_projection
from imsync.im.events import IMBaseEvent, UserDeleted
from imsync.im.group_store import Group, GroupStore, Member
from imsync.im.profile_projection import REPLICA_SQL
from imsync.im.user_store import Profile
from imsync.store.projection import CopyState, SourceState
from tests.projections import (
    GROUP,
    Kind,
    Store,
    assert_rows_equal_the_replica,
    deliver,
    everything,
    tombstone,
    update,
)
from tests.stores import sql

# ── the copies follow ────────────────────────────────────────────────────────────────────────────────


def test_the_copies_follow_and_the_override_stays(kind: Kind, store: Store) -> None:
    kind.join(store, 1, 10, remark="boss")
    kind.join(store, 1, 11)
    kind.join(store, 2, 10, remark="")
    first, second = update(1, 1), update(1, 2, "小美 🚀")
    assert deliver(kind, store, first) == [APPLIED]
    assert deliver(kind, store, second, update(2, 7)) == [APPLIED, APPLIED]
    assert kind.rows(store) == [
        (1, 10, "小美 🚀", kind.picture(second), "boss"),
        (1, 11, "小美 🚀", kind.picture(second), ""),
        (2, 10, "name 7", kind.picture(update(2, 7)), ""),
    ]
    assert_rows_equal_the_replica(kind, store)


def test_each_store_copies_the_picture_that_it_shows(kind: Kind, store: Store) -> None:
    content = {"nick_name": "n", "head_image": "large", "head_image_thumb": "small"}
    shown = "small" if kind is GROUP else "large"
    kind.join(store, 1, 10)
    deliver(kind, store, update(1, 1, **content))
    assert kind.rows(store) == [(1, 10, "n", shown, "")]
    assert store.expected(SourceState(1, 1, False, content)) == ("n", shown)


def test_an_empty_avatar_is_a_value(kind: Kind, store: Store) -> None:
    kind.join(store, 1, 10)
    deliver(kind, store, update(1, 1))
    deliver(kind, store, update(1, 2, head_image="", head_image_thumb=""))
    assert kind.rows(store) == [(1, 10, "name 2", "", "")]


def test_a_tombstone_empties_the_copies_and_is_final(kind: Kind, store: Store) -> None:
    kind.join(store, 1, 10, remark="old friend")
    deliver(kind, store, update(1, 1))
    assert deliver(kind, store, tombstone(1, 3)) == [APPLIED]
    emptied = [(1, 10, "", "", "old friend")]
    assert kind.rows(store) == emptied
    late = [update(1, 2), update(1, 4), update(1, 2**63 - 1), tombstone(1, 5)]
    assert deliver(kind, store, *late) == [SUPERSEDED] * 4
    assert [deliver(kind, store, update(1, n)) for n in (2, 9)] == [[SUPERSEDED]] * 2
    kind.join(store, 1, 12)
    assert kind.rows(store) == [*emptied, (1, 12, "", "", "")]
    assert store.state(1) == CopyState(1, 3, True, ("", ""), rows=2, stale_rows=0)


@pytest.mark.parametrize("newest", [update(1, 5), tombstone(1, 5)], ids=["an update", "a tombstone"])
def test_the_statement_itself_lets_no_version_fall(kind: Kind, store: Store, newest: IMBaseEvent) -> None:
    """The gate stands in SQL, whatever was looked up before."""
    deliver(kind, store, newest)
    before = sql(store.path, "SELECT * FROM user_profile_replica")
    versions = (4, 5, 6) if isinstance(newest, UserDeleted) else (4, 5)
    for version in versions:
        sql(store.path, REPLICA_SQL["write_replica"], (1, version, "late", "late", 0, 9))
        assert sql(store.path, "SELECT * FROM user_profile_replica") == before


def test_users_whom_nobody_copies_are_replicated_too(kind: Kind, store: Store) -> None:
    deliver(kind, store, update(5, 3))
    assert kind.rows(store) == []
    assert store.state(5) == CopyState(5, 3, False, ("name 3", kind.picture(update(5, 3))), rows=0, stale_rows=0)


def test_events_of_any_time_are_applied(kind: Kind, store: Store) -> None:
    ends = [datetime.min, datetime.max.replace(microsecond=0), datetime(1970, 1, 1)]
    events = [update(n, 1, occurred_at=end.replace(tzinfo=UTC)) for n, end in enumerate(ends, start=1)]
    assert deliver(kind, store, *events) == [APPLIED] * 3


def test_versions_are_looked_up_where_one_was_old(kind: Kind, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until then, and some batches later, writing tells that all are newer."""
    monkeypatch.setattr(profile_projection, "LOOKED_UP_BATCHES", 2)
    looked: list[set[int]] = []
    look = store._versions
    monkeypatch.setattr(store, "_versions", lambda users: looked.append(users) or look(users))
    kind.join(store, 1, 10)
    repeated = update(1, 4)
    assert deliver(kind, store, update(1, 2), update(2, 2)) == [APPLIED] * 2
    assert deliver(kind, store, repeated, update(1, 3), update(2, 3)) == [APPLIED, SUPERSEDED, APPLIED]
    assert deliver(kind, store, repeated, update(3, 1)) == [DUPLICATE, APPLIED]
    assert looked == []
    assert deliver(kind, store, update(1, 1), update(2, 4), update(2, 1)) == [SUPERSEDED, APPLIED, SUPERSEDED]
    assert deliver(kind, store, update(1, 5)) == [APPLIED]
    assert looked == [{1, 2}, {1}]
    assert deliver(kind, store, update(1, 6)) == [APPLIED]
    assert looked == [{1, 2}, {1}]
    assert_rows_equal_the_replica(kind, store)
    states = [store.state(user) for user in (1, 2, 3)]
    assert [state and state.version for state in states] == [6, 4, 1]
    assert sum(store.tallies().values()) == 12


def test_batches_larger_than_a_lookup(kind: Kind, store: Store) -> None:
    users = range(1, 1202)
    first = [update(n, 2) for n in users]
    assert deliver(kind, store, *first) == [APPLIED] * 1201
    again = deliver(kind, store, *(update(n, 1 + n % 3) for n in users))
    assert again == [APPLIED if n % 3 == 2 else SUPERSEDED for n in users]
    assert [state.key for state in store.states(0, 5000)] == list(users)
    # recognised among thousands that were settled since
    assert deliver(kind, store, first[0], first[600], first[-1]) == [DUPLICATE] * 3


# ── joining ──────────────────────────────────────────────────────────────────────────────────────────


def test_who_joins_after_the_event_was_consumed_has_the_new_copies(kind: Kind, store: Store) -> None:
    deliver(kind, store, update(1, 1), update(1, 2))
    kind.join(store, 1, 10, remark="r")
    assert kind.rows(store) == [(1, 10, "name 2", kind.picture(update(1, 2)), "r")]


def test_who_joins_before_any_event_is_filled_in_by_it(kind: Kind, store: Store) -> None:
    kind.join(store, 1, 10, remark="r")
    assert kind.rows(store) == [(1, 10, "", "", "r")]
    assert store.state(1) == CopyState(1, 0, False, ("", ""), rows=1, stale_rows=0)
    deliver(kind, store, update(1, 1))
    assert kind.rows(store) == [(1, 10, "name 1", kind.picture(update(1, 1)), "r")]


def test_who_comes_back_gets_fresh_copies_and_keeps_the_override(kind: Kind, store: Store) -> None:
    deliver(kind, store, update(1, 1))
    kind.join(store, 1, 10, remark="mine")
    picture = kind.columns.split(", ")[3]
    sql(store.path, f"UPDATE {kind.table} SET {picture} = 'stale'")
    if kind is GROUP:
        sql(store.path, "UPDATE im_group_member SET quit = 1")
    kind.join(store, 1, 10, remark="other")
    assert kind.rows(store) == [(1, 10, "name 1", kind.picture(update(1, 1)), "mine")]
    if isinstance(store, GroupStore):
        assert [member.quit for member in store.members(10)] == [0]


def test_who_joins_while_an_event_is_being_applied_waits_and_has_its_copies(kind: Kind, store: Store) -> None:
    begun = threading.Event()

    def note(statement: str) -> None:
        if statement.startswith("BEGIN"):
            begun.set()

    def join() -> None:
        with closing(kind.make(store.path)) as own:
            own._database._connection.set_trace_callback(note)
            kind.join(own, 1, 10)

    with closing(sqlite3.connect(store.path, isolation_level=None)) as consumer, ThreadPoolExecutor(1) as pool:
        consumer.execute("BEGIN IMMEDIATE")
        consumer.execute(REPLICA_SQL["write_replica"], (1, 1, "name 1", "picture", 0, 0))
        joining = pool.submit(join)
        assert begun.wait(10)
        consumer.execute("COMMIT")
        joining.result(20)
    assert kind.rows(store) == [(1, 10, "name 1", "picture", "")]


def test_joins_beside_events_leave_no_stale_row(kind: Kind, store: Store) -> None:
    """For each user at once: the only event there will be, and a join."""
    users = range(1, 61)
    together = threading.Barrier(2, timeout=20)

    def for_each_user(work: Callable[[Store, int], object]) -> None:
        with closing(kind.make(store.path)) as own:
            for user_id in users:
                together.wait()
                work(own, user_id)

    def consume(own: Store, user_id: int) -> None:
        deliver(kind, own, update(user_id, 1))

    def join(own: Store, user_id: int) -> None:
        kind.join(own, user_id, 10)

    with ThreadPoolExecutor(2) as pool:
        for running in [pool.submit(for_each_user, work) for work in (consume, join)]:
            running.result(60)
    picture = kind.picture(update(1, 1))
    assert kind.rows(store) == [(user_id, 10, "name 1", picture, "") for user_id in users]


# ── transactions, states ─────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "moment",
    [
        "BEFORE INSERT ON user_profile_replica WHEN new.user_id = 2",
        "BEFORE UPDATE ON {table} WHEN new.{user} = 2",
        "BEFORE INSERT ON settled",
        "BEFORE INSERT ON tally",
        "BEFORE INSERT ON staleness",
    ],
)
def test_an_error_in_the_middle_leaves_nothing(kind: Kind, store: Store, moment: str) -> None:
    for user_id in (1, 2):
        kind.join(store, user_id, 10)
    before = everything(store)
    moment = moment.format(table=kind.table, user=kind.columns.split(", ")[0])
    sql(store.path, f"CREATE TRIGGER sabotage {moment} BEGIN SELECT RAISE(FAIL, 'no'); END")
    events = [update(1, 1), update(2, 1)]
    with pytest.raises(Exception, match="no"):
        deliver(kind, store, *events)
    assert everything(store) == before
    sql(store.path, "DROP TRIGGER sabotage")
    assert deliver(kind, store, *events) == [APPLIED, APPLIED]
    assert_rows_equal_the_replica(kind, store)


def test_a_locked_store_is_unusable_for_now(kind: Kind, store: Store) -> None:
    with closing(kind.make(store.path, busy_timeout_ms=50)) as impatient:
        with store._database.atomic(), pytest.raises(StoreUnusable, match="locked"):
            deliver(kind, impatient, update(1, 1))
        assert deliver(kind, impatient, update(1, 1)) == [APPLIED]


def test_states_show_replicas_and_rows_also_those_without_a_replica(kind: Kind, store: Store) -> None:
    deliver(kind, store, update(2, 4), tombstone(5, 2))
    deliver(kind, store, update(6, 4))
    for user_id, container in ((2, 10), (2, 11), (3, 10), (4, 10), (6, 10), (6, 11)):
        kind.join(store, user_id, container)
    user, container_column, name, picture, _ = kind.columns.split(", ")
    sql(store.path, f"UPDATE {kind.table} SET {name} = 'wrong' WHERE {user} IN (2, 4)")
    sql(store.path, f"UPDATE {kind.table} SET {picture} = '' WHERE {user} = 6 AND {container_column} = 10")
    expected = [
        CopyState(2, 4, False, ("name 4", kind.picture(update(2, 4))), rows=2, stale_rows=2),
        CopyState(3, 0, False, ("", ""), rows=1, stale_rows=0),
        CopyState(4, 0, False, ("", ""), rows=1, stale_rows=1),
        CopyState(5, 2, True, ("", ""), rows=0, stale_rows=0),
        CopyState(6, 4, False, ("name 4", kind.picture(update(6, 4))), rows=2, stale_rows=1),
    ]
    assert store.states(0, 99) == expected
    paged: list[CopyState] = []
    while page := store.states(paged[-1].key if paged else 0, 1):
        paged += page
    assert paged == expected
    assert [store.state(n) for n in range(1, 8)] == [None, *expected, None]


def test_staleness_is_the_time_from_the_edit_to_the_copies(kind: Kind, store: Store) -> None:
    assert (store.staleness().p50_ms, store.staleness().p99_ms) == (None, None)
    now = datetime.now(UTC)
    ages = [10.0] * 95 + [1000.0] * 5
    events = [update(n, 1, occurred_at=now - timedelta(seconds=age)) for n, age in enumerate(ages, start=1)]
    deliver(kind, store, *events, update(1, 1, occurred_at=now - timedelta(days=9)))  # which is superseded
    p50, p99 = store.staleness().p50_ms, store.staleness().p99_ms
    assert p50 == pytest.approx(10_000, rel=0.15)
    assert p99 == pytest.approx(1_000_000, rel=0.15)


def test_a_store_that_was_filled_from_a_snapshot_goes_on_from_there(tmp_path: Path) -> None:
    people = [
        Profile(1, "a", "A", "large", "small", version=4),
        Profile(2, "b", "", "", "", version=2, deleted=1),
    ]
    with closing(GroupStore(tmp_path / "group.db", create=True)) as store:
        store.bootstrap(people, [Group(10, "g", 1)], [Member(10, 1, "mine"), Member(10, 2, quit=True)])
        assert GROUP.rows(store) == [(1, 10, "A", "small", "mine"), (2, 10, "", "", "")]
        assert [member.quit for member in store.members(10)] == [0, 1]
        assert store.totals() == (1, 2)
        late = [update(1, 3), update(1, 4), update(2, 1)]
        assert deliver(GROUP, store, *late) == [SUPERSEDED] * 3
        assert deliver(GROUP, store, update(1, 5)) == [APPLIED]
        assert_rows_equal_the_replica(GROUP, store)
