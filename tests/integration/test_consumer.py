"""The consumer on real servers: what is applied, in which order, what becomes a dead letter, and when it ends."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence

import pytest

from imsync.bus import Ack, DeadLetter, Effect, Outcome, Retry
from imsync.bus.codec import encode
from imsync.bus.handler import Received
from imsync.errors import InfrastructureError, RedisUnreachable, StoreUnusable
from tests.consumers import GROUP, Noted, Other, Recorder, Rig, Settling, settled
from tests.servers import eventually

# --- applying


def test_every_event_is_applied_once_and_in_order(any_rig: Rig) -> None:
    any_rig.publish(range(1, 51))
    handler = Recorder()
    counts = any_rig.drain(handler, batch=20)
    assert [len(batch) for batch in handler.batches] == [20, 20, 10]
    assert handler.numbers == list(range(1, 51))
    assert (counts.events, counts.applied, settled(counts), counts.left_pending) == (50, 50, 50, 0)
    assert any_rig.pending() == {}
    assert any_rig.stream.consumers(GROUP) == [], "a name that nobody chose is taken away"
    assert any_rig.client.keys("*alive*") == []
    assert any_rig.stream.length() == 50
    assert any_rig.drain(Recorder()).events == 0


def test_nothing_is_acknowledged_before_it_is_applied(rig: Rig) -> None:
    ids = rig.publish(range(1, 8))
    held: list[list[str]] = []
    handler = Recorder(lambda numbers: held.append([e.id for e in rig.stream.pending(GROUP, count=99)]))
    rig.drain(handler, batch=3)
    assert [pending[0] for pending in held] == ids[::3], "the batch before is acknowledged"
    for at_hand, pending in enumerate(held):
        assert set(pending) >= set(ids[3 * at_hand : 3 * at_hand + 3]), "the batch at hand is pending"


def test_a_running_consumer_takes_what_comes(rig: Rig) -> None:
    handler = Recorder()
    running = rig.start(handler)
    for number in range(1, 4):
        rig.publish([number])
        eventually(lambda number=number: handler.numbers == list(range(1, number + 1)))  # type: ignore[misc]
    assert running.running
    assert running.stop().applied == 3
    assert running.consumer.counts.troubles == 0


def test_outcomes_are_counted_apart(rig: Rig) -> None:
    class Mixed(Recorder):
        def apply(self, batch: Sequence[Received[Noted]]) -> list[Outcome]:
            super().apply(batch)
            return [*(Ack(effect) for effect in Effect), DeadLetter("too_old", "from another age")]

    rig.publish(range(1, 5))
    counts = rig.drain(Mixed())
    assert (counts.applied, counts.superseded, counts.duplicates, counts.dead) == (1, 1, 1, 1)
    assert [letter.reason for letter in rig.dead_letters()] == ["too_old"]
    assert counts.events == settled(counts) == 4


def test_two_consumers_split_the_work(rig: Rig) -> None:
    rig.publish(range(1, 41))
    both_hold_a_batch = threading.Barrier(2)

    class Waiting(Recorder):
        def apply(self, batch: Sequence[Received[Noted]]) -> list[Outcome]:
            if not self.batches:
                both_hold_a_batch.wait(10)
            return super().apply(batch)

    handlers = [Waiting(), Waiting()]
    runs = [rig.start(handler, batch=4, until_empty=True) for handler in handlers]
    counts = [running.result() for running in runs]
    first, second = (handler.numbers for handler in handlers)
    assert sorted(first + second) == list(range(1, 41))
    assert [first, second] == [sorted(first), sorted(second)]
    assert min(len(first), len(second)) >= 4
    assert sum(count.applied for count in counts) == 40
    assert sum(count.taken_over for count in counts) == 0


# --- dead letters


def test_undecodable_entries_become_dead_letters_and_their_neighbours_are_applied(any_rig: Rig) -> None:
    good = [encode(Noted(number=number), source="test") for number in (1, 2, 3)]
    unknown = encode(Other(), source="test")
    bad = {
        b"\xff{\x1b[31m": "bad_json",
        b"x" * 70_000: "too_large",
        good[0].replace(b'"number":1', b'"number":"1"'): "invalid",
        unknown: "unknown_type",
    }
    ids = any_rig.stream.append_many([good[0], *bad, good[1], good[2]])
    stray = any_rig.client.xadd(any_rig.keys.stream, {b"other": b"field", b"event.": b"\x00"}).decode()
    handler = Settling()
    counts = any_rig.drain(handler, name="reader")
    assert handler.batches == [[1, 2, 3]]
    assert (counts.events, counts.applied, counts.dead, settled(counts)) == (8, 3, 5, 8)
    letters = any_rig.dead_letters()
    assert [letter.reason for letter in letters] == [*bad.values(), "no_event_field"]
    assert [letter.source_id for letter in letters] == handler.dead == [*ids[1:5], stray]
    assert [letter.raw for letter in letters[:4]] == [{b"event": body} for body in bad]
    assert letters[4].raw == {b"other": b"field", b"event.": b"\x00"}
    assert {(letter.group, letter.consumer, letter.deliveries) for letter in letters} == {(GROUP, "reader", 1)}
    assert all(letter.message and letter.dead_at for letter in letters)
    assert any_rig.pending() == {}


def test_an_ignored_type_is_acknowledged_in_silence(rig: Rig) -> None:
    rig.bus.publish_many([Other(), Noted(number=1), Other()])
    handler = Recorder()
    counts = rig.drain(handler, ignore=[Other.event_type])
    assert handler.batches == [[1]]
    assert (counts.events, counts.ignored, counts.applied, counts.dead) == (3, 2, 1, 0)
    assert (rig.pending(), rig.dead_letters()) == ({}, [])


def test_events_that_fail_are_tried_alone_and_then_given_up(rig: Rig) -> None:
    def stumble(numbers: list[int]) -> None:
        tried.append(numbers)
        if 3 in numbers or 5 in numbers:
            raise ZeroDivisionError("over three or five")

    tried: list[list[int]] = []
    ids = rig.publish(range(1, 6))
    handler = Settling(stumble)
    counts = rig.drain(handler)
    assert tried[:6] == [[1, 2, 3, 4, 5], [1], [2], [3], [4], [5]]
    assert sorted(tried[6:]) == [[3], [3], [5], [5]]
    assert handler.numbers == [1, 2, 4]
    assert (counts.applied, counts.dead, counts.retries, counts.troubles) == (3, 2, 4, 0)
    assert counts.events == settled(counts) == 5
    letters = rig.dead_letters()
    assert {letter.source_id for letter in letters} == set(handler.dead) == {ids[2], ids[4]}
    for letter in letters:
        assert (letter.reason, letter.deliveries) == ("max_attempts", 1)
        assert "ZeroDivisionError: over three or five" in letter.message
        assert letter.event_id
    assert rig.pending() == {}


def test_an_event_that_fails_for_a_while_is_applied_after_all(rig: Rig) -> None:
    class Recovering(Recorder):
        def apply(self, batch: Sequence[Received[Noted]]) -> list[Outcome]:
            outcomes = super().apply(batch)
            again = self.numbers.count(2) < 3
            return [
                Retry("later") if again and r.event.number == 2 else o for r, o in zip(batch, outcomes, strict=True)
            ]

    rig.publish([1, 2])
    running = rig.start(handler := Recovering(), until_empty=True, batch=10)
    assert running.result().applied == 2
    assert handler.batches == [[1, 2], [2], [2]]
    assert (running.consumer.counts.retries, rig.dead_letters(), rig.pending()) == (2, [], {})


def test_trouble_of_the_store_is_waited_out(any_rig: Rig) -> None:
    def locked(numbers: list[int]) -> None:
        tried.append(numbers)
        if len(tried) <= 4:
            raise StoreUnusable("database is locked")

    tried: list[list[int]] = []
    seen: list[tuple[InfrastructureError, float, int]] = []
    any_rig.publish([1, 2])
    handler = Recorder(locked)
    began = time.monotonic()
    counts = any_rig.drain(
        handler,
        on_trouble=lambda error, seconds: seen.append((error, seconds, sum(any_rig.pending().values()))),
    )
    assert tried == [[1, 2]] * 5, "whole each time: no event is to blame"
    assert handler.batches == [[1, 2]]
    assert [type(error) for error, _, _ in seen] == [StoreUnusable] * 4
    assert 0 < sum(seconds for _, seconds, _ in seen) <= time.monotonic() - began
    assert [pending for *_, pending in seen] == [2] * 4
    assert (counts.troubles, counts.applied, counts.dead, counts.retries) == (4, 2, 0, 0)
    assert counts.events == settled(counts) == 2
    assert (any_rig.pending(), any_rig.dead_letters()) == ({}, [])


# --- when it ends


def test_max_events_is_exact(rig: Rig) -> None:
    rig.publish(range(1, 11))
    handler = Recorder()
    counts = rig.start(handler, max_events=4, batch=3).result()
    assert handler.batches == [[1, 2, 3], [4]]
    assert (counts.events, counts.left_pending) == (4, 0)
    assert rig.stream.groups()[0].lag == 6


def test_max_events_is_exact_for_entries_that_the_name_held_before(rig: Rig) -> None:
    rig.held_by("reader", range(1, 11))
    handler = Recorder()
    assert rig.start(handler, name="reader", max_events=4).result().events == 4
    assert handler.numbers == [1, 2, 3, 4]
    assert rig.pending() == {"reader": 6}


def test_max_events_counts_what_was_settled_not_what_was_tried(rig: Rig) -> None:
    def locked(numbers: list[int]) -> None:
        trouble = troubles.pop() if troubles else None
        if trouble:
            raise trouble

    troubles = [StoreUnusable("database is locked")] * 2
    rig.publish(range(1, 11))
    handler = Recorder(locked)
    assert rig.start(handler, max_events=4).result().applied == 4
    assert handler.numbers == [1, 2, 3, 4]


def test_stop_ends_it_after_what_it_was_given(rig: Rig) -> None:
    """The batch at hand, and the one that it had asked for already: neither is left pending."""
    holding, released = threading.Event(), threading.Event()

    def hold(numbers: list[int]) -> None:
        holding.set()
        assert released.wait(10)

    rig.publish(range(1, 11))
    handler = Recorder(hold)
    running = rig.start(handler, batch=4, block_ms=20_000)
    assert holding.wait(10)
    eventually(lambda: rig.pending() == {running.consumer.name: 8})
    running.consumer.stop()
    released.set()
    assert running.result(within=2).events == 8
    assert handler.numbers == [1, 2, 3, 4, 5, 6, 7, 8]
    assert rig.pending() == {}
    assert rig.stream.consumers(GROUP) == []


@pytest.mark.parametrize("fate", ["taken over", "dropped"])
def test_what_was_asked_for_long_ago_may_be_somebody_elses(rig: Rig, fate: str) -> None:
    """The batch before took longer than a heartbeat: nobody told the server that the next one is being worked on."""
    holding, released = threading.Event(), threading.Event()

    def hold(numbers: list[int]) -> None:
        holding.set()
        assert released.wait(10)

    ids = rig.publish(range(1, 7))
    handler = Recorder(hold)
    running = rig.start(handler, batch=3, heartbeat_ms=100, until_empty=True, retention=None)
    assert holding.wait(10)
    eventually(lambda: rig.pending() == {running.consumer.name: 6})
    if fate == "taken over":
        rig.client.set(rig.keys.alive(GROUP, "other"), json.dumps({"token": "its own"}), px=60_000)
        assert len(rig.stream.claim(GROUP, "other", ids[3:5], 0)) == 2
    else:  # by XGROUP DELCONSUMER: these would be skipped
        assert rig.stream.delete_consumer(GROUP, running.consumer.name) == 6
    since = running.consumer._ahead.since
    assert since is not None
    eventually(lambda: time.monotonic() - since > 0.1)
    released.set()
    eventually(lambda: len(handler.numbers) == (4 if fate == "taken over" else 6))
    if fate == "taken over":
        assert handler.numbers == [1, 2, 3, 6]
        assert rig.stream.acknowledge(GROUP, ids[3:5]) == 2
    running.result()


def test_a_waiting_consumer_stops_within_its_block(rig: Rig) -> None:
    running = rig.start(Recorder(), block_ms=100)
    eventually(lambda: rig.client.info("clients")["blocked_clients"] == 1)
    running.consumer.stop()
    running.result(within=2)


def test_a_name_that_somebody_chose_goes_too(rig: Rig) -> None:
    rig.publish([1])
    rig.drain(Recorder(), name="reader")
    assert rig.stream.consumers(GROUP) == []


def test_a_name_that_still_holds_something_stays(rig: Rig) -> None:
    class Refusing(Recorder):
        def apply(self, batch: Sequence[Received[Noted]]) -> list[Outcome]:
            return [Retry("never") for _ in batch]

    rig.publish([1])
    counts = rig.start(Refusing(), max_events=1).result()
    assert (counts.left_pending, counts.dead) == (1, 0)
    assert [consumer.pending for consumer in rig.stream.consumers(GROUP)] == [1]
    assert rig.drain(Recorder()).taken_over == 1, "it left, so what it holds is free at once"


def test_without_a_server_it_does_not_start(rig: Rig, tmp_path: object) -> None:
    with pytest.raises(RedisUnreachable):
        rig.start(Recorder(), url=f"unix://{tmp_path}/nothing").result()


# --- what was there before


def test_a_name_drains_what_it_held_before_anything_else(rig: Rig) -> None:
    rig.held_by("reader", range(1, 8))
    rig.publish([8, 9])
    handler = Recorder()
    counts = rig.drain(handler, name="reader", batch=3)
    assert handler.batches == [[1, 2, 3], [4, 5, 6], [7], [8, 9]]
    assert (counts.taken_over, counts.events) == (0, 9)


def test_what_the_dead_hold_and_what_is_new_take_turns(rig: Rig) -> None:
    ids = rig.held_by("dead", range(1, 9))
    rig.client.xclaim(rig.keys.stream, GROUP, "dead", 0, ids, idle=60_000, justid=True)
    rig.publish(range(101, 109))
    handler = Recorder()
    counts = rig.drain(handler, batch=4)
    assert handler.batches == [[1, 2, 3, 4], [101, 102, 103, 104], [5, 6, 7, 8], [105, 106, 107, 108]]
    assert (counts.events, counts.taken_over) == (16, 8)


@pytest.mark.parametrize("holder", ["reader", "dead"])
def test_entries_trimmed_while_they_were_pending_are_lost_and_said_so(
    any_rig: Rig, holder: str, caplog: pytest.LogCaptureFixture
) -> None:
    ids = any_rig.held_by(holder, range(1, 6))
    any_rig.stream.delete([ids[0], ids[3]])
    handler = Settling()
    counts = any_rig.drain(handler, name="reader")
    assert handler.numbers == [2, 3, 5]
    assert sorted(handler.lost) == [ids[0], ids[3]]
    assert (counts.lost, counts.applied, counts.dead) == (2, 3, 0)
    assert counts.events == settled(counts) == 5
    assert any_rig.pending() == {}
    assert "2 entries" in caplog.text
    assert "lost to group" in caplog.text
