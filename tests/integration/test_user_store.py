"""The user store: an edit and its event are one, whichever statement fails."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from imsync.errors import StoreUnusable, UsageError
from imsync.im.events import UserDeleted, UserUpdated
from imsync.im.outbox import ALL_PLACES
from imsync.im.user_store import OutboxBacklog, Profile, ProfileEdit, UserStore
from tests.stores import GONE, MIA, NOAH, PEOPLE, latest_event, nick, outbox_events, sql


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "user.db"


@pytest.fixture
def store(path: Path) -> Iterator[UserStore]:
    made = UserStore(path, create=True)
    made.bootstrap(PEOPLE, origin="test")
    yield made
    made.close()


def contents(path: Path) -> list[tuple[Any, ...]]:
    """Profiles and outbox, byte by byte."""
    return sql(path, "SELECT * FROM im_user ORDER BY id") + sql(path, "SELECT * FROM outbox ORDER BY seq")


# ── an edit and its event ────────────────────────────────────────────────────────────────────────────


def test_an_edit_carries_the_full_profile_and_the_version_of_the_row(store: UserStore, path: Path) -> None:
    assert store.edit(ProfileEdit(user_id=2, head_image="n.png"))
    assert store.edit(nick(2, "Noah 🚀"))
    assert store.edit(ProfileEdit(user_id=2, head_image="", head_image_thumb="t"))
    told = [
        (e.id, e.version, e.nick_name, e.head_image, e.head_image_thumb)
        for e in outbox_events(path)
        if isinstance(e, UserUpdated)
    ]
    assert told == [
        (2, 42, "Noah", "n.png", ""),
        (2, 43, "Noah 🚀", "n.png", ""),
        (2, 44, "Noah 🚀", "", "t"),
    ]
    assert {event.source for event in outbox_events(path)} == {store.source}
    assert store.profiles([1, 2, 9]) == {1: MIA, 2: Profile(2, "noah", "Noah 🚀", "", "t", version=44)}


def test_an_edit_that_changes_nothing_publishes_nothing(store: UserStore, path: Path) -> None:
    before = contents(path)
    assert not store.edit(ProfileEdit(user_id=1, nick_name="Mia", head_image="mia.png"))
    report = store.edit_many([ProfileEdit(user_id=2, head_image=""), ProfileEdit(user_id=1)])
    assert (report.accepted, report.unchanged, list(report.rejected), report.last_seq) == (0, 2, [], 0)
    assert contents(path) == before


def test_several_edits_of_one_user_are_as_many_events(store: UserStore, path: Path) -> None:
    report = store.edit_many([nick(1, "B"), nick(1, "B"), nick(2, "N"), nick(1, "Mia")])
    assert (report.accepted, report.unchanged, report.last_seq) == (3, 1, 3)
    assert [(e.id, e.version) for e in outbox_events(path)] == [(1, 2), (2, 42), (1, 3)]
    assert store.profiles([1])[1] == Profile(1, "mia", "Mia", "mia.png", "mia_t.png", version=3)
    assert len({event.event_id for event in outbox_events(path)}) == 3


def test_creating_and_deleting_are_events_too(store: UserStore, path: Path) -> None:
    zoe = Profile(9, "zoe", "Zoë", "z", "zt")
    store.create_user(zoe)
    store.delete_user(9)
    created, deleted = outbox_events(path)
    assert isinstance(created, UserUpdated)
    assert (created.version, created.nick_name, created.head_image_thumb) == (1, "Zoë", "zt")
    assert isinstance(deleted, UserDeleted)
    assert deleted.version == 2
    assert store.profiles([9])[9] == Profile(9, "zoe", "", "", "", version=2, deleted=1)
    before = contents(path)
    for attempt in (zoe, Profile(10, "mia", "x", "", "")):
        with pytest.raises(UsageError, match="exists already"):
            store.create_user(attempt)
    for user_id in (9, 3, 77):
        with pytest.raises(UsageError):
            store.delete_user(user_id)
    assert contents(path) == before


def test_edits_of_unknown_and_deleted_users_are_rejected_and_the_others_applied(store: UserStore, path: Path) -> None:
    edits = [nick(77, "x"), nick(1, "B"), nick(3, "back"), nick(2, "N")]
    report = store.edit_many(edits)
    assert [(r.index, type(r.error), r.error.message) for r in report.rejected] == [
        (0, UsageError, "there is no user 77"),
        (2, UsageError, "user 3 is deleted"),
    ]
    assert report.accepted == 2
    assert [(e.id, e.version) for e in outbox_events(path)] == [(1, 2), (2, 42)]
    for user_id in (77, 3):
        with pytest.raises(UsageError):
            store.edit(nick(user_id, "x"))
    assert len(outbox_events(path)) == 2


def test_all_or_none(store: UserStore, path: Path) -> None:
    before = contents(path)
    report = store.edit_many([nick(1, "B"), nick(77, "x"), nick(2, "N")], all_or_none=True)
    assert (report.accepted, report.unchanged, [r.index for r in report.rejected], report.last_seq) == (
        0,
        0,
        [1],
        0,
    )
    assert contents(path) == before
    assert store.edit_many([nick(1, "B"), nick(2, "N")], all_or_none=True).accepted == 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"user_id": 0, "nick_name": "x"}, "bad user_id: "),
        ({"user_id": 2**63, "nick_name": "x"}, "bad user_id: "),
        ({"user_id": True, "nick_name": "x"}, "bad user_id: "),
        ({"user_id": "7", "nick_name": "x"}, "bad user_id: "),
        ({"user_id": 7.0, "nick_name": "x"}, "bad user_id: "),
        ({"nick_name": "x"}, "bad user_id: "),
        ({"user_id": 1, "nick_name": ""}, "bad nick_name: "),
        ({"user_id": 1, "nick_name": "s3cret" * 43}, "bad nick_name: "),
        ({"user_id": 1, "nick_name": "s3cret\0"}, "bad nick_name: "),
        ({"user_id": 1, "nick_name": "s3cret\ud800"}, "bad nick_name: "),
        ({"user_id": 1, "nick_name": b"s3cret"}, "bad nick_name: "),
        ({"user_id": 1, "head_image": "s3cret" * 342}, "bad head_image: "),
        ({"user_id": 1, "head_image_thumb": "s3cret\0"}, "bad head_image_thumb: "),
        ({"user_id": 1, "nick_name": "x", "version": 3}, "bad version: "),
        ({"user_id": 1}, "an edit that changes nothing"),
        ({"user_id": 1, "nick_name": None}, "an edit that changes nothing"),
    ],
)
def test_bounds_of_an_edit(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as raised:
        ProfileEdit.checked(**values)
    assert raised.value.message.startswith(message)
    assert raised.value.hint
    assert "s3cret" not in raised.value.message + raised.value.hint


def test_what_is_just_within_the_bounds() -> None:
    edit = ProfileEdit.checked(user_id=2**63 - 1, nick_name="😀" * 255, head_image="x" * 2048, head_image_thumb="")
    assert (edit.user_id, len(edit.nick_name or ""), edit.head_image_thumb) == (2**63 - 1, 255, "")


# ── one transaction ──────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("moment", "action"),
    [
        ("BEFORE INSERT ON outbox", "ABORT"),
        ("AFTER INSERT ON outbox WHEN new.user_id = 2", "FAIL"),
        ("BEFORE UPDATE ON im_user", "ABORT"),
        ("AFTER UPDATE ON im_user WHEN new.id = 2", "FAIL"),
        ("AFTER UPDATE ON im_user WHEN new.id = 2", "ROLLBACK"),
    ],
)
def test_when_either_cannot_be_written_neither_is(store: UserStore, path: Path, moment: str, action: str) -> None:
    store.edit(nick(1, "before"))
    before = contents(path)
    sql(path, f"CREATE TRIGGER sabotage {moment} BEGIN SELECT RAISE({action}, 'no'); END")
    with pytest.raises(sqlite3.IntegrityError, match="no"):
        store.edit_many([nick(1, "B"), nick(2, "N")])
    with pytest.raises(sqlite3.IntegrityError, match="no"):
        store.delete_user(2)
    assert contents(path) == before
    sql(path, "DROP TRIGGER sabotage")
    assert store.edit_many([nick(1, "B"), nick(2, "N")]).accepted == 2
    assert [(e.id, e.version) for e in outbox_events(path)] == [(1, 2), (1, 3), (2, 42)]


@pytest.mark.parametrize("table", ["outbox", "im_user"])
def test_without_one_table_the_other_stays_as_it_is(store: UserStore, path: Path, table: str) -> None:
    other = {"outbox": "im_user", "im_user": "outbox"}[table]
    store.edit(nick(2, "before"))
    sql(path, f"DROP TABLE {table}")
    before = sql(path, f"SELECT * FROM {other}")
    for attempt in (
        lambda: store.edit(nick(2, "N")),
        lambda: store.create_user(Profile(9, "zoe", "Zoë", "", "")),
    ):
        with pytest.raises(StoreUnusable, match=f"no such table: {table}"):
            attempt()
    assert sql(path, f"SELECT * FROM {other}") == before


def test_a_full_disk_rejects_the_edit_whole_and_heals(store: UserStore, path: Path) -> None:
    store.edit(nick(1, "before"))
    before = contents(path)
    connection = store._database._connection
    (pages,) = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages}")
    edits = [ProfileEdit(user_id=n % 2 + 1, head_image=f"{n}".zfill(2000)) for n in range(50)]
    with pytest.raises(StoreUnusable, match="full") as raised:
        store.edit_many(edits)
    assert "disk space" in raised.value.hint
    assert contents(path) == before
    connection.execute("PRAGMA max_page_count = 1000000")
    assert store.edit_many(edits).accepted == 50


# ── the outbox and reading ───────────────────────────────────────────────────────────────────────────


def test_the_outbox_from_waiting_to_sent(path: Path) -> None:
    now = [1_000_000]
    store = UserStore(path, create=True, clock_ms=lambda: now[0])
    store.bootstrap(PEOPLE, origin="demo")
    assert (store.backlog(), store.unsent(10), store.published()) == (OutboxBacklog(0, None), [], 0)
    assert store.is_demo
    store.edit_many([nick(1, "a"), nick(2, "b"), nick(1, "c")])
    now[0] += 1500
    assert store.backlog() == OutboxBacklog(3, 1.5)
    rows = store.unsent(10)
    assert [(row.seq, row.user_id) for row in rows] == [(1, 1), (2, 2), (3, 1)]
    assert [row.body for row in rows] == [body for (body,) in sql(path, "SELECT body FROM outbox ORDER BY seq")]
    assert [row.seq for row in store.unsent(1, after_seq=1)] == [2]
    assert latest_event(store, 1) == (3, None)
    assert store.mark_sent([(1, "5-0"), (3, "5-1"), (3, "5-2")]) == 2  # a repeat counts once
    assert store.mark_sent([(1, "9-9")]) == 0
    assert [row.seq for row in store.unsent(10)] == [2]
    assert (store.published(), store.backlog().unsent) == (2, 1)
    assert latest_event(store, 1) == (3, "5-1")
    assert sql(path, "SELECT entry_id, sent_ms FROM outbox WHERE seq = 1") == [("5-0", now[0])]
    assert latest_event(store, 3) is None
    now[0] = 0  # a clock that was set back
    assert store.backlog() == OutboxBacklog(1, 0.0)
    store.close()


def test_sent_rows_have_their_place_in_the_order_of_sending(store: UserStore, path: Path) -> None:
    assert (store.newest_sent(), store.sent_below(ALL_PLACES, 9), store.oldest_sent_ms()) == ([], [], None)
    store.edit_many([nick(1, f"{n}") for n in range(9)])
    assert store.mark_sent([]) == 0
    for round_trip in ([(1, "5-0"), (2, "5-1"), (4, "5-2")], [(3, "6-0")], [(7, "7-0"), (5, "7-1"), (6, "7-2")]):
        assert store.mark_sent(round_trip) == len(round_trip)
    assert store.mark_sent([(1, "8-0")]) == 0  # a round trip that was noted before is none
    sent = store.sent_below(ALL_PLACES, 9)
    assert [row.entry_id for row in sent] == ["7-2", "7-1", "7-0", "6-0", "5-2", "5-1", "5-0"]
    bodies = dict(sql(path, "SELECT entry_id, body FROM outbox"))
    assert [row.body for row in sent] == [bodies[row.entry_id] for row in sent]
    assert store.sent_below(sent[1].place, 2) == sent[2:4]
    assert store.newest_sent() == [sent[0], sent[2], sent[3]]  # the last and the first of the trip, and what was before


def test_rows_in_a_row_are_noted_as_single_ones_are(store: UserStore, path: Path) -> None:
    store.edit_many([ProfileEdit(user_id=1, head_image=f"{n}") for n in range(12)])
    assert store.mark_sent([(3, "1-3")]) == 1
    assert store.mark_sent([(2, "2-2"), (3, "2-3"), (4, "2-4")]) == 2, "one of them was noted before"
    assert store.mark_sent([(6, "3-6"), (5, "3-5"), (9, "3-9"), (9, "3-10")]) == 3
    assert store.mark_sent([(n, f'4-"{n}') for n in (10, 11, 12)]) == 3
    assert store.mark_sent([]) == 0
    assert sql(path, "SELECT seq, entry_id, place FROM outbox WHERE sent_ms IS NOT NULL ORDER BY place") == [
        (3, "1-3", 1), (2, "2-2", 2), (4, "2-4", 4), (6, "3-6", 5), (5, "3-5", 6), (9, "3-9", 7),
        (10, '4-"10', 8), (11, '4-"11', 9), (12, '4-"12', 10),
    ]  # fmt: skip
    assert store.published() == 9
    assert [row.seq for row in store.unsent(9)] == [1, 7, 8]


def test_whoever_waits_for_edits_is_told_of_those_that_put_something_into_the_outbox(store: UserStore) -> None:
    for change in (
        lambda: store.edit(ProfileEdit(user_id=1, nick_name="A")),
        lambda: store.create_user(Profile(9, "zoe", "Zoë", "", "")),
        lambda: store.delete_user(9),
        lambda: store.touch({1: 5}),
    ):
        store.filled.clear()
        change()
        assert store.filled.is_set()
    store.filled.clear()
    assert not store.edit(ProfileEdit(user_id=1, nick_name="A"))
    assert not store.filled.is_set()


def test_rows_that_are_taken_back_wait_again_and_get_new_places(store: UserStore) -> None:
    store.edit_many([nick(1, f"{n}") for n in range(6)])
    store.mark_sent([(seq, f"5-{seq}") for seq in range(1, 5)])
    store.mark_sent([(5, "6-0")])
    places = [row.place for row in store.sent_below(ALL_PLACES, 9)]
    assert store.take_back(places[3], places[0]) == 3
    assert [row.seq for row in store.unsent(9)] == [2, 3, 4, 6]
    assert [row.entry_id for row in store.newest_sent()] == ["6-0", "5-1"]
    assert (store.published(), store.resent(), store.backlog().unsent) == (2, 3, 4)
    assert store.take_back(places[3], places[0]) == 0
    assert store.mark_sent([(2, "7-0"), (3, "7-1")]) == 2
    assert [row.entry_id for row in store.newest_sent()] == ["7-1", "7-0", "6-0"]
    assert store.take_back(1, ALL_PLACES) == 4
    assert (store.newest_sent(), store.published(), store.resent()) == ([], 0, 7)
    store.mark_sent([(1, "9-0")])
    assert [row.entry_id for row in store.newest_sent()] == ["9-0"]


@pytest.mark.parametrize("statement", ["UPDATE ON outbox", "UPDATE ON counter WHEN new.name = 'resent'"])
def test_rows_are_taken_back_and_counted_in_one_transaction(store: UserStore, path: Path, statement: str) -> None:
    store.edit_many([nick(1, f"{n}") for n in range(4)])
    store.mark_sent([(seq, f"5-{seq}") for seq in range(1, 5)])
    before = contents(path)
    sql(path, f"CREATE TRIGGER sabotage BEFORE {statement} BEGIN SELECT RAISE(ABORT, 'no'); END")
    with pytest.raises(sqlite3.IntegrityError, match="no"):
        store.take_back(2, ALL_PLACES)
    assert contents(path) == before
    assert (store.published(), store.resent()) == (4, 0)


def test_states_are_read_in_pages(store: UserStore) -> None:
    states = store.states(0, 2)
    assert [(s.key, s.version, s.deleted) for s in states] == [(1, 1, False), (2, 41, False)]
    assert states[0].content == {"nick_name": "Mia", "head_image": "mia.png", "head_image_thumb": "mia_t.png"}
    assert [s.key for s in store.states(2, 9)] == [3]
    assert store.states(3, 9) == []
    deleted = store.state(3)
    assert deleted is not None
    assert deleted.deleted
    assert store.state(77) is None
    assert (store.count_users(), store.active_ids(), store.is_demo) == (3, [1, 2], False)
    many = {n: n for n in range(1, 2000)}
    assert store.profiles(many) == {1: MIA, 2: NOAH, 3: GONE}


def test_what_the_outbox_remembers_of_a_user(store: UserStore, path: Path) -> None:
    store.edit_many([nick(1, "a"), nick(2, "b"), nick(1, "c")])
    store.mark_sent([(1, "7-0")])
    newest, older = store.events_of(1)
    assert (newest.seq, newest.version, newest.entry_id, newest.sent_ms) == (3, 3, None, None)
    assert (older.seq, older.version, older.entry_id) == (1, 2, "7-0")
    assert older.sent_ms is not None
    rows = sql(path, "SELECT event_id, body, created_ms FROM outbox WHERE seq = 3")
    assert rows == [(newest.event_id, newest.body, newest.created_ms)]
    assert store.events_of(1, 1) == [newest]
    assert store.events_of(3) == []


def test_ids_are_read_in_pages(store: UserStore) -> None:
    assert store.ids(-(2**63), 2) == [1, 2]
    assert store.ids(2, 2) == [3]


def test_how_many_events_were_written_is_one_number_whatever_a_relay_does_meanwhile(store: UserStore) -> None:
    """Rows that are taken back between two looks would be missing, and what was settled would be too much."""
    store.edit_many([nick(1, "a"), nick(1, "b"), nick(2, "c")])
    assert store.written() == 3
    store.mark_sent([(1, "1-1"), (2, "1-2")])
    assert (store.written(), store.published()) == (3, 2)
    statements: list[str] = []
    store._database._connection.set_trace_callback(statements.append)  # type: ignore[union-attr]
    assert store.written() == 3
    assert len(statements) == 1
    store.take_back(2, ALL_PLACES)
    assert (store.written(), store.published()) == (3, 1)
