"""Filling a projection from a snapshot of its source: what is written, what is left alone, what it covers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from imsync.bus.handler import Rejected
from imsync.bus.outcome import APPLIED, SUPERSEDED, DeadLetter
from imsync.im.events import IMBaseEvent
from imsync.im.profile_projection import REPLICA_SQL
from imsync.store.projection import SourceState
from imsync.store.settlement import COVERED, LOST
from tests.projections import (
    Kind,
    Store,
    assert_rows_equal_the_replica,
    deliver,
    everything,
    tombstone,
    update,
)
from tests.stores import sql


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "copies.db"


@pytest.fixture
def store(kind: Kind, path: Path) -> Iterator[Store]:
    with closing(kind.make(path, create=True)) as made:
        yield made


# ── what is written ──────────────────────────────────────────────────────────────────────────────────


def state(user_id: int, version: int, nick_name: str | None = None) -> SourceState:
    """What the source says after `update(user_id, version)`; with another nickname, if one is given."""
    event = update(user_id, version, nick_name)
    content = {
        "nick_name": event.nick_name,
        "head_image": event.head_image,
        "head_image_thumb": event.head_image_thumb,
    }
    return SourceState(user_id, version, False, content)


def gone(user_id: int, version: int) -> SourceState:
    """What the source says after `tombstone(user_id, version)`."""
    return SourceState(user_id, version, True, {"nick_name": "", "head_image": "", "head_image_thumb": ""})


def test_a_missing_store_is_made_whole_from_a_snapshot(kind: Kind, store: Store) -> None:
    sources = [state(1, 4), state(2, 1), gone(3, 7), state(2**63 - 1, 2**63 - 1)]
    assert store.write_snapshot(sources[:2]) == 2
    assert store.write_snapshot(sources[2:]) == 2
    assert [(s.key, s.version, s.deleted, s.content, s.rows) for s in store.states(0, 9)] == [
        (s.key, s.version, s.deleted, store.expected(s), 0) for s in sources
    ]
    for user_id in (1, 2, 3):
        kind.join(store, user_id, 10, remark="r")
    assert_rows_equal_the_replica(kind, store)
    assert kind.rows(store)[0][2] == "name 4"
    assert deliver(kind, store, update(1, 4), update(2, 2), update(3, 8)) == [SUPERSEDED, APPLIED, SUPERSEDED]
    assert [store.write_snapshot([source]) for source in sources] == [0, 0, 0, 0]
    assert store.tallies().get(("urn:test", "conflict"), 0) == 1  # the update after the tombstone
    assert_rows_equal_the_replica(kind, store)


@pytest.mark.parametrize(
    ("known", "source", "expected"),
    [
        ([], state(1, 3), (3, False, "name 3")),
        ([], gone(1, 3), (3, True, "")),
        ([update(1, 2)], state(1, 3), (3, False, "name 3")),
        ([update(1, 3)], state(1, 3), None),
        ([update(1, 3, "edited by hand")], state(1, 3), (3, False, "name 3")),
        ([update(1, 4)], state(1, 3), None),  # its event has overtaken the snapshot
        ([update(1, 2)], gone(1, 3), (3, True, "")),
        ([update(1, 3)], gone(1, 3), (3, True, "")),
        ([update(1, 4)], gone(1, 3), None),
        ([tombstone(1, 3)], gone(1, 3), None),
        ([tombstone(1, 3)], gone(1, 4), (4, True, "")),
        ([tombstone(1, 4)], gone(1, 3), None),
        ([tombstone(1, 3)], state(1, 2), None),
        ([tombstone(1, 3)], state(1, 3), None),
        ([tombstone(1, 3)], state(1, 4), (4, False, "name 4")),  # the source was restored, and has gone on
    ],
)
@pytest.mark.parametrize("rows", ["right", "wrong"])
def test_a_snapshot_mends_what_is_not_newer(
    kind: Kind,
    store: Store,
    known: list[IMBaseEvent],
    source: SourceState,
    expected: tuple[int, bool, str] | None,
    rows: str,
) -> None:
    kind.join(store, 1, 10, remark="mine")
    kind.join(store, 1, 11)
    kind.join(store, 2, 10, remark="other")
    deliver(kind, store, *known, update(2, 5))
    before = store.state(1)
    assert before is not None
    if rows == "wrong":
        picture, container = kind.columns.split(", ")[3], kind.columns.split(", ")[1]
        sql(store.path, f"UPDATE {kind.table} SET {picture} = 'by hand' WHERE {container} = 10")
    assert store.write_snapshot([source, state(2, 5)]) == (expected is not None or rows == "wrong") + (rows == "wrong")
    after = store.state(1)
    assert after is not None
    shown = expected or (before.version, before.deleted, before.content[0])
    assert (after.version, after.deleted, after.content[0]) == shown
    assert (after.rows, after.stale_rows) == (2, 0)
    assert_rows_equal_the_replica(kind, store)
    assert [row[4] for row in kind.rows(store)] == ["mine", "", "other"]
    assert store.write_snapshot([source, state(2, 5)]) == 0


@pytest.mark.parametrize(
    ("known", "late"),
    [(tombstone(1, 5), (5, 0)), (update(1, 5), (4, 0)), (update(1, 5), (4, 1)), (tombstone(1, 5), (4, 1))],
)
def test_the_statement_of_snapshots_lets_no_version_fall_either(
    kind: Kind, store: Store, known: IMBaseEvent, late: tuple[int, int]
) -> None:
    deliver(kind, store, known)
    before = sql(store.path, "SELECT * FROM user_profile_replica")
    version, deleted = late
    sql(store.path, REPLICA_SQL["write_snapshot"], (1, version, "late", "late", deleted, 9))
    assert sql(store.path, "SELECT * FROM user_profile_replica") == before


def test_an_event_that_a_snapshot_has_overtaken_changes_nothing_and_alarms_nobody(kind: Kind, store: Store) -> None:
    kind.join(store, 1, 10)
    store.write_snapshot([state(1, 4), gone(2, 3)])
    before = kind.rows(store)
    assert deliver(kind, store, update(1, 3), update(1, 4), update(2, 2), tombstone(2, 3)) == [SUPERSEDED] * 4
    assert kind.rows(store) == before
    assert store.tallies() == {("urn:test", "superseded"): 4}


def test_an_error_in_the_middle_of_a_snapshot_leaves_nothing(kind: Kind, store: Store) -> None:
    kind.join(store, 2, 10)
    deliver(kind, store, update(1, 1), update(2, 1))
    before = everything(store)
    user = kind.columns.split(", ")[0]
    sabotage = f"BEFORE UPDATE ON {kind.table} WHEN new.{user} = 2 BEGIN SELECT RAISE(FAIL, 'no'); END"
    sql(store.path, f"CREATE TRIGGER sabotage {sabotage}")
    with pytest.raises(Exception, match="no"):
        store.write_snapshot([state(1, 2), state(2, 2)])
    assert everything(store) == before
    sql(store.path, "DROP TRIGGER sabotage")
    assert store.write_snapshot([state(1, 2), state(2, 2)]) == 2


def test_pages_larger_than_a_lookup_are_written_too(kind: Kind, store: Store) -> None:
    assert store.write_snapshot([state(n, 2) for n in range(1, 1202)]) == 1201
    assert store.write_snapshot([state(n, 2 + (n == 1201)) for n in range(1, 1202)]) == 1


# ── what is covered ──────────────────────────────────────────────────────────────────────────────────


def covered(store: Store) -> int:
    return store.tallies().get(("urn:test", COVERED), 0)


def test_what_a_snapshot_covers_is_counted_until_it_comes_after_all(kind: Kind, store: Store) -> None:
    assert store.position == "0-0"
    old, again = update(9, 1), update(9, 2)
    store.record_dead([Rejected(kind.received(old).event, "1-0", DeadLetter("x", "x"))])
    store.note_snapshot("100-5", "urn:test", 3)
    assert (store.position, covered(store)) == ("100-5", 3)
    for event, entry_id, left in [
        (update(1, 1), "100-6", 3),  # published after it
        (update(1, 2), "1000-0", 3),
        (update(1, 3, source="urn:other"), "7-0", 3),  # somebody else's
        (old, "2-0", 3),  # settled before: dead, and not any more
        (again, "99-9", 2),
        (again, "99-9", 2),  # a repeat
        (again, "99-10", 2),
        (update(2, 7), "100-5", 1),
        (update(2, 6), "8-0", 0),  # superseded
        (update(2, 5), "8-1", 0),  # never below nothing
    ]:
        store.apply([kind.received(event, entry_id)])
        assert covered(store) == left
    store.note_snapshot("200-0", "urn:test", 2)
    store.record_dead([Rejected(kind.received(update(3, 1)).event, "150-0", DeadLetter("x", "x"))])
    assert covered(store) == 1


def test_a_later_snapshot_replaces_the_earlier_one(kind: Kind, store: Store, path: Path) -> None:
    store.note_snapshot("100-0", "urn:test", 3)
    with closing(kind.make(path)) as other:  # a rebuild is a process of its own
        other.note_snapshot("200-0", "urn:test", 5)
    store.apply([kind.received(update(1, 1), "150-0")])
    assert (store.position, covered(store)) == ("200-0", 4)


def test_what_was_lost_before_a_snapshot_is_covered_by_it(kind: Kind, store: Store) -> None:
    def lost() -> int:
        return store.tallies().get(("", LOST), 0)

    store.record_lost(["5-0", "6-0"])
    assert lost() == 2
    store.note_snapshot("100-0", "urn:test", 2)
    assert lost() == 0
    store.record_lost(["99-0", "100-0", "100-1", "1000-0"])
    assert lost() == 2


@pytest.mark.parametrize(("position", "source"), [("x", "urn:test"), ("", "urn:test"), ("1-0", "")])
def test_a_snapshot_of_nowhere_or_nothing_is_refused(kind: Kind, store: Store, position: str, source: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        store.note_snapshot(position, source, 1)
    assert store.position == "0-0"


def test_a_store_that_was_filled_from_no_snapshot_writes_nothing_for_it(kind: Kind, store: Store) -> None:
    statements: list[str] = []
    store._database._connection.set_trace_callback(statements.append)
    deliver(kind, store, update(1, 1))
    assert [each for each in statements if COVERED in each] == []
    store.note_snapshot("1-0", "urn:test", 1)
    store.apply([kind.received(update(2, 1), "1-0")])
    assert [each for each in statements if COVERED in each] != []
