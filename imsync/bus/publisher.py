"""Publishing: stable event ids, few round trips, and retries that cannot lose or invent an event."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import TypeVar

from imsync.bus.codec import encode
from imsync.bus.event import Event
from imsync.bus.retry import Backoff
from imsync.bus.stream import Stream
from imsync.bus.telemetry import Published, PublishFailed, Telemetry
from imsync.errors import ImsyncError, RedisUnreachable

T = TypeVar("T")
R = TypeVar("R")


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
        pending = iter(events)
        while chunk := list(islice(pending, per_round_trip)):
            traced = self.telemetry.traced(chunk)
            results += self.send([encode(event, source=self._source) for event in traced])
        if any(isinstance(result, ImsyncError) for result in results):
            raise PublishIncomplete(results)
        return [str(result) for result in results]

    def send(self, bodies: Sequence[bytes]) -> list[str | ImsyncError]:
        """Publishes encoded events in one round trip; for each its entry id or the error that refused it.

        Raises:
            RedisUnreachable: as `publish`.
        """
        return self._told(bodies, lambda: self.stream.append_many(bodies)) if bodies else []

    def _told(self, bodies: Sequence[bytes], command: Callable[[], list[R]]) -> list[R]:
        """What a round trip returns for each event, and its telemetry."""
        if not self.telemetry:
            return self.persist(command)
        began = time.perf_counter()
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
