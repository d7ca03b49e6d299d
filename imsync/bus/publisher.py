"""Publishing: stable event ids, few round trips, and retries that cannot lose or invent an event."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import TypeVar, cast

from imsync.bus.codec import encode
from imsync.bus.event import Event
from imsync.bus.retry import Backoff
from imsync.bus.roundtrip import RoundTrip
from imsync.bus.stream import Stream
from imsync.bus.telemetry import Published, PublishFailed, Telemetry
from imsync.errors import ImsyncError, RedisUnreachable

T = TypeVar("T")
R = TypeVar("R")

_EVENTS_PER_PIECE = 100
"""While so many events are encoded, the server takes about as many."""


class PublishIncomplete(ImsyncError):
    """Redis refused some of the events.

    Args:
        results: for each event, in the order given: its entry id, or the error that refused it.
    """

    kind = "publish_incomplete"
    exit_code = 4

    def __init__(self, results: Sequence[str | ImsyncError]) -> None:
        errors = [result for result in results if isinstance(result, ImsyncError)]
        super().__init__(
            f"{len(errors)} of {len(results)} events were refused, first: {errors[0].message}", errors[0].hint
        )
        self.results = results


class Publisher:
    """Sends events to one stream.

    When a connection breaks, nobody knows which events were written, so the whole round trip is sent again: an
    event may then stand in the stream twice, under one event id, and readers recognise the repeat.

    Args:
        stream: where to.
        source: the CloudEvents source of events that name none.
        attempts: how often a broken round trip is tried in all.
        backoff: the wait in between.
        sleep: waits for so many seconds.
        telemetry: who is told of every round trip, and who may give events a place in a trace.
    """

    def __init__(
        self,
        stream: Stream,
        source: str,
        *,
        attempts: int = 5,
        backoff: Backoff | None = None,
        sleep: Callable[[float], object] = time.sleep,
        rng: random.Random | None = None,
        telemetry: Telemetry | None = None,
    ) -> None:
        self.stream = stream
        self.telemetry = telemetry or Telemetry()
        self._source = source
        self._attempts = attempts
        self._backoff = backoff or Backoff(longest_seconds=2.0)
        self._sleep = sleep
        self._rng = rng or random.Random()

    def publish(self, event: Event) -> str:
        """Publishes one event; its entry id.

        Raises:
            DataError: the event cannot be encoded.
            RedisUnreachable: after all attempts. The event may or may not have been written; publishing the same
                object again is safe.
            RedisRefused: Redis answered with an error; the event was not written.
        """
        (traced,) = self.telemetry.traced([event])
        body = encode(traced, source=self._source)
        (entry_id,) = self._told([body], lambda: [self.stream.append(body)])
        return entry_id

    def publish_many(self, events: Iterable[Event], *, per_round_trip: int = 1000) -> list[str]:
        """Publishes events in order; their entry ids. All are in Redis when it returns.

        Raises:
            DataError: an event cannot be encoded; it and those after its round trip are not written.
            RedisUnreachable: as `publish`.
            PublishIncomplete: Redis refused some; it says which.
        """
        results: list[str | ImsyncError] = []
        under_way: _UnderWay | None = None
        try:
            for chunk in _chunks(events, per_round_trip):
                bodies = self._encoded(chunk, under_way)
                if under_way:
                    ends, under_way = under_way, None
                    results += ends.results()
                under_way = _UnderWay(self, bodies)
                if not isinstance(events, Sequence):  # the next ones may be long in coming
                    ends, under_way = under_way, None
                    results += ends.results()
        except Exception:
            if under_way:  # what came before it is published all the same
                under_way.results()
            raise
        except BaseException:
            if under_way:
                under_way.abandon()
            raise
        if under_way:
            results += under_way.results()
        if any(isinstance(result, ImsyncError) for result in results):
            raise PublishIncomplete(results)
        return cast(list[str], results)

    def _encoded(self, events: Sequence[Event], under_way: _UnderWay | None) -> list[bytes]:
        """The events' bytes, made while a round trip is under way."""
        bodies: list[bytes] = []
        events = self.telemetry.traced(events)
        for start in range(0, len(events), _EVENTS_PER_PIECE):
            bodies += [encode(event, source=self._source) for event in events[start : start + _EVENTS_PER_PIECE]]
            if under_way:
                under_way.send_some()
        return bodies

    def send(self, bodies: Sequence[bytes]) -> list[str | ImsyncError]:
        """Publishes encoded events in one round trip; for each its entry id or the error that refused it.

        Raises:
            RedisUnreachable: as `publish`.
        """
        return self._told(bodies, lambda: self.stream.append_many(bodies)) if bodies else []

    def _told(self, bodies: Sequence[bytes], command: Callable[[], list[R]], began: float | None = None) -> list[R]:
        """What a round trip returns for each event, and its telemetry.

        Args:
            began: when it did, by `time.perf_counter`; now, when None.
        """
        if not self.telemetry:
            return self.persist(command)
        began = time.perf_counter() if began is None else began
        stream = self.stream.key
        try:
            results = self.persist(command)
        except ImsyncError as error:
            self.telemetry.emit(PublishFailed(stream, error.kind, time.perf_counter() - began, bodies))
            raise
        refused = sum(isinstance(result, ImsyncError) for result in results)
        seconds = time.perf_counter() - began
        self.telemetry.emit(Published(stream, len(results) - refused, refused, seconds, bodies))
        return results

    def persist(self, command: Callable[[], T]) -> T:
        """What a command on the stream returns. When the connection breaks it is sent again, as often as a publication.

        Raises:
            RedisUnreachable: as `publish`.
        """
        attempt = 1
        while True:
            try:
                return command()
            except RedisUnreachable:
                if attempt >= self._attempts:
                    raise
                self._sleep(self._backoff.delay(attempt, self._rng))
                attempt += 1


class _UnderWay:
    """A round trip that was begun. The first attempt is sent piece by piece while the caller does something else.

    Args:
        publisher: whose.
        bodies: the encoded events.
    """

    def __init__(self, publisher: Publisher, bodies: Sequence[bytes]) -> None:
        self._publisher = publisher
        self._bodies = bodies
        self._began = time.perf_counter()
        self._first: RoundTrip | None = publisher.stream.start_append(bodies)
        self.send_some = self._first.send_some
        self.abandon = self._first.abandon
        self.send_some()

    def results(self) -> list[str | ImsyncError]:
        """As `Publisher.send`. To be called once."""
        return self._publisher._told(self._bodies, self._attempt, self._began)

    def _attempt(self) -> list[str | ImsyncError]:
        first, self._first = self._first, None
        return first.results() if first else self._publisher.stream.append_many(self._bodies)


def _chunks(events: Iterable[Event], most: int) -> Iterator[Sequence[Event]]:
    """The events in their order, so many at a time."""
    if isinstance(events, Sequence):
        for start in range(0, len(events), most):
            yield events[start : start + most]
    else:
        pending = iter(events)
        while chunk := list(islice(pending, most)):
            yield chunk
