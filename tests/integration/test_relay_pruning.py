"""Sent rows leave the outbox when they are old and no group needs them any more, and not before."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from imsync.bus.bus import Bus
from imsync.bus.connection import Endpoint
from imsync.bus.publisher import Publisher
from imsync.bus.stream import Stream
from imsync.errors import InfrastructureError, RedisRefused
from imsync.im import pruning
from imsync.im.events import DESTINATION
from imsync.im.relay import Relay
from imsync.im.user_store import ProfileEdit, UserStore
from tests.servers import Server, eventually
from tests.stores import PEOPLE, latest_event, nick, sql

HOUR_MS = 3_600_000
KEEP_MS = 168 * HOUR_MS
ALL = 2**62


class Clocks:
    """This machine's clock, in milliseconds, and the relays', in seconds: both stand still until they are set on."""

    def __init__(self) -> None:
        self.ms = 1_700_000_000_000
        self.seconds = 0.0

    def a_minute_passes(self) -> None:
        self.seconds += 60.0


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


@pytest.fixture
def store(tmp_path: Path, clocks: Clocks) -> Iterator[UserStore]:
    with closing(UserStore(tmp_path / "user.db", create=True, clock_ms=lambda: clocks.ms)) as made:
        made.bootstrap(PEOPLE, origin="test")
        yield made


@pytest.fixture
def stream(server: Server) -> Iterator[Stream]:
    with Bus(Endpoint(server.url)) as bus:
        yield bus.stream(DESTINATION)


@pytest.fixture
def relay(store: UserStore, stream: Stream, clocks: Clocks) -> Relay:
    return Relay(store, Publisher(stream, store.source), clock=lambda: clocks.seconds)


def edits(n: int, first: int = 0) -> list[ProfileEdit]:
    return [ProfileEdit(user_id=i % 2 + 1, head_image=f"{first + i}") for i in range(n)]


def kept(store: UserStore) -> list[int]:
    """The rows of the outbox."""
    return [seq for (seq,) in sql(store.path, "SELECT seq FROM outbox ORDER BY seq")]


def acknowledge(stream: Stream, count: int, *groups: str) -> None:
    """The groups, made when they are not there, take so many further entries and acknowledge them."""
    for group in groups:
        stream.create_group(group)
        stream.acknowledge(group, [entry.id for entry in stream.read_new(group, "c", count)])


def test_rows_go_when_they_are_old_and_every_group_has_acknowledged_them(
    store: UserStore, stream: Stream, relay: Relay, clocks: Clocks
) -> None:
    store.edit_many(edits(10))
    relay.deliver(ALL)
    clocks.ms += HOUR_MS
    store.edit_many(edits(4, first=10))
    relay.deliver(ALL)
    acknowledge(stream, 8, "group", "friend")
    clocks.ms += KEEP_MS - HOUR_MS
    clocks.a_minute_passes()
    relay.deliver(ALL)
    assert len(kept(store)) == 14, "old enough is more than just so old"
    clocks.ms += 1
    clocks.a_minute_passes()
    relay.deliver(ALL)
    assert kept(store) == list(range(9, 15)), "the ninth is old and not acknowledged"
    acknowledge(stream, 5, "group", "friend")
    clocks.a_minute_passes()
    relay.deliver(ALL)
    assert kept(store) == [11, 12, 13, 14], "the others were acknowledged and are not old"
    assert (store.published(), store.resent(), store.backlog().unsent) == (14, 0, 0)
    assert relay.drain() == 0


def test_the_slowest_group_keeps_them(store: UserStore, stream: Stream, relay: Relay, clocks: Clocks) -> None:
    store.edit_many(edits(10))
    relay.deliver(ALL)
    acknowledge(stream, 10, "group")
    acknowledge(stream, 3, "friend")
    (pending,) = stream.read_new("friend", "slow", 1)
    acknowledge(stream, 4, "friend")
    clocks.ms += 10 * KEEP_MS
    clocks.a_minute_passes()
    relay.deliver(ALL)
    assert kept(store) == list(range(4, 11))
    assert latest_event(store, 1) == (6, sql(store.path, "SELECT entry_id FROM outbox WHERE seq = 9")[0][0])
    stream.acknowledge("friend", [pending.id])
    clocks.a_minute_passes()
    relay.deliver(ALL)
    assert kept(store) == [9, 10]


def test_without_a_group_nothing_goes(store: UserStore, stream: Stream, relay: Relay, clocks: Clocks) -> None:
    store.edit_many(edits(3))
    relay.deliver(ALL)
    clocks.ms += 10 * KEEP_MS
    clocks.a_minute_passes()
    relay.deliver(ALL)
    assert kept(store) == [1, 2, 3]


def test_what_was_not_sent_stays_however_old(
    store: UserStore, stream: Stream, clocks: Clocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refusing(Stream):
        def append_many(self, bodies):  # type: ignore[no-untyped-def]
            return [RedisRefused("no") if b'"subject":"1"' in body else self.append(body) for body in bodies]

    refusing = Refusing(stream._client, stream.key, stream.where)
    relay = Relay(store, Publisher(refusing, store.source), clock=lambda: clocks.seconds)
    store.edit_many(edits(6))
    with pytest.raises(RedisRefused):
        relay.deliver(ALL)
    acknowledge(stream, 10, "group")
    clocks.ms += 10 * KEEP_MS
    clocks.a_minute_passes()
    stop = threading.Event()
    troubles: list[InfrastructureError] = []

    def trouble(error: InfrastructureError, delay: float) -> None:
        troubles.append(error)
        stop.set()

    relay.run(stop, poll_seconds=0.001, on_trouble=trouble)
    assert kept(store) == list(range(1, 7)), "after a trouble the outbox comes first"
    assert len(troubles) == 1
    plain = Relay(store, Publisher(stream, store.source), clock=lambda: clocks.seconds)
    assert plain.deliver(ALL) == 3
    assert kept(store) == [1, 3, 5]


def test_ids_are_compared_as_numbers(store: UserStore) -> None:
    store.edit_many(edits(5))
    ids = ["9-9", "9-10", "10-0", "100-1", "18446744073709551615-18446744073709551615"]
    store.mark_sent(enumerate(ids, start=1))
    later = store.clock_ms() + 1
    assert store.prune_sent(later, "9-9", 10) == 0
    assert store.prune_sent(later, "9-10", 10) == 1
    assert store.prune_sent(later, "10-0", 10) == 1
    assert store.prune_sent(store.clock_ms(), "18446744073709551615-0", 10) == 0
    assert store.prune_sent(later, "18446744073709551615-0", 10) == 2
    assert kept(store) == [5]
    assert (store.published(), latest_event(store, 2)) == (5, None)


def test_a_batch_is_a_transaction_and_a_delivery_takes_a_few(
    store: UserStore, stream: Stream, relay: Relay, clocks: Clocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruning, "BATCH", 7)
    store.edit_many(edits(100))
    relay.deliver(ALL)
    acknowledge(stream, 100, "group")
    clocks.ms += 2 * KEEP_MS
    clocks.a_minute_passes()
    statements: list[str] = []
    store._database._connection.set_trace_callback(statements.append)
    relay.deliver(ALL)
    assert kept(store) == list(range(71, 101))
    assert statements.count("COMMIT") == 10
    statements.clear()
    relay.deliver(ALL)  # the rest at once: it was not finished
    assert kept(store) == []
    before = len(statements)
    store.edit(nick(1, "a"))
    relay.deliver(ALL)
    assert not [statement for statement in statements[before:] if "ORDER BY place LIMIT" in statement]
    assert store.published() == 101


def test_a_running_relay_prunes_in_between(store: UserStore, stream: Stream, clocks: Clocks) -> None:
    store.edit_many(edits(2500))
    Relay(store, Publisher(stream, store.source)).deliver(ALL)
    acknowledge(stream, 5000, "group")
    clocks.ms += 2 * KEEP_MS
    stop = threading.Event()

    def run() -> None:
        with closing(UserStore(store.path, clock_ms=lambda: clocks.ms)) as own:
            relay = Relay(own, Publisher(stream, own.source))
            relay.run(stop, poll_seconds=60.0, on_trouble=lambda *_: None)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        eventually(lambda: not kept(store))
    finally:
        stop.set()
        thread.join(10)
    assert store.published() == 2500


def test_they_are_kept_for_as_long_as_the_stream_keeps_entries(
    store: UserStore, stream: Stream, clocks: Clocks
) -> None:
    def relay() -> Relay:
        return Relay(store, Publisher(stream, store.source), keep_sent_hours=1.0, history_hours=48.0)

    store.edit_many(edits(4))
    relay().deliver(ALL)
    acknowledge(stream, 4, "group")
    clocks.ms += 48 * HOUR_MS
    relay().deliver(ALL)
    assert len(kept(store)) == 4
    clocks.ms += 1
    relay().deliver(ALL)
    assert kept(store) == []


def test_a_row_from_the_future_keeps_no_other(store: UserStore, stream: Stream, relay: Relay, clocks: Clocks) -> None:
    clocks.ms += 100 * KEEP_MS
    store.edit_many(edits(2))
    relay.deliver(ALL)
    clocks.ms -= 100 * KEEP_MS
    store.edit_many(edits(3, first=2))
    relay.deliver(ALL)
    acknowledge(stream, 5, "group")
    clocks.ms += 2 * KEEP_MS
    clocks.a_minute_passes()
    relay.deliver(ALL)
    assert kept(store) == [1, 2]


def test_groups_are_asked_only_when_there_is_something_old(
    store: UserStore, stream: Stream, relay: Relay, clocks: Clocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Stream] = []
    monkeypatch.setattr(pruning, "floor", lambda stream: asked.append(stream))
    store.edit_many(edits(3))
    relay.deliver(ALL)
    for _ in range(3):
        clocks.a_minute_passes()
        relay.deliver(ALL)
    assert asked == []
    clocks.ms += 2 * KEEP_MS
    for _ in range(5):
        relay.deliver(ALL)
    assert asked == []
    clocks.a_minute_passes()
    for _ in range(5):
        relay.deliver(ALL)
    assert len(asked) == 1, "once a minute"


def test_a_delivery_whose_pruning_fails_has_delivered(
    store: UserStore, stream: Stream, relay: Relay, clocks: Clocks, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    def refusing(stream: Stream) -> None:
        raise RedisRefused("no permission")

    store.edit_many(edits(3))
    relay.deliver(ALL)
    clocks.ms += 2 * KEEP_MS
    clocks.a_minute_passes()
    monkeypatch.setattr(pruning, "floor", refusing)
    store.edit(nick(1, "a"))
    with caplog.at_level(logging.WARNING, "imsync"):
        assert relay.deliver(ALL) == 1
    assert [record.getMessage() for record in caplog.records] == [
        "sent rows of the outbox were not pruned: no permission"
    ]
    assert kept(store) == [1, 2, 3, 4]


def test_what_is_lost_after_pruning_is_sent_again_as_far_as_it_is_kept(
    store: UserStore, stream: Stream, relay: Relay, clocks: Clocks, server: Server
) -> None:
    store.edit_many(edits(10))
    relay.deliver(ALL)
    acknowledge(stream, 6, "group")
    clocks.ms += 2 * KEEP_MS
    clocks.a_minute_passes()
    relay.deliver(ALL)
    assert kept(store) == [7, 8, 9, 10]
    with server.client() as client:
        client.flushall()
    clocks.a_minute_passes()
    assert relay.deliver(ALL) == 4
    assert (store.published(), store.resent(), stream.length()) == (10, 4, 4)
    store.edit(nick(1, "a"))
    assert relay.deliver(ALL) == 1
