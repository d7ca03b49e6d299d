"""No source of entries starves another, and a handler's or a caller's mistake strands nothing."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import pytest

from imsync.bus import Ack, Backoff, ConsumerOptions, Effect, Endpoint, Received, RetryPolicy
from imsync.bus.consumer import FAILING_LIMIT
from imsync.bus.liveness import Heartbeat
from tests.consumers import Noted, Recorder, Rig, Settling
from tests.servers import eventually


def test_events_that_keep_failing_do_not_starve_the_others(rig: Rig) -> None:
    """So many fail, for so long, that some retry is always due."""
    slow = threading.Event()

    def fail(numbers: list[int]) -> None:
        if min(numbers) <= 40:
            slow.wait(0.02)
            raise RuntimeError("no")

    handler = Settling(fail)
    patient = RetryPolicy(10_000, Backoff(first_seconds=0.001, longest_seconds=0.002))
    running = rig.start(handler, retry=patient)
    rig.publish(range(1, 41))
    eventually(lambda: running.consumer.counts.retries > 100)
    rig.publish(range(41, 61))
    eventually(lambda: handler.numbers == list(range(41, 61)))
    running.stop()
    assert rig.pending() == {running.consumer.name: 40}


def test_no_more_is_taken_on_than_can_be_kept_at_hand(rig: Rig) -> None:
    """A handler that fails on everything: what it failed on is kept in memory until its next attempt."""

    def fail(numbers: list[int]) -> None:
        raise RuntimeError("no")

    rig.publish(range(1, 2001))
    patient = RetryPolicy(10, Backoff(first_seconds=3600, longest_seconds=3600))
    running = rig.start(Settling(fail), retry=patient, batch=250)
    eventually(lambda: running.consumer.counts.failing >= FAILING_LIMIT)
    rig.publish([2001])  # would be read at once
    running.stop()
    assert rig.pending() == {running.consumer.name: FAILING_LIMIT}


def test_retries_that_are_due_are_not_waited_for(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each event alone, hundreds of them, and nothing new meanwhile."""

    def fail(numbers: list[int]) -> None:
        raise RuntimeError("no")

    rig.publish(range(1, 301))
    retry = RetryPolicy(3, Backoff(first_seconds=0.001, longest_seconds=0.002))
    running = rig.consumer(Settling(fail), retry=retry, until_empty=True, batch=300)
    waited: list[float] = []
    monkeypatch.setattr(running._stop, "wait", lambda seconds: waited.append(seconds))
    assert running.run().dead == 300
    assert sum(waited) < 1.0, f"{sum(waited):.1f} s for 600 retries"
    assert max(waited, default=0.0) <= 0.05


def test_taking_over_does_not_wait_for_new_entries(rig: Rig) -> None:
    """Batch after batch, with a BLOCK that is longer than this test may take."""
    rig.held_by("dead", range(1, 201))
    handler = Settling()
    running = rig.start(handler, batch=20, block_ms=10_000)
    eventually(lambda: len(handler.numbers) == 200, within=5.0)
    running.consumer.stop()
    rig.publish([201])  # wakes it up
    assert running.result().taken_over == 200


@pytest.mark.parametrize(
    "wrong",
    [
        lambda batch: [Effect.APPLIED for _ in batch],
        lambda batch: [Ack for _ in batch],
        lambda batch: [None for _ in batch],
        lambda batch: [Ack() for _ in batch][1:],
        lambda batch: [Ack() for _ in [*batch, 1]],
        lambda batch: None,
    ],
    ids=["effects", "classes", "nones", "too few", "too many", "nothing"],
)
def test_a_handler_that_answers_wrongly_has_failed(rig: Rig, wrong: Any) -> None:
    class Wrong(Recorder):
        def apply(self, batch: Sequence[Received[Noted]]) -> Any:
            return wrong(batch)

    rig.stream.create_group("readers")
    rig.publish([1, 2])
    counts = rig.drain(Wrong())
    assert (counts.dead, counts.applied) == (2, 0)
    assert [letter.reason for letter in rig.dead_letters()] == ["max_attempts"] * 2
    assert rig.pending() == {}


@pytest.mark.parametrize("name", ["batch", "block_ms", "heartbeat_ms", "max_events"])
def test_options_out_of_bounds_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 1"):
        ConsumerOptions(**{name: 0})


def test_a_beat_does_not_hang_for_longer_than_the_key_lives() -> None:
    heartbeat = Heartbeat(Endpoint("redis://127.0.0.1:1/0"), "key", 2000)
    options = heartbeat._client.connection_pool.connection_kwargs
    assert options["socket_timeout"] == options["socket_connect_timeout"] == 2.0
