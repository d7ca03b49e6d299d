"""Publishing to a stream that fails as it is told: what is sent again, what is given up, and what is said."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import TypeAlias

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imsync.bus.codec import encode
from imsync.bus.event import Event, PositiveInt
from imsync.bus.publisher import Publisher, PublishIncomplete
from imsync.bus.retry import Backoff
from imsync.bus.roundtrip import RoundTrip
from imsync.bus.stream import Stream
from imsync.bus.telemetry import Published, PublishFailed, Telemetry, TelemetryEvent
from imsync.errors import DataError, ImsyncError, RedisRefused, RedisUnreachable

Refusals: TypeAlias = dict[int, ImsyncError]


class Noted(Event, type="noted.v1", destination="notes"):
    number: PositiveInt
    text: str = ""


class FakeStream(Stream):
    """Notes every round trip, and answers with entry ids unless it is told otherwise.

    Args:
        troubles: raised by the next round trips, one each; None for one that works.
        refusals: what single events are answered with, by their place in the order of arrival.
    """

    def __init__(self, troubles: Sequence[BaseException | None] = (), refusals: Refusals | None = None) -> None:
        self.troubles = list(troubles)
        self.refusals = refusals or {}
        self.round_trips: list[list[bytes]] = []
        self.begun: list[FakeRoundTrip] = []
        self.arrived = 0

    def append(self, body: bytes) -> str:
        result = self.append_many([body])[0]
        if isinstance(result, ImsyncError):
            raise result
        return result

    def start_append(self, bodies: Sequence[bytes]) -> RoundTrip:
        return FakeRoundTrip(self, bodies)

    def append_many(self, bodies: Sequence[bytes]) -> list[str | ImsyncError]:
        self.round_trips.append(list(bodies))
        if self.troubles and (trouble := self.troubles.pop(0)):
            raise trouble
        results: list[str | ImsyncError] = []
        for _ in bodies:
            results.append(self.refusals.get(self.arrived, f"{self.arrived}-0"))
            self.arrived += 1
        return results


class FakeRoundTrip(RoundTrip):
    """A round trip of a fake stream."""

    def __init__(self, stream: FakeStream, bodies: Sequence[bytes]) -> None:
        self.stream = stream
        self.bodies = bodies
        self.stream.begun.append(self)
        self.pieces = 0
        self.abandoned = False

    def send_some(self) -> None:
        self.pieces += 1

    def results(self) -> list[str | ImsyncError]:
        return self.stream.append_many(self.bodies)

    def abandon(self) -> None:
        self.abandoned = True


def publisher(stream: Stream, sleeps: list[float] | None = None, attempts: int = 3) -> Publisher:
    waited = [] if sleeps is None else sleeps
    return Publisher(
        stream, "urn:test", attempts=attempts, sleep=waited.append, rng=random.Random(7), backoff=Backoff()
    )


def some(n: int) -> list[Noted]:
    return [Noted(number=number) for number in range(1, n + 1)]


CUT = RedisUnreachable("cut")
OOM = RedisRefused("OOM", "free memory")


def test_it_sends_what_the_codec_writes() -> None:
    stream, event = FakeStream(), Noted(number=1)
    assert publisher(stream).publish(event) == "0-0"
    assert stream.round_trips == [[encode(event, source="urn:test")]]


@pytest.mark.parametrize("broken", [0, 1, 2])
def test_a_broken_round_trip_is_sent_again_with_the_same_bytes(broken: int) -> None:
    sleeps: list[float] = []
    for many in (False, True):
        stream = FakeStream([CUT] * broken)
        sleeps.clear()
        if many:
            assert publisher(stream, sleeps).publish_many(some(3)) == ["0-0", "1-0", "2-0"]
        else:
            assert publisher(stream, sleeps).publish(Noted(number=1)) == "0-0"
        assert len(stream.round_trips) == broken + 1
        assert all(bodies == stream.round_trips[0] for bodies in stream.round_trips)
        backoff, rng = Backoff(), random.Random(7)
        assert sleeps == [backoff.delay(attempt, rng) for attempt in range(1, broken + 1)]


@pytest.mark.parametrize("attempts", [1, 2, 5])
def test_it_gives_up_after_so_many_attempts(attempts: int) -> None:
    sleeps: list[float] = []
    stream = FakeStream([RedisUnreachable(f"cut {n}") for n in range(9)])
    event = Noted(number=1)
    with pytest.raises(RedisUnreachable, match=f"cut {attempts - 1}"):
        publisher(stream, sleeps, attempts).publish(event)
    assert (len(stream.round_trips), len(sleeps)) == (attempts, attempts - 1)
    # trying the same object again later is the same event: its repeat is recognised
    stream.troubles.clear()
    publisher(stream, sleeps, attempts).publish(event)
    assert stream.round_trips[-1] == stream.round_trips[0]


@pytest.mark.parametrize("trouble", [OOM, DataError("invalid", "x"), RuntimeError("a defect"), KeyboardInterrupt()])
def test_only_a_broken_connection_is_tried_again(trouble: BaseException) -> None:
    sleeps: list[float] = []
    for many in (False, True):
        stream = FakeStream([trouble])
        sender = publisher(stream, sleeps)
        with pytest.raises(type(trouble)) as raised:
            sender.publish_many(some(2)) if many else sender.publish(Noted(number=1))
        assert raised.value is trouble
        assert (len(stream.round_trips), sleeps) == (1, [])


def test_each_round_trip_has_attempts_of_its_own() -> None:
    stream = FakeStream([CUT, CUT, None, CUT, CUT, None])
    assert publisher(stream).publish_many(some(4), per_round_trip=2) == ["0-0", "1-0", "2-0", "3-0"]
    first, second = stream.round_trips[0], stream.round_trips[-1]
    assert stream.round_trips == [first] * 3 + [second] * 3


def test_refusals_are_reported_for_each_event_in_order() -> None:
    refusals = {1: OOM, 5: RedisRefused("OOM again")}
    stream = FakeStream(refusals=dict(refusals))
    with pytest.raises(PublishIncomplete) as raised:
        publisher(stream).publish_many(some(7), per_round_trip=3)
    assert list(raised.value.results) == [refusals.get(n, f"{n}-0") for n in range(7)]
    assert raised.value.message == "2 of 7 events were refused, first: OOM"
    assert raised.value.hint == "free memory"
    assert raised.value.exit_code == 4


def test_a_refusal_does_not_raise_where_the_caller_wants_the_results() -> None:
    stream = FakeStream(refusals={0: OOM})
    assert publisher(stream).send([b"a", b"b"]) == [OOM, "1-0"]


@given(st.integers(0, 50), st.integers(1, 60))
def test_events_go_in_order_in_full_round_trips(n: int, per_round_trip: int) -> None:
    stream, events = FakeStream(), some(n)
    assert publisher(stream).publish_many(iter(events), per_round_trip=per_round_trip) == [f"{i}-0" for i in range(n)]
    assert [body for bodies in stream.round_trips for body in bodies] == [
        encode(event, source="urn:test") for event in events
    ]
    sizes = [len(bodies) for bodies in stream.round_trips]
    full, rest = divmod(n, per_round_trip)
    assert sizes == [per_round_trip] * full + [rest] * bool(rest)


def test_nothing_to_send_is_no_round_trip() -> None:
    stream = FakeStream()
    assert publisher(stream).publish_many([]) == []
    assert publisher(stream).send([]) == []
    assert stream.round_trips == []


def test_an_event_that_cannot_be_written_stops_its_round_trip_and_those_after_it() -> None:
    stream = FakeStream()
    events = [*some(3), Noted(number=4, text="x" * 70_000), *some(2)]
    with pytest.raises(DataError) as raised:
        publisher(stream).publish_many(events, per_round_trip=2)
    assert raised.value.reason == "too_large"
    assert [len(bodies) for bodies in stream.round_trips] == [2]


# ── the next is encoded while the last is under way ──────────────────────────────────────────────────


def test_a_round_trip_is_sent_in_pieces_while_the_next_is_encoded() -> None:
    stream = FakeStream()
    publisher(stream).publish_many(some(700), per_round_trip=300)
    assert [trip.pieces for trip in stream.begun] == [1 + 3, 1 + 1, 1]
    assert [len(trip.bodies) for trip in stream.begun] == [300, 300, 100]


def test_never_are_two_round_trips_under_way() -> None:
    """Or a break would leave a later one written and an earlier one not."""

    class Watched(FakeStream):
        def start_append(self, bodies: Sequence[bytes]) -> RoundTrip:
            assert len(self.round_trips) == len(self.begun), "the one before has ended"
            return super().start_append(bodies)

    stream = Watched()
    publisher(stream).publish_many(some(40), per_round_trip=9)
    assert len(stream.begun) == 5


def test_events_that_are_yet_to_come_keep_none_from_the_stream() -> None:
    stream = FakeStream()

    def coming() -> Iterator[Noted]:
        for number, event in enumerate(some(10)):
            assert sum(map(len, stream.round_trips)) == number // 4 * 4
            yield event

    publisher(stream).publish_many(coming(), per_round_trip=4)
    assert [len(bodies) for bodies in stream.round_trips] == [4, 4, 2]


def test_whoever_interrupts_it_does_not_wait_for_the_stream() -> None:
    class Interrupting(Noted, type="interrupting.v1", destination="notes"):
        def event_subject(self) -> str | None:
            raise KeyboardInterrupt

    stream = FakeStream()
    with pytest.raises(KeyboardInterrupt):
        publisher(stream).publish_many([*some(2), Interrupting(number=3)], per_round_trip=2)
    assert [trip.abandoned for trip in stream.begun] == [True]
    assert stream.round_trips == []


def test_a_first_attempt_that_broke_is_made_again_whole() -> None:
    stream = FakeStream([None, CUT])
    assert publisher(stream).publish_many(some(6), per_round_trip=2) == [f"{n}-0" for n in range(6)]
    assert [bodies == stream.round_trips[1] for bodies in stream.round_trips] == [False, True, True, False]


def test_what_is_told_of_round_trips_under_way() -> None:
    told: list[TelemetryEvent] = []
    stream = FakeStream([None, CUT, CUT], refusals={0: OOM})
    stream.key = "notes"
    sender = Publisher(stream, "urn:test", attempts=2, sleep=lambda _: None, telemetry=Telemetry([told.append]))
    with pytest.raises(RedisUnreachable):
        sender.publish_many(some(6), per_round_trip=2)
    first, second = told
    assert isinstance(first, Published)
    assert (first.events, first.refused, len(first.bodies)) == (1, 1, 2)
    assert isinstance(second, PublishFailed)
    assert (second.kind, len(second.bodies)) == ("redis_unreachable", 2)
    assert 0 <= first.seconds < 60
