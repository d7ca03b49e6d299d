"""What consumers, publishers and relays tell, on a real server: the numbers add up, and who listens harms nobody."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

import pytest

from imsync.bus import DeadLetter, Effect, Endpoint, Received, Retry
from imsync.bus import processor as processor_module
from imsync.bus.acknowledgement import Acknowledgement
from imsync.bus.bus import Bus
from imsync.bus.outcome import APPLIED, Ack, Outcome
from imsync.bus.publisher import Publisher
from imsync.bus.retry import Backoff
from imsync.bus.telemetry import (
    BatchApplied,
    BatchFailed,
    BatchStarted,
    ConsumerStarted,
    ConsumerStopped,
    DeadLettered,
    Lost,
    Published,
    PublishFailed,
    Relayed,
    RelayTrouble,
    Resent,
    TakenOver,
    Telemetry,
    TelemetryEvent,
    Trouble,
)
from imsync.errors import InfrastructureError, RedisUnreachable
from imsync.im.events import DESTINATION
from imsync.im.relay import Relay
from imsync.im.user_store import UserStore
from tests.consumers import GROUP, Noted, Other, Recorder, Rig, Settling
from tests.servers import Server
from tests.stores import PEOPLE, nick

T = TypeVar("T", bound=TelemetryEvent)
OUTCOMES = ("applied", "superseded", "duplicates", "ignored", "dead", "lost", "retries")


class Listening(list[TelemetryEvent]):
    """A listener that keeps what it hears."""

    def __call__(self, event: TelemetryEvent) -> None:
        self.append(event)

    def of(self, kind: type[T]) -> list[T]:
        return [event for event in self if isinstance(event, kind)]


@pytest.fixture
def heard() -> Listening:
    return Listening()


class Mixed:
    """Has every opinion, by the number."""

    def __init__(self) -> None:
        self.failures = 0

    def apply(self, batch: Sequence[Received[Noted]]) -> list[Outcome]:
        return [self._outcome(received.event.number) for received in batch]

    def _outcome(self, number: int) -> Outcome:
        if number % 10 == 3:
            return Ack(Effect.SUPERSEDED)
        if number % 10 == 4:
            return DeadLetter("not_mine", "no")
        if number == 5 and self.failures < 2:
            self.failures += 1
            return Retry("not yet")
        return APPLIED


# ── consumers ────────────────────────────────────────────────────────────────────────────────────────────


def test_the_numbers_of_the_batches_are_those_of_the_consumer(rig: Rig, heard: Listening) -> None:
    rig.publish(range(1, 51))
    rig.bus.publish(Other())
    rig.client.xadd(rig.stream.key, {"event": "not JSON"})
    rig.client.xadd(rig.stream.key, {"event": "nor this"})
    counts = rig.drain(Mixed(), batch=7, ignore=["test.other.v1"], telemetry=Telemetry([heard]))
    assert (counts.applied, counts.superseded, counts.dead, counts.ignored, counts.retries) == (40, 5, 7, 1, 2)
    batches = heard.of(BatchApplied)
    assert {name: sum(getattr(each, name) for each in batches) for name in OUTCOMES} == {
        name: getattr(counts, name) for name in OUTCOMES
    }
    assert sum(each.entries for each in batches) == 53 + counts.retries
    assert sum(len(each.deliveries) for each in batches) == sum(len(each.outcomes) for each in batches) == 50 + 2
    for each in batches:
        steps = (each.decode_seconds, each.apply_seconds, each.acknowledge_seconds)
        assert 0 < sum(steps) <= each.seconds
        assert (each.group, each.stream) == (GROUP, rig.stream.key)
    dead = heard.of(DeadLettered)
    assert sorted((each.reason, each.entries) for each in dead if each.reason == "bad_json") == [("bad_json", 2)]
    assert sum(each.entries for each in dead if each.reason == "not_mine") == 5
    (started,), (stopped,) = heard.of(ConsumerStarted), heard.of(ConsumerStopped)
    assert (heard[0], heard[-1]) == (started, stopped)
    assert (stopped.events, stopped.troubles, stopped.left_pending) == (counts.events, 0, 0)


def test_every_batch_that_begins_has_one_end(rig: Rig, heard: Listening) -> None:
    rig.publish(range(1, 31))
    troubles = iter([InfrastructureError("ill"), InfrastructureError("still ill")])

    def ail(numbers: list[int]) -> None:
        if 10 in numbers and (error := next(troubles, None)):
            raise error

    rig.drain(Settling(ail), batch=5, telemetry=Telemetry([heard]))
    open_batch = None
    for event in heard:
        match event:
            case BatchStarted():
                assert open_batch is None
                open_batch = event
            case BatchApplied() | BatchFailed():
                assert open_batch is not None
                assert (event.deliveries, event.entries) == (open_batch.deliveries, open_batch.entries)
                open_batch = None
    assert open_batch is None
    assert [(each.kind, each.entries) for each in heard.of(BatchFailed)] == [("infrastructure", 5)] * 2
    troubled = heard.of(Trouble)
    assert [(each.kind, each.message, each.attempt) for each in troubled] == [
        ("infrastructure", "ill", 1), ("infrastructure", "still ill", 2),
    ]  # fmt: skip
    assert all(each.delay_seconds > 0 for each in troubled)


def test_what_could_not_be_acknowledged_is_told_once(
    rig: Rig, heard: Listening, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusals = iter(range(3))
    rig.publish(range(1, 101))
    consumer = rig.consumer(Settling(), batch=25, until_empty=True, telemetry=Telemetry([heard]))
    acknowledge = consumer._stream.begin_acknowledge

    def refuse(*args: Any, **options: Any) -> Acknowledgement:
        if next(refusals, None) is not None:
            raise RedisUnreachable("no answer")
        return acknowledge(*args, **options)

    monkeypatch.setattr(consumer._stream, "begin_acknowledge", refuse)
    counts = consumer.run()
    assert counts.applied == sum(each.applied for each in heard.of(BatchApplied)) == 100
    assert sum(each.duplicates for each in heard.of(BatchApplied)) == counts.duplicates
    assert [each.kind for each in heard.of(BatchFailed)] == ["redis_unreachable"] * 3
    assert [each.kind for each in heard.of(Trouble)] == ["redis_unreachable"] * 3


def test_what_is_taken_over_and_what_is_lost(rig: Rig, heard: Listening) -> None:
    ids = rig.held_by("ghost", range(1, 6))
    rig.client.xdel(rig.stream.key, ids[0], ids[1])
    counts = rig.drain(Settling(), telemetry=Telemetry([heard]))
    assert (counts.taken_over, counts.lost, counts.applied) == (3, 2, 3)
    assert [each.entries for each in heard.of(TakenOver)] == [3]
    assert [(each.entries, each.first_id) for each in heard.of(Lost)] == [(2, ids[0])]


def test_a_listener_that_raises_harms_nobody(rig: Rig, heard: Listening) -> None:
    def broken(event: TelemetryEvent) -> None:
        raise RuntimeError("broken")

    rig.publish(range(1, 51))
    handler = Recorder()
    counts = rig.drain(handler, batch=5, telemetry=Telemetry([broken, heard]))
    assert (counts.applied, counts.troubles) == (50, 0)
    assert handler.numbers == list(range(1, 51))
    assert len(heard.of(BatchApplied)) == 10
    assert rig.pending() == {}


def test_without_listeners_no_event_is_made(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def made(*args: object) -> None:
        raise AssertionError("a stopwatch, and nobody looks at it")

    monkeypatch.setattr(processor_module, "Stopwatch", made)
    rig.publish(range(1, 11))
    assert rig.drain(Recorder()).applied == 10
    rig.publish([11])
    with pytest.raises(AssertionError, match="nobody looks"):
        rig.drain(Recorder(), telemetry=Telemetry([print]))


# ── publishers ───────────────────────────────────────────────────────────────────────────────────────────


def test_round_trips_are_told(server: Server, heard: Listening) -> None:
    with Bus(Endpoint(server.url), listeners=[heard]) as bus:
        bus.publish(Noted(number=1))
        bus.publish_many(Noted(number=n) for n in range(1, 1501))
        bus.publisher("notes").send([])
        key = bus.stream("notes").key
        bodies = [entry.body for entry in bus.stream("notes").range()]
    trips = heard.of(Published)
    assert [(each.stream, each.events, each.refused) for each in trips] == [(key, 1, 0), (key, 1000, 0), (key, 500, 0)]
    assert [body for each in trips for body in each.bodies] == bodies
    assert all(each.seconds > 0 for each in trips)


def test_a_round_trip_that_is_given_up_is_told(heard: Listening) -> None:
    nowhere = Bus(Endpoint("redis://127.0.0.1:1"), attempts=1, listeners=[heard])
    with nowhere as bus, pytest.raises(RedisUnreachable):
        bus.publish_many([Noted(number=1), Noted(number=2)])
    (failed,) = heard
    assert isinstance(failed, PublishFailed)
    assert (failed.kind, len(failed.bodies)) == ("redis_unreachable", 2)


# ── relays ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def store(tmp_path: Path) -> Iterator[UserStore]:
    with closing(UserStore(tmp_path / "user.db", create=True)) as made:
        made.bootstrap(PEOPLE, origin="test")
        yield made


def relay_of(store: UserStore, bus: Bus) -> Relay:
    publisher = Publisher(bus.stream(DESTINATION), store.source, attempts=1, telemetry=bus.telemetry)
    return Relay(store, publisher, batch=3)


def test_a_relay_tells_what_it_sends_and_what_it_sends_again(
    store: UserStore, server: Server, heard: Listening
) -> None:
    store.edit_many([nick(1, f"Mia {n}") for n in range(5)])
    with Bus(Endpoint(server.url), listeners=[heard]) as bus:
        relay = relay_of(store, bus)
        relay.drain()
        assert [each.rows for each in heard.of(Relayed)] == [3, 2]
        assert [each.events for each in heard.of(Published)] == [3, 2]
        bus.client.delete(bus.stream(DESTINATION).key)
        relay._next_look = 0.0
        relay.drain()
    assert [each.rows for each in heard.of(Resent)] == [relay.resent] == [5]
    assert sum(each.rows for each in heard.of(Relayed)) == relay.published == 10
    assert {each.stream for each in heard.of(Relayed)} == {bus.stream(DESTINATION).key}


def test_a_relay_tells_its_troubles(store: UserStore, heard: Listening) -> None:
    store.edit_many([nick(1, "Mia 2")])
    stop = threading.Event()
    told: list[InfrastructureError] = []

    def trouble(error: InfrastructureError, delay: float) -> None:
        told.append(error)
        if len(told) == 2:
            stop.set()

    with Bus(Endpoint("redis://127.0.0.1:1"), listeners=[heard]) as bus:
        relay_of(store, bus).run(
            stop, poll_seconds=0.001, on_trouble=trouble, backoff=Backoff(first_seconds=0.001, longest_seconds=0.002)
        )
    troubles = heard.of(RelayTrouble)
    assert [(each.kind, each.attempt) for each in troubles] == [("redis_unreachable", 1), ("redis_unreachable", 2)]
    assert [each.message for each in troubles] == [error.message for error in told]
