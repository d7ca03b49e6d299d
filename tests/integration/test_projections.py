"""The group store and the friend store: whatever is delivered in whatever order, the copies follow the newest."""

from __future__ import annotations

import itertools
import logging
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imsync.bus.codec import Decoder, encode
from imsync.bus.handler import Received, Rejected
from imsync.bus.outcome import APPLIED, DUPLICATE, SUPERSEDED, Ack, DeadLetter, Outcome
from imsync.errors import StoreUnusable
from imsync.im.events import IMBaseEvent, UserDeleted, UserUpdated
from imsync.im.friend_store import FriendStore
from imsync.im.group_store import Group, GroupStore, Member
from imsync.im.user_store import Profile
from imsync.store.projection import CopyState, SourceState
from imsync.store.settlement import MAX_SOURCES
from tests.stores import sql

Store: TypeAlias = GroupStore | FriendStore
Row: TypeAlias = tuple[int, int, str, str, str]
"""(user, container, nickname, picture, override); the container is the group, or the user who sees the friend."""

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Kind:
    """What differs between the two stores."""

    make: type[Store]
    table: str
    picture: Callable[[UserUpdated], str]
    columns: str

    def join(self, store: Store, user_id: int, container: int, remark: str = "") -> None:
        if isinstance(store, GroupStore):
            store.join(container, user_id, remark_nick_name=remark)
        else:
            store.join(container, user_id, remark_nick_name=remark)

    def rows(self, store: Store) -> list[Row]:
        return sql(store.path, f"SELECT {self.columns} FROM {self.table} ORDER BY 1, 2")  # type: ignore[return-value]

    def received(self, event: IMBaseEvent, entry_id: str = "1-0") -> Received[IMBaseEvent]:
        """The event as it comes in: over the wire, through the store's own view."""
        decoder: Decoder[IMBaseEvent] = Decoder(self.make.events)
        view = decoder.decode(encode(event, source="urn:test"))
        assert view is not None
        return Received(view, entry_id)


GROUP = Kind(
    GroupStore,
    "im_group_member",
    lambda event: event.head_image_thumb,
    "user_id, group_id, user_nick_name, head_image, remark_nick_name",
)
FRIEND = Kind(
    FriendStore,
    "im_friend",
    lambda event: event.head_image,
    "friend_id, user_id, friend_nick_name, friend_head_image, remark_nick_name",
)


@pytest.fixture(params=[GROUP, FRIEND], ids=["group", "friend"])
def kind(request: pytest.FixtureRequest) -> Kind:
    made: Kind = request.param
    return made


@pytest.fixture
def store(kind: Kind, tmp_path: Path) -> Iterator[Store]:
    with closing(kind.make(tmp_path / "copies.db", create=True)) as made:
        yield made


def update(user_id: int, version: int, nick_name: str | None = None, **changes: Any) -> UserUpdated:
    fields: dict[str, Any] = {
        "nick_name": f"name {version}" if nick_name is None else nick_name,
        "head_image": f"image {version}",
        "head_image_thumb": f"thumb {version}",
        "occurred_at": BEGAN + timedelta(seconds=version),
    }
    return UserUpdated(id=user_id, version=version, **(fields | changes))


def tombstone(user_id: int, version: int, **changes: Any) -> UserDeleted:
    return UserDeleted(id=user_id, version=version, **({"occurred_at": BEGAN + timedelta(seconds=version)} | changes))


def deliver(kind: Kind, store: Store, *events: IMBaseEvent) -> Sequence[Outcome]:
    return store.apply([kind.received(event) for event in events])


def assert_rows_equal_the_replica(kind: Kind, store: Store) -> None:
    """The oracle: every row that copies a user shows what the replica says, or nothing where there is none."""
    replicas = {
        user_id: (nick_name, picture)
        for user_id, nick_name, picture in sql(
            store.path, "SELECT user_id, nick_name, head_image FROM user_profile_replica"
        )
    }
    for user_id, _, nick_name, picture, _ in kind.rows(store):
        assert (nick_name, picture) == replicas.get(user_id, ("", ""))
    assert all(state.stale_rows == 0 for state in store.states(0, 10_000))


def everything(store: Store) -> list[list[tuple[Any, ...]]]:
    """All tables, byte by byte."""
    tables = [name for (name,) in sql(store.path, "SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY 1")]
    return [sql(store.path, f"SELECT * FROM {table}") for table in tables]


def settled(store: Store) -> dict[bytes, str]:
    return dict(sql(store.path, "SELECT event_key, outcome FROM settled"))


def tallied(store: Store) -> Counter[str]:
    """The tallies over all sources, without those that are zero."""
    total: Counter[str] = Counter()
    for (_, outcome), n in store.tallies().items():
        total[outcome] += n
    return +total


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


def test_each_store_copies_the_picture_that_it_shows() -> None:
    event = update(1, 1, head_image="large", head_image_thumb="small")
    assert (GROUP.picture(event), FRIEND.picture(event)) == ("small", "large")
    source = SourceState(1, 1, False, {"nick_name": "n", "head_image": "large", "head_image_thumb": "small"})
    assert GroupStore.expected(source) == ("n", "small")
    assert FriendStore.expected(source) == ("n", "large")


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


def test_users_whom_nobody_copies_are_replicated_too(kind: Kind, store: Store) -> None:
    deliver(kind, store, update(5, 3))
    assert kind.rows(store) == []
    assert store.state(5) == CopyState(5, 3, False, ("name 3", kind.picture(update(5, 3))), rows=0, stale_rows=0)


def test_events_of_any_time_are_applied(kind: Kind, store: Store) -> None:
    ends = [datetime.min, datetime.max.replace(microsecond=0), datetime(1970, 1, 1)]
    events = [update(n, 1, occurred_at=end.replace(tzinfo=UTC)) for n, end in enumerate(ends, start=1)]
    assert deliver(kind, store, *events) == [APPLIED] * 3


def test_batches_larger_than_a_lookup(kind: Kind, store: Store) -> None:
    users = range(1, 1202)
    assert deliver(kind, store, *(update(n, 2) for n in users)) == [APPLIED] * 1201
    again = deliver(kind, store, *(update(n, 1 + n % 3) for n in users))
    assert again == [APPLIED if n % 3 == 2 else SUPERSEDED for n in users]
    assert [state.key for state in store.states(0, 5000)] == list(users)


# ── repeats, disorder, accounting ────────────────────────────────────────────────────────────────────


def test_repeats_are_duplicates_and_change_nothing(kind: Kind, store: Store) -> None:
    kind.join(store, 1, 10)
    events = [update(1, 2), update(1, 1), tombstone(2, 1)]
    assert deliver(kind, store, *events, *events) == [APPLIED, SUPERSEDED, APPLIED, *[DUPLICATE] * 3]
    before = everything(store)
    for _ in range(2):
        assert deliver(kind, store, *reversed(events)) == [DUPLICATE] * 3
    assert everything(store) == before
    assert tallied(store) == {"applied": 2, "superseded": 1}


def test_the_first_delivery_is_the_one_that_is_noted(kind: Kind, store: Store) -> None:
    event = update(1, 1)
    store.apply([kind.received(event, "5-0"), kind.received(event, "6-0")])
    store.apply([kind.received(event, "7-0")])
    assert sql(store.path, "SELECT event_key, outcome, entry_id FROM settled") == [
        (event.event_id.bytes, "applied", "5-0")
    ]


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


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=histories(), data=st.data())
def test_any_order_any_batches_and_any_repeats_end_in_the_same_bytes(
    kind: Kind, tmp_path_factory: pytest.TempPathFactory, history: list[IMBaseEvent], data: st.DataObject
) -> None:
    empty = tmp_path_factory.getbasetemp() / f"empty-{kind.table}.db"
    if not empty.exists():
        with closing(kind.make(empty, create=True)) as template:
            for container, user_id in itertools.product((10, 11), (1, 2, 3, 4)):
                kind.join(template, user_id, container, remark="x" * (user_id % 2))
    ends = []
    for number in range(2):
        path = shutil.copy(empty, empty.with_name(f"copies-{number}-{kind.table}.db"))
        with closing(kind.make(path)) as store:
            deliveries = list(history)
            if number:
                deliveries = data.draw(
                    st.permutations(history + data.draw(st.lists(st.sampled_from(history), max_size=5)))
                )
            outcomes: list[Outcome] = []
            while len(outcomes) < len(deliveries):
                size = data.draw(st.integers(1, 6)) if number else 1
                outcomes += deliver(kind, store, *deliveries[len(outcomes) : len(outcomes) + size])
            effects = Counter(str(outcome.effect) for outcome in outcomes if isinstance(outcome, Ack))
            assert effects["duplicate"] == len(deliveries) - len(history)
            assert effects["applied"] + effects["superseded"] == len(history)
            assert +tallied(store) == +Counter({name: n for name, n in effects.items() if name != "duplicate"})
            assert Counter(settled(store).values()) == tallied(store)
            assert settled(store).keys() == {event.event_id.bytes for event in history}
            assert_rows_equal_the_replica(kind, store)
            assert {state.key: state.version for state in store.states(0, 99) if state.version} == {
                event.id: event.version for event in history
            }
            ends.append([kind.rows(store), sql(store.path, "SELECT * FROM user_profile_replica")])
        for file in path.parent.glob(f"{path.name}*"):
            file.unlink()
    assert ends[0] == ends[1]


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
    assert tallied(store) == {"applied": 2, "superseded": 1, "dead": 1}
    assert Counter(settled(store).values()) == tallied(store)
    assert kind.rows(store)[0][2] == "name 2"
    assert deliver(kind, store, *events[:3]) == [DUPLICATE] * 3
    assert deliver(kind, store, events[3]) == [APPLIED]
    assert tallied(store) == {"applied": 3, "superseded": 1}


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
        (
            update(1, 5),
            update(1, 5),
            False,
        ),  # said twice, as after a crash of the source between write and note
        (update(1, 5), update(1, 4), False),  # late
        (update(1, 5), update(1, 4, occurred_at=BEGAN + timedelta(hours=1)), True),
        (update(1, 5), tombstone(1, 5), True),
        (tombstone(1, 5), update(1, 4), False),
        (tombstone(1, 5), update(1, 5), True),
        (tombstone(1, 5), update(1, 6), True),
        (tombstone(1, 5), tombstone(1, 5), False),
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
    unknown = unknown.model_copy(
        update={"event_id": type(unknown).model_fields["event_id"].get_default(call_default_factory=True)}
    )
    with caplog.at_level(logging.INFO):
        if together:
            assert deliver(kind, store, applied, unknown) == [APPLIED, SUPERSEDED]
        else:
            assert [deliver(kind, store, applied), deliver(kind, store, unknown)] == [[APPLIED], [SUPERSEDED]]
        assert deliver(kind, store, unknown) == [DUPLICATE]  # a repeat alarms nobody again
    assert store.tallies().get(("urn:test", "conflict"), 0) == alarm
    assert [record.levelname for record in caplog.records] == ["ERROR"] * alarm
    assert all(str(unknown.event_id) in record.message for record in caplog.records)
    assert_rows_equal_the_replica(kind, store)


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


def test_joins_beside_events_leave_no_stale_row(kind: Kind, store: Store) -> None:
    rounds = 100
    start = threading.Barrier(2)
    failures: list[BaseException] = []

    def in_thread(work: Callable[[Store], None]) -> threading.Thread:
        def run() -> None:
            try:
                with closing(kind.make(store.path)) as own:
                    start.wait()
                    work(own)
            except BaseException as error:
                failures.append(error)

        return threading.Thread(target=run)

    def consume(own: Store) -> None:
        for version in range(1, rounds + 1):
            deliver(kind, own, update(1, version))

    def join(own: Store) -> None:
        for container in range(1, rounds + 1):
            kind.join(own, 1, container)

    threads = [in_thread(consume), in_thread(join)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    last = update(1, rounds)
    assert kind.rows(store) == [
        (1, container, last.nick_name, kind.picture(last), "") for container in range(1, rounds + 1)
    ]


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
    for user_id, container in ((2, 10), (2, 11), (3, 10), (4, 10)):
        kind.join(store, user_id, container)
    user, _, name, picture, _ = kind.columns.split(", ")
    sql(store.path, f"UPDATE {kind.table} SET {name} = 'wrong' WHERE {user} IN (2, 4)")
    sql(store.path, f"UPDATE {kind.table} SET {picture} = 'wrong' WHERE {user} = 4")
    expected = [
        CopyState(2, 4, False, ("name 4", kind.picture(update(2, 4))), rows=2, stale_rows=2),
        CopyState(3, 0, False, ("", ""), rows=1, stale_rows=0),
        CopyState(4, 0, False, ("", ""), rows=1, stale_rows=1),
        CopyState(5, 2, True, ("", ""), rows=0, stale_rows=0),
    ]
    assert store.states(0, 99) == expected
    paged = []
    while page := store.states(paged[-1].key if paged else 0, 1):
        paged += page
    assert paged == expected
    assert [store.state(n) for n in range(1, 7)] == [None, *expected, None]


def test_staleness_is_the_time_from_the_edit_to_the_copies(kind: Kind, store: Store) -> None:
    assert (store.staleness().p50_ms, store.staleness().p99_ms) == (None, None)
    now = datetime.now(UTC)
    ages = [10.0] * 95 + [1000.0] * 5
    events = [update(n, 1, occurred_at=now - timedelta(seconds=age)) for n, age in enumerate(ages, start=1)]
    deliver(kind, store, *events, update(1, 0 + 1, occurred_at=now - timedelta(days=9)))  # superseded: no copy
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
