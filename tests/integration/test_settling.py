"""What every store that follows a group has: an identity, a generation, and a log that is pruned."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from imsync.bus import BoundStore, PrunedLog, SettlementLog
from imsync.bus.entry import id_parts
from imsync.bus.handler import Rejected
from imsync.bus.outcome import APPLIED, DUPLICATE, DeadLetter
from imsync.bus.uuid7 import uuid7
from imsync.errors import StoreMismatch, StoreUnusable
from imsync.im.events import IMBaseEvent
from imsync.store.forgetting import PRUNE_LIMIT
from imsync.store.settlement import DEAD, SQL
from tests.projections import GROUP, Kind, Store, deliver, everything, update
from tests.stores import sql

HOUR_MS = 3_600_000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "copies.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with closing(GROUP.make(path, create=True)) as made:
        yield made


# ── identity and generation ──────────────────────────────────────────────────────────────────────────


def test_a_store_keeps_the_identity_that_it_was_made_with(kind: Kind, path: Path, tmp_path: Path) -> None:
    with closing(kind.make(path, create=True)) as one, closing(kind.make(tmp_path / "b.db", create=True)) as other:
        identity = one.store_id
        assert UUID(identity).version == 4
        assert identity != other.store_id
        deliver(kind, one, update(1, 1))
    with closing(kind.make(path)) as again:
        assert again.store_id == identity


def test_a_store_is_what_the_bus_asks_for(store: Store) -> None:
    assert isinstance(store, BoundStore)
    assert isinstance(store, PrunedLog)
    assert isinstance(store, SettlementLog)


def test_the_generation_is_the_number_of_settling_transactions(store: Store, path: Path) -> None:
    assert store.generation == 0
    with closing(GROUP.make(path)) as other:  # of another process, for all the store knows
        for n, settle in enumerate(
            [
                lambda: deliver(GROUP, store, update(1, 1), update(2, 1)),
                lambda: deliver(GROUP, other, update(1, 2)),
                lambda: deliver(GROUP, other, update(1, 2)),
                lambda: store.record_dead([Rejected(None, "1-1", DeadLetter("x", "x"))]),
                lambda: other.record_lost(["1-2"]),
                lambda: store.note_snapshot("1-1", "urn:test", 3),
                lambda: other.write_snapshot([]),
            ],
            start=1,
        ):
            settle()
            assert (store.generation, other.generation) == (n, n)
        GROUP.join(store, 1, 10)
        assert store.generation == n
    with closing(GROUP.make(path)) as again:
        assert again.generation == n


def test_what_is_rolled_back_raises_no_generation(store: Store, path: Path) -> None:
    deliver(GROUP, store, update(1, 1))
    sql(path, "CREATE TRIGGER sabotage BEFORE INSERT ON settled BEGIN SELECT RAISE(FAIL, 'no'); END")
    for _ in range(2):
        with pytest.raises(Exception, match="no"):
            deliver(GROUP, store, update(1, 2))
        assert store.generation == 1
    sql(path, "DROP TRIGGER sabotage")
    deliver(GROUP, store, update(1, 2))
    assert store.generation == 2


def test_a_store_that_is_filled_is_another_one_and_not_whole_until_it_ends(store: Store, path: Path) -> None:
    deliver(GROUP, store, update(1, 1))
    before = store.store_id
    with closing(GROUP.make(path)) as at_work:
        store.begin_filling()
        assert store.store_id != before
        with pytest.raises(StoreMismatch, match="replaced by another store"):
            deliver(GROUP, at_work, update(1, 2))
    deliver(GROUP, store, update(1, 2))  # whoever fills it may settle what waits
    for _ in range(2):
        with pytest.raises(StoreMismatch, match="is not whole"):
            _ = store.generation
    with closing(GROUP.make(path)) as again, pytest.raises(StoreMismatch, match="is not whole"):
        _ = again.generation
    store.note_snapshot("1-0", "urn:test:source", 0)
    assert store.generation == 3


def test_what_a_snapshot_covers_takes_no_effect_any_more(store: Store) -> None:
    settled, covered = update(1, 1), update(2, 5)
    deliver(GROUP, store, settled)
    store.cover([(settled.event_id.bytes, "1-0"), (covered.event_id.bytes, "1-1")])
    store.cover([(covered.event_id.bytes, "1-1")])
    assert deliver(GROUP, store, covered, settled) == [DUPLICATE, DUPLICATE]
    assert store.state(2) is None
    outcomes = {outcome for _, outcome in store.tallies()}
    assert "covered" not in outcomes, "they are counted when the snapshot is noted"


# ── the file is exchanged while it is open ───────────────────────────────────────────────────────────


def copied(path: Path, to: Path) -> Path:
    """A whole copy of a store, as a backup makes it."""
    sql(path, "VACUUM INTO ?", (str(to),))
    return to


def put(source: Path, path: Path) -> None:
    """Puts a file in the place of a store, as somebody does who knows that the log is a part of it."""
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    source.rename(path)


def test_an_equal_copy_takes_over(store: Store, path: Path, tmp_path: Path) -> None:
    deliver(GROUP, store, update(1, 1))
    put(copied(path, tmp_path / "copy.db"), path)
    assert deliver(GROUP, store, update(1, 2)) == [APPLIED]
    assert store.generation == 2
    with closing(GROUP.make(path)) as again:  # it went into the file that is there
        assert again.generation == 2
        assert [state.version for state in again.states(0, 9)] == [2]


@pytest.mark.parametrize("use", ["apply", "record_dead", "record_lost", "generation", "states", "join", "prune"])
def test_an_older_copy_is_refused(store: Store, path: Path, tmp_path: Path, use: str) -> None:
    events = [update(1, 1), update(1, 2)]
    deliver(GROUP, store, events[0])
    older, newest = copied(path, tmp_path / "older.db"), tmp_path / "newest.db"
    deliver(GROUP, store, events[1])
    copied(path, newest)
    put(older, path)
    uses: dict[str, Callable[[], object]] = {
        "apply": lambda: deliver(GROUP, store, update(1, 3)),
        "record_dead": lambda: store.record_dead([Rejected(None, "1-1", DeadLetter("x", "x"))]),
        "record_lost": lambda: store.record_lost(["1-1"]),
        "generation": lambda: store.generation,
        "states": lambda: store.states(0, 9),
        "join": lambda: GROUP.join(store, 1, 10),
        "prune": lambda: store.prune("1-0"),
    }
    for _ in range(2):  # it stays refused
        with pytest.raises(StoreMismatch, match=r"older copy .* \(generation 1 of 2\)") as raised:
            uses[use]()
        assert raised.value.hint == "run `imsync rebuild group`"
    with closing(GROUP.make(path)) as untouched:
        assert untouched.generation == 1
        assert everything(untouched)[-1] == [
            (1, 1, "name 1", "thumb 1", 0, update(1, 1).occurred_at.timestamp() * 1000)
        ]
    put(newest, path)
    assert deliver(GROUP, store, *events) == [DUPLICATE, DUPLICATE]
    assert store.generation == 3


def test_the_log_of_the_file_before_is_not_mixed_into_another_one(store: Store, path: Path, tmp_path: Path) -> None:
    deliver(GROUP, store, update(1, 1))
    deliver(GROUP, store, update(1, 2))
    copied(path, tmp_path / "copy.db").rename(path)
    for _ in range(2):
        with pytest.raises(StoreUnusable, match="still that of the file before") as raised:
            deliver(GROUP, store, update(1, 3))
        assert raised.value.hint == "move copies.db-wal and copies.db-shm away"
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).rename(tmp_path / f"aside{suffix}")
    assert deliver(GROUP, store, update(1, 3)) == [APPLIED]
    assert store.generation == 3


def test_another_store_is_refused(store: Store, path: Path, tmp_path: Path) -> None:
    deliver(GROUP, store, update(1, 1))
    with closing(GROUP.make(tmp_path / "other.db", create=True)) as other:
        for version in range(1, 9):  # further than the own one: only its name tells
            deliver(GROUP, other, update(1, version))
    put(tmp_path / "other.db", path)
    with pytest.raises(StoreMismatch, match="another store"):
        deliver(GROUP, store, update(1, 2))
    with closing(GROUP.make(path)) as untouched:
        assert untouched.generation == 8


def test_an_older_state_that_was_written_over_the_open_file_is_refused(store: Store, path: Path) -> None:
    """No other file, so the generation alone tells."""
    deliver(GROUP, store, update(1, 1))
    deliver(GROUP, store, update(1, 2))
    sql(path, "UPDATE meta SET value = '1' WHERE key = 'generation'")
    with pytest.raises(StoreMismatch, match="older copy"):
        deliver(GROUP, store, update(1, 3))
    with pytest.raises(StoreMismatch, match="older copy"):
        _ = store.generation
    assert [state.version for state in store.states(0, 9)] == [2]


# ── what a store remembers of its file ───────────────────────────────────────────────────────────────


BEFORE_MS = 1_700_000_000_000


def test_what_others_settle_meanwhile_is_known(kind: Kind, path: Path) -> None:
    """Each remembers what is settled, for as long as nobody else writes."""
    events = [update(1, version, event_id=uuid7(BEFORE_MS + version)) for version in range(1, 9)]
    with closing(kind.make(path, create=True)) as one, closing(kind.make(path)) as other:
        for event in events[:3]:
            assert deliver(kind, one, event) == [APPLIED]
        assert deliver(kind, other, *events[:4]) == [DUPLICATE] * 3 + [APPLIED]
        assert deliver(kind, one, events[3]) == [DUPLICATE]
        assert deliver(kind, one, events[4]) == [APPLIED]
        assert deliver(kind, other, events[5]) == [APPLIED]
        assert deliver(kind, one, events[4], events[5], events[6]) == [DUPLICATE, DUPLICATE, APPLIED]
        assert deliver(kind, one, events[6]) == [DUPLICATE]
        assert one.generation == other.generation == 9


def test_what_it_has_settled_itself_is_known(kind: Kind, path: Path) -> None:
    events = [update(user_id, 1, event_id=uuid7(BEFORE_MS + user_id)) for user_id in range(1, 9)]
    with closing(kind.make(path, create=True)) as store:
        for event in (events[1], events[4], events[2]):
            assert deliver(kind, store, event) == [APPLIED]
        assert deliver(kind, store, events[4], events[1], events[2]) == [DUPLICATE] * 3
        assert deliver(kind, store, events[5]) == [APPLIED]
        store.cover([(events[6].event_id.bytes, "9-0")])
        assert deliver(kind, store, events[6]) == [DUPLICATE]
        assert deliver(kind, store, events[7]) == [APPLIED]
        store.record_lost(["7-0"])
        store.record_lost(["7-0", "8-0"])
        store.record_dead([Rejected(None, "8-0", DeadLetter("invalid", "bad"))])
        assert sorted(outcome for _, outcome, _ in settled_rows(path)) == ["applied"] * 5 + ["covered"] + ["lost"] * 2


def test_what_was_rolled_back_is_not_remembered(kind: Kind, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(kind.make(path, create=True)) as store:
        deliver(kind, store, update(1, 1))
        deliver(kind, store, update(1, 2))
        refused = update(1, 3)
        with monkeypatch.context() as broken:
            broken.setattr(store, "_raise_alarms", lambda *_: 1 // 0)
            with pytest.raises(ZeroDivisionError):
                deliver(kind, store, refused)
        assert store.generation == 2
        assert deliver(kind, store, refused) == [APPLIED]
        assert (store.generation, sql(path, "SELECT value FROM meta WHERE key = 'generation'")) == (3, [("3",)])


def test_a_snapshot_that_is_noted_meanwhile_counts(kind: Kind, path: Path) -> None:
    """By another process or by itself: what it covers and comes all the same is taken from what is covered."""
    with closing(kind.make(path, create=True)) as one, closing(kind.make(path)) as other:
        deliver(kind, one, update(1, 1))
        for times, noting in enumerate((one, other), start=1):
            deliver(kind, one, update(2, times, source="urn:test:source"))
            noting.note_snapshot("9999999999999-0", "urn:test:source", 5)
            deliver(kind, one, update(3, times, source="urn:test:source"))
            assert one.tallies()["urn:test:source", "covered"] == 4


def settled_rows(path: Path) -> list[Any]:
    return sql(path, "SELECT event_key, outcome, entry_id FROM settled")


# ── pruning ──────────────────────────────────────────────────────────────────────────────────────────


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def aged(hours: float, **changes: object) -> IMBaseEvent:
    """An event of so many hours ago."""
    return update(1, 1, event_id=uuid7(now_ms() - int(hours * HOUR_MS)), **changes)


def entry(hours: float, sequence: int = 0) -> str:
    """An entry of so many hours ago."""
    return f"{now_ms() - int(hours * HOUR_MS)}-{sequence}"


def settled_ids(store: Store) -> list[str]:
    return [entry_id for (entry_id,) in sql(store.path, "SELECT entry_id FROM settled ORDER BY event_key")]


def test_only_what_is_trimmed_and_old_is_forgotten(store: Store) -> None:
    forgotten, in_stream, young = entry(200), entry(180, 5), entry(167)
    for event, entry_id in [(aged(201), forgotten), (aged(181), in_stream), (aged(168.5), young)]:
        store.apply([GROUP.received(event, entry_id)])
    late = entry(100)
    store.apply([GROUP.received(aged(300), late)])  # old when it was published
    ahead = aged(-300)
    store.apply([GROUP.received(ahead, entry(250))])  # by a clock that is ahead
    before = store.tallies()
    assert [store.prune(in_stream) for _ in range(3)] == [1, 0, 0]
    assert forgotten not in settled_ids(store)
    assert len(settled_ids(store)) == 4
    assert store.tallies() == before
    assert [store.prune(entry(0)) for _ in range(3)] == [1, 0, 0]
    assert {young, late} < set(settled_ids(store))
    assert deliver(GROUP, store, ahead) == [DUPLICATE]


def test_first_ids_are_compared_as_numbers(path: Path) -> None:
    with closing(GROUP.make(path, create=True)) as store:
        for entry_id in ("999-0", "1000-2", "1000-10"):
            store.apply([GROUP.received(aged(200), entry_id)])
        assert store.prune("1000-2") == 1
        assert sorted(settled_ids(store)) == ["1000-10", "1000-2"]
        assert store.prune("1000-10") == 1
        assert settled_ids(store) == ["1000-10"]


def test_how_long_is_old_is_the_callers(path: Path) -> None:
    GROUP.make(path, create=True).close()
    with closing(GROUP.make(path, settled_hours=2)) as store:
        for hours in (1.9, 2.1):
            store.apply([GROUP.received(aged(hours), entry(hours))])
        assert store.prune(entry(0)) == 1
    with closing(GROUP.make(path, settled_hours=1)) as store:
        assert store.prune(entry(0)) == 1


def test_what_a_dead_letter_holds_is_never_forgotten_until_it_is_applied(store: Store, path: Path) -> None:
    """Nor at once then: whoever applied it may be killed before the letter is deleted, and it is redriven later."""
    event = aged(200)
    dead = Rejected(GROUP.received(event).event, entry(200), DeadLetter("x", "x"))
    store.record_dead([dead, Rejected(None, entry(199), DeadLetter("bad_json", "x"))])
    assert [store.prune(entry(0)) for _ in range(4)] == [0] * 4
    assert store.apply([GROUP.received(event, entry(200))]) == [APPLIED]
    assert [store.prune(entry(-1)) for _ in range(4)] == [0] * 4
    assert store.apply([GROUP.received(event, entry(200))]) == [DUPLICATE]
    with closing(GROUP.make(path, settled_hours=-1)) as later:
        assert [later.prune(entry(0.1)) for _ in range(4)] == [0] * 4
        assert sum(later.prune(entry(-1)) for _ in range(4)) == 1
    assert [outcome for (outcome,) in sql(store.path, "SELECT outcome FROM settled")] == [DEAD]


def test_an_event_of_which_a_copy_is_still_in_the_stream_is_not_forgotten(store: Store) -> None:
    event, copy = aged(200), entry(190)
    store.apply([GROUP.received(event, entry(200))])
    store.apply([GROUP.received(event, copy)])
    assert [store.prune(copy) for _ in range(3)] == [0] * 3
    assert store.apply([GROUP.received(event, copy)]) == [DUPLICATE]
    assert store.prune(entry(0)) == 1


def test_a_copy_that_comes_while_its_event_is_being_forgotten_keeps_it(
    store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    event = aged(200)
    store.apply([GROUP.received(event, entry(200))])
    look = store._settlements.look

    def overtaken(*arguments: object) -> object:
        rows = look(*arguments)
        if rows:
            with closing(GROUP.make(path)) as other:
                other.apply([GROUP.received(event, entry(1))])
        return rows

    monkeypatch.setattr(store._settlements, "look", overtaken)
    assert store.prune(entry(0)) == 0
    assert deliver(GROUP, store, event) == [DUPLICATE]


def test_each_call_is_short_however_much_there_is(store: Store, path: Path) -> None:
    first = now_ms() - 400 * HOUR_MS
    rows = [(uuid7(first + n).bytes, "applied" if n % 3 else DEAD, f"{first + n}-0") for n in range(5 * PRUNE_LIMIT)]
    connection = store._database._connection
    connection.execute("BEGIN")
    connection.executemany("INSERT INTO settled VALUES (?, ?, ?)", rows)
    connection.execute("COMMIT")
    plan = sql(path, f"EXPLAIN QUERY PLAN {SQL['look']}", (b"", b"x", 9))
    assert "SEARCH settled USING PRIMARY KEY" in plan[0][-1]
    steps = 0

    def step() -> None:
        nonlocal steps
        steps += 1

    numbers = []
    while True:
        connection.set_progress_handler(step, 1000)
        numbers.append(store.prune(entry(0)))
        connection.set_progress_handler(None, 0)
        assert steps < 80  # thousands of SQLite's instructions
        steps = 0
        if not numbers[-1]:
            break
    assert all(600 < n < 700 for n in numbers[:5])
    assert sum(numbers) == sum(outcome == "applied" for _, outcome, _ in rows)
    assert {outcome for (outcome,) in sql(path, "SELECT outcome FROM settled")} == {DEAD}


def test_in_the_end_exactly_what_may_go_is_gone(store: Store) -> None:
    """Against a plain model: ids of every kind, published in any order."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    rows = []
    for n in range(3000):
        published = now_ms() - rng.randrange(400 * HOUR_MS)
        occurred = published - rng.choice([0, rng.randrange(50 * HOUR_MS), -rng.randrange(100 * HOUR_MS)])
        entry_id = f"{published}-{n}"
        key = rng.choice([uuid7(occurred).bytes, uuid4().bytes, b"entry:" + entry_id.encode()])
        rows.append((key, rng.choice(["applied", "superseded", "lost", DEAD]), entry_id, occurred))
    connection = store._database._connection
    connection.execute("BEGIN")
    connection.executemany("INSERT INTO settled VALUES (?, ?, ?)", [row[:3] for row in rows])
    connection.execute("COMMIT")
    first, old = now_ms() - 190 * HOUR_MS, now_ms() - 168 * HOUR_MS

    def may_go(key: bytes, outcome: str, entry_id: str, occurred: int) -> bool:
        has_time = len(key) == 16 and UUID(bytes=key).version == 7
        return outcome != DEAD and id_parts(entry_id)[0] < first and not (has_time and occurred >= old)

    total = sum(store.prune(f"{first}-0") for _ in range(20))
    left = {row[2] for row in rows if not may_go(*row)}
    assert set(settled_ids(store)) == left
    assert total == len(rows) - len(left) > 500
