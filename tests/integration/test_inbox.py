"""The inbox: effects of events without a version happen once, however often and however badly they are delivered."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imsync.bus import BoundStore, PrunedLog, SettlementLog
from imsync.bus.handler import Received, Rejected
from imsync.bus.outcome import APPLIED, DUPLICATE, DeadLetter, Outcome, Retry
from imsync.errors import InfrastructureError, RedisUnreachable, StoreMismatch, StoreUnusable
from imsync.im.group_store import GroupStore
from imsync.store.inbox import Inbox, Refuse
from tests.conftest import CHECKOUT
from tests.consumers import Noted, Rig
from tests.servers import Spawn, eventually
from tests.stores import sql

TABLES = [
    """
    CREATE TABLE booked (number INTEGER NOT NULL);
    CREATE TABLE total (id INTEGER PRIMARY KEY, n INTEGER NOT NULL);
    INSERT INTO total (id, n) VALUES (1, 0);
    """,
]


def book(connection: sqlite3.Connection, event: Noted) -> None:
    """The effect of these tests: done twice, it shows."""
    connection.execute("INSERT INTO booked (number) VALUES (?)", (event.number,))
    connection.execute("UPDATE total SET n = n + ? WHERE id = 1", (event.number,))


Effect = Callable[[sqlite3.Connection, Noted], object]


class Troubled:
    """Books, and then does what the test says for that number."""

    def __init__(self, trouble: dict[int, Effect]) -> None:
        self.trouble = trouble
        self.calls: list[int] = []

    def __call__(self, connection: sqlite3.Connection, event: Noted) -> object:
        self.calls.append(event.number)
        book(connection, event)
        return self.trouble.get(event.number, lambda *_: None)(connection, event)


def failing(error: Exception) -> Effect:
    def fail(_: sqlite3.Connection, __: Noted) -> None:
        raise error

    return fail


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "inbox.db"


@pytest.fixture
def make(path: Path) -> Iterator[Callable[..., Inbox[Noted]]]:
    made: list[Inbox[Noted]] = []

    def inbox(effect: Effect = book, **options: Any) -> Inbox[Noted]:
        made.append(Inbox(path, **({"schema_sql": TABLES, "effect": effect, "name": "test"} | options)))
        return made[-1]

    yield inbox
    for each in made:
        each.close()


def deliver(inbox: Inbox[Noted], *events: Noted, entry_id: str = "1-0") -> Sequence[Outcome]:
    return inbox.apply([Received(event, entry_id) for event in events])


def booked(path: Path) -> list[int]:
    """What took effect, in order. Both tables must tell the same."""
    numbers = [number for (number,) in sql(path, "SELECT number FROM booked ORDER BY rowid")]
    assert sql(path, "SELECT n FROM total") == [(sum(numbers),)]
    return numbers


def settled(path: Path) -> Counter[str]:
    return Counter(outcome for (outcome,) in sql(path, "SELECT outcome FROM settled"))


def tallied(inbox: Inbox[Noted]) -> Counter[str]:
    total: Counter[str] = Counter()
    for (_, outcome), n in inbox.tallies().items():
        total[outcome] += n
    return +total


def noted(*numbers: int) -> list[Noted]:
    return [Noted(number=number) for number in numbers]


# ── once ─────────────────────────────────────────────────────────────────────────────────────────────


def test_an_effect_happens_once(make: Callable[..., Inbox[Noted]], path: Path) -> None:
    inbox = make()
    events = noted(1, 2, 3)
    assert deliver(inbox, *events) == [APPLIED] * 3
    assert deliver(inbox, *reversed(events)) == [DUPLICATE] * 3
    assert deliver(make(), events[1], *noted(4)) == [DUPLICATE, APPLIED]  # opened by another process
    assert booked(path) == [1, 2, 3, 4]
    assert settled(path) == {"applied": 4}
    assert tallied(inbox) == {"applied": 4, "duplicate": 4}


def test_two_deliveries_of_one_event_in_one_batch_are_one_effect(make: Callable[..., Inbox[Noted]], path: Path) -> None:
    one, other = noted(1, 1)  # two events that say the same are two
    assert deliver(make(), one, other, one) == [APPLIED, APPLIED, DUPLICATE]
    assert booked(path) == [1, 1]


def test_an_inbox_is_what_the_bus_asks_for(make: Callable[..., Inbox[Noted]]) -> None:
    inbox = make()
    for protocol in (SettlementLog, BoundStore, PrunedLog):
        assert isinstance(inbox, protocol)
    before = inbox.generation
    deliver(inbox, *noted(1))
    assert inbox.generation == before + 1
    assert inbox.staleness().p50_ms is not None


def test_what_is_old_and_trimmed_is_forgotten(make: Callable[..., Inbox[Noted]], path: Path) -> None:
    inbox = make(settled_hours=0)
    deliver(inbox, *noted(1, 2))
    inbox.record_dead([Rejected(noted(3)[0], "1-0", DeadLetter("x", "x"))])
    eventually(lambda: inbox.prune("2-0") or settled(path) == {"dead": 1})
    assert settled(path) == {"dead": 1}


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_order_any_batches_any_repeats_and_any_failures_end_in_one_effect_each(
    tmp_path: Path, data: st.DataObject
) -> None:
    events = noted(*range(1, data.draw(st.integers(1, 5)) + 1))
    fails_once = set(data.draw(st.lists(st.sampled_from([e.number for e in events]))))
    refused = set(data.draw(st.lists(st.sampled_from([e.number for e in events]), max_size=2)))

    def effect(connection: sqlite3.Connection, event: Noted) -> None:
        book(connection, event)
        if event.number in fails_once:
            fails_once.remove(event.number)
            raise ValueError("for once")
        if event.number in refused:
            raise Refuse("no", "never")

    waiting = data.draw(st.permutations(events + data.draw(st.lists(st.sampled_from(events), max_size=5))))
    path = tmp_path / "any.db"
    for file in tmp_path.glob("any.db*"):
        file.unlink()
    with closing(Inbox(path, schema_sql=TABLES, effect=effect)) as inbox:
        while waiting:
            size = data.draw(st.integers(1, len(waiting)))
            batch, waiting = waiting[:size], waiting[size:]
            outcomes = deliver(inbox, *batch)
            waiting += [event for event, outcome in zip(batch, outcomes, strict=True) if isinstance(outcome, Retry)]
            dead = [
                Rejected(event, "1-0", outcome)
                for event, outcome in zip(batch, outcomes, strict=True)
                if isinstance(outcome, DeadLetter)
            ]
            if dead:
                inbox.record_dead(dead)
        assert sorted(booked(path)) == [e.number for e in events if e.number not in refused]
        assert settled(path) == +Counter(applied=len(events) - len(refused), dead=len(refused))


# ── failures ─────────────────────────────────────────────────────────────────────────────────────────


def test_a_failing_effect_takes_back_what_it_did_and_nothing_else(
    make: Callable[..., Inbox[Noted]], path: Path
) -> None:
    effect = Troubled({2: failing(ValueError("no such thing"))})
    inbox = make(effect)
    events = noted(1, 2, 3)
    first, second, third = deliver(inbox, *events)
    assert (first, third) == (APPLIED, APPLIED)
    assert isinstance(second, Retry)
    assert second.error == "ValueError: no such thing"
    assert booked(path) == [1, 3]
    assert settled(path) == {"applied": 2}
    effect.trouble.clear()
    assert deliver(inbox, *events) == [DUPLICATE, APPLIED, DUPLICATE]
    assert booked(path) == [1, 3, 2]


def test_an_effect_refuses_for_good(make: Callable[..., Inbox[Noted]], path: Path) -> None:
    inbox = make(Troubled({2: failing(Refuse("unknown_account", "there is no account 2"))}))
    events = noted(1, 2)
    refusal = DeadLetter("unknown_account", "there is no account 2")
    assert deliver(inbox, *events) == [APPLIED, refusal]
    inbox.record_dead([Rejected(events[1], "1-0", refusal)])
    assert booked(path) == [1]
    assert settled(path) == {"applied": 1, "dead": 1}


def test_a_dead_event_that_comes_again_is_tried_again(make: Callable[..., Inbox[Noted]], path: Path) -> None:
    effect = Troubled({1: failing(Refuse("x", "x"))})
    inbox = make(effect)
    (event,) = noted(1)
    for _ in range(2):
        (outcome,) = deliver(inbox, event)
        assert isinstance(outcome, DeadLetter)
        inbox.record_dead([Rejected(event, "1-0", outcome)])
    effect.trouble.clear()
    assert deliver(inbox, event, event) == [APPLIED, DUPLICATE]
    assert booked(path) == [1]
    assert effect.calls == [1, 1, 1]
    assert tallied(inbox) == {"applied": 1, "duplicate": 1}


MISTAKES: dict[str, Effect] = {
    "no such table": lambda connection, _: connection.execute("INSERT INTO nowhere VALUES (1)"),
    "syntax error": lambda connection, _: connection.execute("SELEKT"),
    "NOT NULL": lambda connection, _: connection.execute("INSERT INTO booked VALUES (NULL)"),
    "Incorrect number of bindings": lambda connection, _: connection.execute("SELECT ?", ()),
    "too large": lambda connection, _: connection.execute("SELECT ?", (2**70,)),
    "asynchronous": lambda connection, event: _asynchronous(connection, event),
    "returned an outcome": lambda _, __: DeadLetter("x", "x"),
}


async def _asynchronous(connection: sqlite3.Connection, event: Noted) -> None:
    book(connection, event)


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_of_the_effect_is_the_effects_failure(
    make: Callable[..., Inbox[Noted]], path: Path, mistake: str
) -> None:
    inbox = make(Troubled({2: MISTAKES[mistake]}))
    first, second, third = deliver(inbox, *noted(1, 2, 3))
    assert (first, third) == (APPLIED, APPLIED)
    assert isinstance(second, Retry)
    assert mistake in second.error
    assert booked(path) == [1, 3]


ENDINGS: dict[str, Effect] = {
    "commit()": lambda connection, _: connection.commit(),
    "rollback()": lambda connection, _: connection.rollback(),
    "with connection": lambda connection, _: connection.__enter__().__exit__(None, None, None),
    "COMMIT": lambda connection, _: connection.execute("COMMIT"),
    "END": lambda connection, _: connection.execute("END TRANSACTION"),
    "ROLLBACK": lambda connection, _: connection.execute("ROLLBACK"),
    "executescript": lambda connection, _: connection.executescript("INSERT INTO booked VALUES (9)"),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_an_effect_cannot_end_the_transaction(make: Callable[..., Inbox[Noted]], path: Path, ending: str) -> None:
    """It would part the effects before it from their settled rows."""
    inbox = make(Troubled({2: ENDINGS[ending]}))
    events = noted(1, 2, 3)
    for _ in range(2):  # also when SQLite has compiled it before
        outcomes = deliver(inbox, *events)
        assert isinstance(outcomes[1], Retry)
        assert "must leave the transaction alone" in outcomes[1].error
        assert booked(path) == [1, 3]
    assert settled(path) == {"applied": 2}


ENDS = "INSERT OR ROLLBACK INTO total (id, n) VALUES (1, 1)"


def swallow(connection: sqlite3.Connection, _: Noted) -> None:
    with suppress(sqlite3.IntegrityError):
        connection.execute(ENDS)


@pytest.mark.parametrize(
    "ending",
    [
        lambda connection, _: connection.execute(ENDS),
        swallow,
        lambda connection, _: connection.execute("RELEASE imsync_effect"),
        lambda connection, _: connection.close(),
    ],
    ids=["OR ROLLBACK", "swallowed", "RELEASE", "close"],
)
def test_an_effect_that_ends_the_transaction_all_the_same_is_found_out(
    make: Callable[..., Inbox[Noted]], path: Path, ending: Effect
) -> None:
    effect = Troubled({2: ending})
    inbox = make(effect)
    events = noted(1, 2, 3)
    with pytest.raises((RuntimeError, sqlite3.ProgrammingError)):
        deliver(inbox, *events)
    assert booked(path) == []
    assert settled(path) == {}
    effect.trouble.clear()
    assert deliver(inbox, *events) == [APPLIED] * 3
    assert booked(path) == [1, 2, 3]


def test_an_effect_may_have_savepoints_of_its_own(make: Callable[..., Inbox[Noted]], path: Path) -> None:
    def careful(connection: sqlite3.Connection, event: Noted) -> None:
        book(connection, event)
        connection.execute("SAVEPOINT own")
        connection.execute("INSERT INTO booked VALUES (99)")
        connection.execute("ROLLBACK TO own")
        connection.execute("RELEASE own")

    assert deliver(make(careful), *noted(1, 2)) == [APPLIED, APPLIED]
    assert booked(path) == [1, 2]


def test_what_an_effect_returns_does_not_matter(make: Callable[..., Inbox[Noted]], path: Path) -> None:
    inbox = make(lambda connection, event: connection.execute("INSERT INTO booked VALUES (0)"))
    assert deliver(inbox, *noted(1)) == [APPLIED]


# ── trouble ──────────────────────────────────────────────────────────────────────────────────────────


def of_sqlite(code: int) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("trouble")
    error.sqlite_errorcode = code
    error.sqlite_errorname = "SQLITE_TROUBLE"
    return error


@pytest.mark.parametrize(
    "error",
    [
        RedisUnreachable("cut"),
        InfrastructureError("the mail server is down"),
        of_sqlite(sqlite3.SQLITE_BUSY),
        of_sqlite(sqlite3.SQLITE_LOCKED),
        of_sqlite(sqlite3.SQLITE_FULL),
        of_sqlite(sqlite3.SQLITE_IOERR | 3 << 8),  # SQLITE_IOERR_WRITE
        of_sqlite(sqlite3.SQLITE_CORRUPT),
        of_sqlite(sqlite3.SQLITE_READONLY),
        of_sqlite(sqlite3.SQLITE_CANTOPEN),
        of_sqlite(sqlite3.SQLITE_NOTADB),
        of_sqlite(sqlite3.SQLITE_NOMEM),
    ],
    ids=lambda error: str(getattr(error, "sqlite_errorcode", error)),
)
def test_trouble_is_the_whole_batchs(make: Callable[..., Inbox[Noted]], path: Path, error: Exception) -> None:
    effect = Troubled({2: failing(error)})
    inbox = make(effect)
    events = noted(1, 2, 3)
    for _ in range(2):
        with pytest.raises(InfrastructureError) as raised:
            deliver(inbox, *events)
        assert isinstance(raised.value, type(error) if isinstance(error, InfrastructureError) else StoreUnusable)
        assert raised.value.hint or raised.value is error
        assert booked(path) == []
        assert settled(path) == {}
    effect.trouble.clear()
    assert deliver(inbox, *events) == [APPLIED] * 3
    assert booked(path) == [1, 2, 3]


def test_an_older_copy_is_refused(make: Callable[..., Inbox[Noted]], path: Path, tmp_path: Path) -> None:
    inbox = make()
    deliver(inbox, *noted(1))
    sql(path, "VACUUM INTO ?", (str(tmp_path / "copy.db"),))
    deliver(inbox, *noted(2))
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink()
    (tmp_path / "copy.db").rename(path)
    with pytest.raises(StoreMismatch, match="older copy") as raised:
        deliver(inbox, *noted(3))
    assert raised.value.hint == "put the newest copy back"


# ── tables ───────────────────────────────────────────────────────────────────────────────────────────

SECOND = """
CREATE TABLE log (number INTEGER);
CREATE TRIGGER logging AFTER INSERT ON booked BEGIN
    INSERT INTO log VALUES (new.number);
    INSERT INTO log VALUES (-new.number);
END;
ALTER TABLE booked ADD COLUMN note TEXT; -- which may be 'a; b'
"""


def test_tables_are_migrated_script_by_script(make: Callable[..., Inbox[Noted]], path: Path) -> None:
    first, late = noted(1, 2)
    inbox = make()
    deliver(inbox, first)
    identity = inbox.store_id
    migrated = make(schema_sql=[*TABLES, SECOND])
    assert migrated.store_id == identity
    assert deliver(migrated, first, late) == [DUPLICATE, APPLIED]
    assert sql(path, "SELECT number FROM log") == [(2,), (-2,)]
    make(schema_sql=[*TABLES, SECOND]).close()  # and not again
    # the program of before, which has the file open still, and which is started again
    with pytest.raises(StoreUnusable, match="tables of version 2, this program knows 1"):
        deliver(inbox, *noted(3))
    with pytest.raises(StoreUnusable, match="tables of version 2, this program knows 1"):
        make()
    assert booked(path) == [1, 2]


def test_a_migration_that_fails_leaves_nothing(make: Callable[..., Inbox[Noted]], path: Path) -> None:
    make().close()
    with pytest.raises(StoreUnusable, match="no such table"):
        make(schema_sql=[*TABLES, "CREATE TABLE more (n); INSERT INTO nowhere VALUES (1);"])
    assert sql(path, "SELECT name FROM sqlite_schema WHERE name = 'more'") == []
    with pytest.raises(StoreUnusable, match="syntax error"):
        make(schema_sql=[*TABLES, "CREATE TABLE more (n); CREATE TABLE half ("])
    assert sql(path, "SELECT name FROM sqlite_schema WHERE name = 'more'") == []
    assert deliver(make(), *noted(1)) == [APPLIED]


def test_a_missing_file_is_made_unless_it_must_exist(make: Callable[..., Inbox[Noted]], path: Path) -> None:
    with pytest.raises(StoreUnusable, match="there is no test inbox"):
        make(create=False)
    assert not path.exists()
    make()
    make(create=False)
    assert path.stat().st_mode & 0o777 == 0o600


def test_another_store_is_no_inbox(make: Callable[..., Inbox[Noted]], path: Path) -> None:
    GroupStore(path, create=True).close()
    with pytest.raises(StoreUnusable, match="is not a test inbox"):
        make()


# ── with a consumer ──────────────────────────────────────────────────────────────────────────────────


def test_a_consumer_gives_each_event_one_effect(rig: Rig, make: Callable[..., Inbox[Noted]], path: Path) -> None:
    effect = Troubled(
        {
            5: failing(Refuse("no", "never")),
            6: failing(ValueError("always")),
            7: ENDINGS["with connection"],
        }
    )
    events = noted(*range(1, 301))
    rig.bus.publish_many([*events, *events[:100], *events[10:20]])
    counts = rig.drain(make(effect))
    assert sorted(booked(path)) == [n for n in range(1, 301) if n not in (5, 6, 7)]
    assert (counts.applied, counts.dead) == (297, 6)  # a dead event that comes again is tried again
    letters = Counter((letter.reason) for letter in rig.dead_letters())
    assert letters == {"no": 2, "max_attempts": 4}
    assert settled(path) == {"applied": 297, "dead": 3}
    assert rig.pending() == {}
    rig.bus.publish_many(events[:50])
    assert rig.drain(make(book)).applied == 3  # the dead ones
    assert sorted(booked(path)) == list(range(1, 301))
    assert settled(path) == {"applied": 300}


KILLED = """
import os, signal, sys
from pathlib import Path
from imsync.store.inbox import Inbox
from tests.consumers import Noted, Rig
from tests.integration.test_inbox import TABLES, book
moment, countdown = sys.argv[3], int(sys.argv[4])

def die(now):
    global countdown
    countdown -= now == moment
    if countdown == 0:
        os.kill(os.getpid(), signal.SIGKILL)

def effect(connection, event):
    book(connection, event)
    die("effect")

class Dying(Inbox):
    def apply(self, batch):
        outcomes = super().apply(batch)
        die("committed")
        return outcomes

inbox = Dying(Path(sys.argv[2]), schema_sql=TABLES, effect=effect, name="test")
def trace(sql):
    if sql == "COMMIT":
        die("commit")
inbox._database._connection.set_trace_callback(trace)
Rig(sys.argv[1]).consumer(inbox, batch=20, until_empty=True).run()
"""


@pytest.mark.parametrize(
    ("moment", "countdown", "survive"), [("effect", 30, 20), ("commit", 2, 20), ("committed", 2, 40)]
)
def test_kill_9_repeats_no_effect(
    rig: Rig, make: Callable[..., Inbox[Noted]], path: Path, spawn: Spawn, moment: str, countdown: int, survive: int
) -> None:
    make().close()
    rig.publish(range(1, 101))
    dying = spawn("-c", KILLED, rig.bus.endpoint.url, path, moment, countdown)
    assert dying.wait(30) == -signal.SIGKILL
    assert len(booked(path)) == survive
    counts = rig.drain(make())
    assert sorted(booked(path)) == list(range(1, 101))
    assert counts.applied == 100 - survive
    assert counts.duplicates == (20 if moment == "committed" else 0)


def test_the_example_runs() -> None:
    with tempfile.TemporaryDirectory(prefix="im-", dir="/tmp") as folder:
        run = subprocess.run(
            [sys.executable, "-W", "error", str(CHECKOUT / "examples" / "inbox.py")],
            env=os.environ | {"PYTHONPATH": str(CHECKOUT), "TMPDIR": folder},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert list(Path(folder).iterdir()) == []
    assert run.stdout.splitlines() == ["100 applied, 10 duplicates, 1 dead", "mia: 2500 cents", "noah: 2550 cents"]
