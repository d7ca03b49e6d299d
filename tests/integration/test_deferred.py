"""What a handler puts off, on real servers: it is done between the batches, and its end is waited for where it must."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import pytest

from imsync.bus import Deferring, Outcome
from imsync.bus.deferred import LONGEST_PAUSE_SECONDS, Deferred, finish
from imsync.bus.handler import Received
from imsync.errors import StoreMismatch, StoreUnusable
from tests.consumers import Noted, Recorder, Rig
from tests.servers import eventually


class Late(Recorder):
    """Puts off a number of pieces with every batch.

    Args:
        pieces: how many, and how many somebody has left behind.
        before: called before each piece with the number of those that are left.
    """

    def __init__(self, pieces: int = 0, left: int = 0, before: Callable[[int], object] = lambda left: None) -> None:
        super().__init__()
        self.pieces = pieces
        self.left = left
        self.done = 0
        self._before_piece = before
        self.story: list[str] = []

    def apply(self, batch: Sequence[Received[Noted]]) -> list[Outcome]:
        self.story.append("batch")
        self.left += self.pieces
        return super().apply(batch)

    def go_on(self) -> bool:
        if self.left:
            self._before_piece(self.left)
            self.story.append("piece")
            self.done += 1
            self.left -= 1
        return self.left > 0


def test_the_protocol() -> None:
    assert isinstance(Late(), Deferring)
    assert not isinstance(Recorder(), Deferring)
    assert not Deferred(Recorder())


def test_until_empty_ends_when_nothing_is_left(rig: Rig) -> None:
    rig.publish(range(1, 7))
    handler = Late(pieces=5)
    counts = rig.drain(handler, batch=2)
    assert (counts.applied, handler.done, handler.left) == (6, 15, 0)


def test_batches_and_pieces_take_turns(rig: Rig) -> None:
    rig.publish(range(1, 7))
    handler = Late(pieces=5)
    rig.drain(handler, batch=2)
    assert handler.story[:6] == ["batch", "piece"] * 3, "neither waits for all of the other"


def test_what_is_put_off_is_acknowledged_first(rig: Rig) -> None:
    rig.publish([1])
    pending: list[object] = []
    rig.drain(Late(pieces=1, before=lambda left: pending.append(rig.pending())))
    assert pending == [{}]


def test_a_consumer_goes_on_with_what_another_one_left(rig: Rig) -> None:
    handler = Late(left=20)
    assert rig.drain(handler).events == 0
    assert handler.left == 0


def test_an_idle_consumer_finds_what_another_one_left(rig: Rig) -> None:
    handler = Late()
    running = rig.start(handler)
    rig.publish([1])
    eventually(lambda: handler.numbers == [1])
    handler.left = 20  # by somebody who was killed behind the commit: no entry tells of it
    eventually(lambda: handler.left == 0)
    running.stop()


def test_stop_leaves_the_rest_to_the_next_one(rig: Rig) -> None:
    reached, go_on = threading.Event(), threading.Event()

    def wait(left: int) -> None:
        reached.set()
        go_on.wait(10)

    handler = Late(left=1000, before=wait)
    running = rig.start(handler, until_empty=True)
    assert reached.wait(10)
    running.consumer.stop()
    go_on.set()
    running.stop()
    assert handler.done == 1


def test_the_last_delivery_of_a_limited_run_is_not_left_half_done(rig: Rig) -> None:
    rig.publish(range(1, 5))
    handler = Late(pieces=10)
    counts = rig.consumer(handler, max_events=2, batch=2).run()
    assert (counts.events, handler.done, handler.left) == (2, 10, 0)


def test_new_events_do_not_wait_for_what_is_put_off(rig: Rig) -> None:
    handler = Late(left=10**9)
    running = rig.start(handler)
    for number in range(1, 4):
        rig.publish([number])
        eventually(lambda number=number: number in handler.numbers)  # type: ignore[misc]
    before = handler.done
    eventually(lambda: handler.done > before)
    running.stop()


def test_who_has_something_to_do_does_not_wait_for_entries(rig: Rig) -> None:
    handler = Late(left=1000)
    running = rig.start(handler, block_ms=30_000)
    eventually(lambda: handler.left == 0)  # at a block of the server for each it would take minutes
    running.stop()


def test_trouble_with_the_store_is_waited_out(rig: Rig) -> None:
    troubles = [StoreUnusable("the disk is full"), StoreUnusable("the disk is full")]

    def fail(left: int) -> None:
        if troubles:
            raise troubles.pop()

    handler = Late(left=5, before=fail)
    counts = rig.drain(handler)
    assert (counts.troubles, handler.left) == (2, 0)


def test_a_store_that_is_another_one_ends_the_consumer(rig: Rig) -> None:
    def fail(left: int) -> None:
        raise StoreMismatch("it was replaced")

    with pytest.raises(StoreMismatch):
        rig.drain(Late(left=5, before=fail))


def test_a_piece_that_fails_for_good_is_told_and_holds_up_nothing(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    def fail(left: int) -> None:
        raise ValueError("no such column")

    handler = Late(left=5, before=fail)
    rig.publish([1])
    assert rig.drain(handler).applied == 1
    assert "what was put off failed, and will be tried again: ValueError" in caplog.text
    running = rig.start(handler)
    rig.publish([2])
    eventually(lambda: 2 in handler.numbers)
    caplog.clear()
    eventually(lambda: "what was put off failed" in caplog.text)  # it is tried again now and then
    running.stop()


def test_between_two_pieces_the_store_is_left_to_others() -> None:
    now, waits = [0.0], []

    class Flag(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout)
            return False

    def work(left: int) -> None:
        now[0] += 0.002 if left > 1 else 9.0

    deferred = Deferred(Late(left=3, before=work), Flag(), clock=lambda: now[0])
    while deferred:
        deferred.go_on()
        deferred.pause()
    assert waits == pytest.approx([0.002, 0.002]), "for as long as the piece took, and not behind the last"
    deferred = Deferred(Late(left=2, before=lambda left: work(1)), Flag(), clock=lambda: now[0])
    deferred.go_on()
    deferred.pause()
    assert waits[-1] == LONGEST_PAUSE_SECONDS


def test_finish_can_be_told_to_stop() -> None:
    stop = threading.Event()
    handler = Late(left=10, before=lambda left: stop.set() if left == 7 else None)
    finish(handler, stop)
    assert handler.left == 6
    finish(handler)
    assert handler.left == 0
    finish(Recorder())
