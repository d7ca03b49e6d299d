"""Entries are acknowledged while the next ones are decoded: what that may not change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import pytest

from imsync.bus.acknowledgement import Acknowledgement
from imsync.bus.codec import Decoder
from imsync.bus.consumer import Consumer
from imsync.bus.entry import Entry
from imsync.bus.handler import Received
from imsync.bus.outcome import Outcome
from imsync.bus.processor import Processor
from imsync.bus.stream import Stream
from imsync.bus.telemetry import BatchApplied, Telemetry, TelemetryEvent
from imsync.errors import InfrastructureError, RedisUnreachable
from tests.consumers import Noted, Rig, Settling

LOSE = Callable[..., None]


class Lost:
    """An acknowledgement that never came to the server."""

    waits = 0

    def __init__(self, ids: Sequence[str]) -> None:
        self.ids = ids

    def finish(self) -> NoReturn:
        Lost.waits += 1
        raise RedisUnreachable("no answer")

    def drop(self) -> None:
        pass


@pytest.fixture
def lose(monkeypatch: pytest.MonkeyPatch) -> LOSE:
    """Loses the acknowledgements with these numbers, the first of which is 0."""

    def losing(*numbers: int) -> None:
        begin, asked = Stream.begin_acknowledge, iter(range(10**6))

        def maybe(stream: Stream, group: str, ids: Sequence[str], **more: Any) -> Any:
            return Lost(ids) if next(asked) in numbers else begin(stream, group, ids, **more)

        monkeypatch.setattr(Stream, "begin_acknowledge", maybe)

    return losing


def tell_of(monkeypatch: pytest.MonkeyPatch, *calls: tuple[type, str, str]) -> list[str]:
    """What was called, in its order: (class, method, what the story calls it)."""
    story: list[str] = []

    def tell(owner: type, name: str, what: str) -> None:
        method = getattr(owner, name)

        def told(*args: Any) -> Any:
            story.append(what)
            return method(*args)

        monkeypatch.setattr(owner, name, told)

    for call in calls:
        tell(*call)
    return story


def test_the_reply_is_read_after_the_next_batch_is_decoded_and_before_it_is_applied(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    story = tell_of(
        monkeypatch,
        (Decoder, "read_all", "decode"),
        (Settling, "apply", "apply"),
        (Acknowledgement, "finish", "acknowledged"),
    )
    rig.publish(range(1, 31))
    rig.drain(Settling(), batch=10)
    first = ["decode", "apply", "acknowledged"]  # it was not asked for ahead
    assert story == [*first, "decode", "apply", "decode", "acknowledged", "apply", "acknowledged"]


def test_who_listens_is_told_of_a_batch_when_it_is_acknowledged(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    story = tell_of(monkeypatch, (Acknowledgement, "finish", "acknowledged"))

    def listen(event: TelemetryEvent) -> None:
        if isinstance(event, BatchApplied):
            story.append("told")

    rig.publish(range(1, 31))
    rig.drain(Settling(), batch=10, telemetry=Telemetry([listen]))
    assert story == ["acknowledged", "told"] * 3


@pytest.mark.parametrize("numbers", [[0], [1], [0, 1], [1, 2, 3], [3]], ids=str)
@pytest.mark.parametrize("telemetry", [False, True])
def test_what_was_not_acknowledged_comes_again_and_counts_once(
    rig: Rig, lose: LOSE, numbers: list[int], telemetry: bool
) -> None:
    lose(*numbers)
    handler = Settling()
    rig.publish(range(1, 41))
    more = {"telemetry": Telemetry([lambda event: None])} if telemetry else {}
    counts = rig.drain(handler, batch=10, **more)
    assert sorted(handler.numbers) == list(range(1, 41))
    assert (counts.applied, counts.duplicates, counts.events) == (40, 0, 40)
    assert counts.troubles == len(numbers)
    assert rig.pending() == {}


@pytest.mark.parametrize(
    ("trouble", "waits"), [(InfrastructureError("the disk is full"), 1), (RedisUnreachable("it is gone"), 0)], ids=str
)
def test_trouble_beside_a_lost_acknowledgement_leaves_nothing_behind(
    rig: Rig, lose: LOSE, monkeypatch: pytest.MonkeyPatch, trouble: InfrastructureError, waits: int
) -> None:
    """It is found out between two batches, when the one before is not yet known to be acknowledged. Who knows that the
    server is in trouble does not wait for it once more.
    """
    monkeypatch.setattr(Lost, "waits", 0)
    lose(1)
    looks = iter([None, None, trouble])
    look_after = Consumer._look_after

    def ailing(consumer: Consumer[Noted]) -> None:
        if error := next(looks, None):
            raise error
        look_after(consumer)

    monkeypatch.setattr(Consumer, "_look_after", ailing)
    rig.publish(range(1, 41))
    handler = Settling()
    counts = rig.drain(handler, batch=10)
    assert sorted(handler.numbers) == list(range(1, 41))
    assert handler.batches[:3] == [list(range(1, 11)), list(range(11, 21)), []], "they come again before anything else"
    assert (counts.applied, counts.duplicates, counts.troubles, counts.left_pending) == (40, 0, 1, 0)
    assert Lost.waits == waits
    assert rig.pending() == {}


def test_only_what_was_asked_for_ahead_may_be_acknowledged_later(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A retry would otherwise count as applied and as failing, and a limit be reached too soon."""
    later: dict[int, bool] = {}
    process = Processor.process

    def noted(processor: Processor[Noted], entries: Sequence[Entry], *, more: bool = False) -> Any:
        later[len(entries)] = more or later.get(len(entries), False)
        return process(processor, entries, more=more)

    monkeypatch.setattr(Processor, "process", noted)
    failing = iter([True])

    def fail_once(numbers: list[int]) -> None:
        if 95 in numbers and (len(numbers) > 1 or next(failing, False)):
            raise ValueError("not now")

    rig.held_by("ghost", range(1001, 1006))
    rig.publish(range(1, 101))
    counts = rig.drain(Settling(fail_once), batch=10)
    assert (counts.applied, counts.taken_over, counts.failing, counts.events) == (105, 5, 0, 105)
    assert later == {10: True, 1: False, 5: False}, "batches, the retry, what the dead held"
    assert rig.pending() == {}


def test_who_is_told_to_stop_has_acknowledged_what_it_leaves(rig: Rig) -> None:
    rig.publish(range(1, 101))
    consumer: Consumer[Noted]

    class Stopping(Settling):
        def apply(self, batch: Sequence[Received[Noted]]) -> list[Outcome]:
            consumer.stop()
            return super().apply(batch)

    consumer = rig.consumer(Stopping(), batch=10)
    counts = consumer.run()
    assert counts.applied == 20, "the batch at hand, and the one that was asked for"
    assert counts.left_pending == 0
    assert rig.pending() == {}
