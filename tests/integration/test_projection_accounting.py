"""The group store and the friend store: whatever comes in whatever order, it is settled once and accounted for."""

from __future__ import annotations

import itertools
import logging
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import closing
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imsync.bus.entry import id_parts
from imsync.bus.handler import Rejected
from imsync.bus.outcome import APPLIED, DUPLICATE, SUPERSEDED, Ack, DeadLetter, Outcome
from imsync.im.events import IMBaseEvent
from imsync.im.group_store import GroupStore
from imsync.store.settlement import MAX_SOURCES, key_of
from tests.projections import (
    BEGAN,
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


def settled(store: Store) -> dict[bytes, str]:
    return dict(sql(store.path, "SELECT event_key, outcome FROM settled"))


def tallied(store: Store) -> Counter[str]:
    """The tallies over all sources, without those that are zero."""
    total: Counter[str] = Counter()
    for (_, outcome), n in store.tallies().items():
        total[outcome] += n
    return +total


def counted(outcomes: Iterable[Outcome]) -> Counter[str]:
    """The outcomes by the names that tallies have for them."""
    return Counter(str(outcome.effect) for outcome in outcomes if isinstance(outcome, Ack))


# ── repeats, disorder, accounting ────────────────────────────────────────────────────────────────────


def test_repeats_are_duplicates_and_change_nothing(kind: Kind, store: Store) -> None:
    kind.join(store, 1, 10)
    events = [update(1, 2), update(1, 1), tombstone(2, 1)]
    assert deliver(kind, store, *events, *events) == [APPLIED, SUPERSEDED, APPLIED, *[DUPLICATE] * 3]
    before = everything(store)
    for _ in range(2):
        assert deliver(kind, store, *reversed(events)) == [DUPLICATE] * 3
    assert everything(store) == before
    assert tallied(store) == {"applied": 2, "superseded": 1, "duplicate": 9}


def noted(store: Store) -> list[tuple[bytes, str, str]]:
    return sql(store.path, "SELECT event_key, outcome, entry_id FROM settled ORDER BY event_key")


def test_the_newest_copy_of_an_event_is_the_one_that_is_noted(kind: Kind, store: Store) -> None:
    """As Redis orders entry ids, not as text does."""
    event = update(1, 1)
    for entry_ids, newest in [
        (["5-9"], "5-9"),
        (["5-2"], "5-9"),
        (["5-10", "5-1"], "5-10"),
        (["9-0"], "9-0"),
        (["10-0", "10-3", "10-1"], "10-3"),
        (["9-99999"], "10-3"),
        (["10-18446744073709551615"], "10-18446744073709551615"),
        (["10-20"], "10-18446744073709551615"),
        (["1767225600000-0"], "1767225600000-0"),
    ]:
        store.apply([kind.received(event, entry_id) for entry_id in entry_ids])
        assert noted(store) == [(event.event_id.bytes, "applied", newest)]


def test_copies_within_the_first_batch_are_noted_too(kind: Kind, store: Store) -> None:
    events = [update(1, 1), update(2, 1)]
    batch = [(events[0], "5-0"), (events[1], "6-0"), (events[0], "7-0")]
    store.apply([kind.received(event, entry_id) for event, entry_id in batch])
    assert {key: entry_id for key, _, entry_id in noted(store)} == {
        events[0].event_id.bytes: "7-0",
        events[1].event_id.bytes: "6-0",
    }


def test_the_copies_of_a_dead_event_are_noted_and_of_one_that_is_applied_after_all(kind: Kind, store: Store) -> None:
    event = update(1, 1)
    for entry_id, newest in (("9-0", "9-0"), ("10-0", "10-0"), ("8-0", "10-0")):
        store.record_dead([Rejected(kind.received(event).event, entry_id, DeadLetter("x", "x"))])
        assert noted(store) == [(event.event_id.bytes, "dead", newest)]
    now_ms = time.time_ns() // 1_000_000
    store.apply([kind.received(event, "11-0")])
    ((key, outcome, entry_id),) = noted(store)
    assert (key, outcome) == (event.event_id.bytes, "applied")
    assert id_parts(entry_id) >= (now_ms, 0), "as if it had just been published: its letter may come again"
    later = f"{now_ms + 3_600_000}-0"
    store.record_dead([Rejected(kind.received(event).event, later, DeadLetter("x", "x"))])
    assert noted(store) == [(event.event_id.bytes, "applied", later)]  # it is not dead, but the copy is there


@pytest.fixture
def empty(kind: Kind, tmp_path: Path) -> bytes:
    """A store whose users are in two containers each and known to nobody, as the bytes of its file."""
    path = tmp_path / "empty.db"
    with closing(kind.make(path, create=True)) as made:
        for container, user_id in itertools.product((10, 11), (1, 2, 3, 4)):
            kind.join(made, user_id, container, remark="x" * (user_id % 2))
    return path.read_bytes()


@st.composite
def histories(draw: st.DrawFn) -> list[IMBaseEvent]:
    """What a sane source says of a few users, in the order in which it happened."""
    told: list[IMBaseEvent] = []
    for user_id in range(1, draw(st.integers(1, 3)) + 1):
        n = draw(st.integers(1, 5))
        told += [update(user_id, version, draw(st.sampled_from(["", "A", "B"]))) for version in range(1, n + 1)]
        if draw(st.booleans()):
            told[-1] = tombstone(user_id, n)
    return told


def consumed(
    kind: Kind, path: Path, history: Sequence[IMBaseEvent], batches: Iterable[Sequence[IMBaseEvent]]
) -> object:
    """Applies the batches, checks the accounting, and returns what the rows and the replica hold in the end."""
    outcomes: list[Outcome] = []
    with closing(kind.make(path)) as store:
        for batch in batches:
            outcomes += deliver(kind, store, *batch)
        assert tallied(store) == counted(outcomes)
        assert counted(outcomes)["duplicate"] == len(outcomes) - len(history)
        assert settled(store).keys() == {event.event_id.bytes for event in history}
        assert Counter(settled(store).values()) == counted(o for o in outcomes if o != DUPLICATE)
        assert_rows_equal_the_replica(kind, store)
        versions = {state.key: state.version for state in store.states(0, 99) if state.version}
        assert versions == {event.id: event.version for event in history}
        return kind.rows(store), sql(path, "SELECT * FROM user_profile_replica ORDER BY user_id")


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=histories(), data=st.data())
def test_any_order_any_batches_and_any_repeats_end_in_the_same_bytes(
    kind: Kind, empty: bytes, tmp_path: Path, history: list[IMBaseEvent], data: st.DataObject
) -> None:
    repeats = data.draw(st.lists(st.sampled_from(history), max_size=5))
    order = data.draw(st.permutations(history + repeats))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(order)), max_size=4)))
    batches = [order[start:end] for start, end in pairwise([0, *cuts, len(order)])]
    one, other = tmp_path / "one.db", tmp_path / "other.db"
    for path in (one, other):
        path.write_bytes(empty)
    as_it_happened = consumed(kind, one, history, [[event] for event in history])
    assert consumed(kind, other, history, batches) == as_it_happened


def test_how_events_were_settled_can_be_asked(kind: Kind, store: Store) -> None:
    applied, older, dead = update(1, 5), update(1, 3), update(2, 2)
    deliver(kind, store, applied, older)
    store.record_dead([Rejected(dead, "4-0", DeadLetter("test", ""))])
    store.record_lost(["5-0"])
    asked = [each.event_id.bytes for each in (applied, older, dead, update(3, 1))] + [key_of(None, "5-0")]
    assert store.settled(asked) == {
        applied.event_id.bytes: ("applied", "1-0"),
        older.event_id.bytes: ("superseded", "1-0"),
        dead.event_id.bytes: ("dead", "4-0"),
        b"entry:5-0": ("lost", "5-0"),
    }
    assert store.settled([]) == {}
    failures = [(dead.event_id.bytes, ("dead", "4-0")), (b"entry:5-0", ("lost", "5-0"))]
    assert store.failures(b"", 10) == failures
    assert store.failures(b"", 1) == failures[:1]
    assert store.failures(dead.event_id.bytes, 10) == failures[1:]


def test_what_the_rows_of_a_user_hold_can_be_asked(kind: Kind, store: Store) -> None:
    deliver(kind, store, update(1, 1))
    for container in (7, 8, 9):
        kind.join(store, 1, container)
    assert store.contents(1) == {("name 1", kind.picture(update(1, 1))): 3}
    column = kind.columns.split(", ")[2]
    user, container = kind.columns.split(", ")[:2]
    sql(store.path, f"UPDATE {kind.table} SET {column} = 'x' WHERE {user} = 1 AND {container} = 8")
    assert store.contents(1) == {("name 1", kind.picture(update(1, 1))): 2, ("x", kind.picture(update(1, 1))): 1}
    assert store.contents(2) == {}


def test_dead_letters_are_recorded_once(kind: Kind, store: Store) -> None:
    event, undecodable = (
        kind.received(update(1, 1), "5-0"),
        Rejected(None, "6-0", DeadLetter("bad_json", "x")),
    )
    dead = Rejected(event.event, "5-0", DeadLetter("max_attempts", "x"))
    for _ in range(2):
        store.record_dead([dead, undecodable, dead])
    assert store.tallies() == {("urn:test", "dead"): 1, ("", "dead"): 1}
    assert settled(store) == {event.event.event_id.bytes: "dead", b"entry:6-0": "dead"}


def test_a_dead_letter_that_is_applied_later_is_dead_no_more(kind: Kind, store: Store) -> None:
    kind.join(store, 1, 10)
    events = [update(1, 1), update(1, 2), update(2, 1), update(3, 1)]
    store.record_dead([Rejected(kind.received(e).event, "1-0", DeadLetter("x", "x")) for e in events])
    assert deliver(kind, store, *events[:3], events[0]) == [SUPERSEDED, APPLIED, APPLIED, DUPLICATE]
    assert tallied(store) == {"applied": 2, "superseded": 1, "dead": 1, "duplicate": 1}
    assert Counter(settled(store).values()) == {"applied": 2, "superseded": 1, "dead": 1}
    assert kind.rows(store)[0][2] == "name 2"
    assert deliver(kind, store, *events[:3]) == [DUPLICATE] * 3
    assert deliver(kind, store, events[3]) == [APPLIED]
    assert tallied(store) == {"applied": 3, "superseded": 1, "duplicate": 4}


def test_entries_that_were_trimmed_are_recorded_as_lost_once(kind: Kind, store: Store) -> None:
    for _ in range(2):
        store.record_lost(["5-0", "6-0", "5-0"])
    assert store.tallies() == {("", "lost"): 2}
    assert settled(store) == {b"entry:5-0": "lost", b"entry:6-0": "lost"}


def test_what_is_settled_does_not_become_dead(kind: Kind, store: Store) -> None:
    event = update(1, 1)
    deliver(kind, store, event)
    store.record_dead([Rejected(kind.received(event).event, "9-0", DeadLetter("max_attempts", "x"))])
    assert tallied(store) == {"applied": 1}
    assert settled(store) == {event.event_id.bytes: "applied"}


def test_tallies_are_kept_for_so_many_sources(kind: Kind, store: Store) -> None:
    """Sources come from the outside; a table that grows with them would be theirs to fill."""
    deliver(kind, store, update(1, 1))
    deliver(kind, store, *(update(1, 1, source=f"urn:{n}") for n in range(2 * MAX_SOURCES)))
    deliver(kind, store, *(update(1, 2 + n, source=f"urn:other:{n}") for n in range(2)), update(1, 9))
    tallies = store.tallies()
    assert len({source for source, _ in tallies}) <= MAX_SOURCES + 1
    assert tallied(store)["applied"] + tallied(store)["superseded"] == 2 * MAX_SOURCES + 4
    assert tallies["urn:test", "applied"] == 2  # a source that is known stays known
    assert tallies["", "superseded"] > 0
    assert ("urn:other:0", "superseded") not in tallies


# ── alarms ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("applied", "unknown", "alarm"),
    [
        (update(1, 5), update(1, 5, "other"), True),
        (update(1, 5), update(1, 5), False),  # said twice, as a repair does
        (update(1, 5), update(1, 4), False),  # late
        (update(1, 5), update(1, 4, occurred_at=BEGAN + timedelta(hours=1)), True),
        (update(1, 5), update(1, 4, occurred_at=BEGAN + timedelta(seconds=299)), False),  # a clock stepped back
        (update(1, 5), tombstone(1, 5), True),
        (tombstone(1, 5), update(1, 4), False),
        (tombstone(1, 5), update(1, 5), True),
        (tombstone(1, 5), update(1, 6), True),
        (tombstone(1, 5), tombstone(1, 5), False),
        (tombstone(1, 5), tombstone(1, 6), False),  # a repair of another projection published it again
    ],
)
@pytest.mark.parametrize("together", [False, True])
def test_an_unknown_event_that_contradicts_the_applied_version_raises_an_alarm(
    kind: Kind,
    store: Store,
    caplog: pytest.LogCaptureFixture,
    applied: IMBaseEvent,
    unknown: IMBaseEvent,
    alarm: bool,
    together: bool,
) -> None:
    kind.join(store, 1, 10)
    unknown = unknown.model_copy(update={"event_id": uuid4()})
    with caplog.at_level(logging.INFO):
        if together:  # where a tombstone wins whichever comes first
            assert set(deliver(kind, store, applied, unknown)) == {APPLIED, SUPERSEDED}
        else:
            assert [deliver(kind, store, applied), deliver(kind, store, unknown)] == [[APPLIED], [SUPERSEDED]]
        assert deliver(kind, store, unknown) == [DUPLICATE]  # a repeat alarms nobody again
    assert store.tallies().get(("urn:test", "conflict"), 0) == alarm
    assert [record.levelname for record in caplog.records] == ["ERROR"] * alarm
    for record in caplog.records:
        assert str(unknown.event_id) in record.message or str(applied.event_id) in record.message
    assert_rows_equal_the_replica(kind, store)


def test_an_entry_that_was_settled_before_it_was_trimmed_is_not_lost(kind: Kind, store: Store) -> None:
    """Committed, killed before the acknowledgement, trimmed, taken over."""
    store.apply([kind.received(update(1, 2), "7-1")])
    store.record_lost(["7-1", "7-2"])
    store.record_lost(["7-2"])
    assert store.tallies() == {("urn:test", "applied"): 1, ("", "lost"): 1}


def test_the_source_that_the_store_was_made_from_is_never_pooled(tmp_path: Path) -> None:
    with closing(GroupStore(tmp_path / "own.db", create=True)) as store:
        store.bootstrap([], [], [], source="urn:ours")
        deliver(GROUP, store, *(update(1, 2 + n, source=f"urn:other:{n}") for n in range(2 * MAX_SOURCES)))
        deliver(GROUP, store, update(2, 2, source="urn:ours"))
        assert store.tallies()["urn:ours", "applied"] == 1
