"""What the tests of the consumer share: an event, handlers that remember, and a consumer in a thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from imsync.bus import APPLIED, DUPLICATE, Backoff, Bus, ConsumerOptions, Endpoint, Event, PositiveInt, RetryPolicy
from imsync.bus.consumer import Consumer
from imsync.bus.dead_letter import DeadLetterRecord, read
from imsync.bus.handler import Handler, Received, Rejected
from imsync.bus.outcome import Outcome
from imsync.bus.processor import Counts

GROUP = "readers"

QUICK = ConsumerOptions(
    batch=100,
    block_ms=50,
    heartbeat_ms=100,
    retry=RetryPolicy(max_attempts=3, backoff=Backoff(first_seconds=0.01, longest_seconds=0.02)),
    backoff=Backoff(first_seconds=0.01, longest_seconds=0.05),
)


class Noted(Event, type="test.noted.v1", destination="notes"):
    """Something with a number."""

    number: PositiveInt


class Other(Event, type="test.other.v1", destination="notes"):
    """Something that the consumers of these tests do not declare."""

    text: str = ""


class Recorder:
    """Applies events by remembering their numbers, batch by batch. Keeps no settlement log.

    Args:
        before: called with the numbers of each batch before it is applied; what it raises, `apply` raises.
    """

    def __init__(self, before: Callable[[list[int]], object] = lambda numbers: None) -> None:
        self.batches: list[list[int]] = []
        self._before = before

    @property
    def numbers(self) -> list[int]:
        """All that was applied, in order."""
        return [number for batch in self.batches for number in batch]

    def apply(self, batch: Sequence[Received[Noted]]) -> list[Outcome]:
        numbers = [received.event.number for received in batch]
        self._before(numbers)
        self.batches.append(numbers)
        return [APPLIED for _ in batch]


class Settling(Recorder):
    """Keeps a settlement log, so that a repeat is a duplicate and changes nothing."""

    def __init__(self, before: Callable[[list[int]], object] = lambda numbers: None) -> None:
        super().__init__(before)
        self.dead: list[str] = []
        self.lost: list[str] = []
        self.repeats = 0
        self._settled: set[int] = set()

    def apply(self, batch: Sequence[Received[Noted]]) -> list[Outcome]:
        numbers = [received.event.number for received in batch]
        self._before(numbers)
        fresh = [number for number in numbers if number not in self._settled]
        self.batches.append(fresh)
        self._settled.update(fresh)
        self.repeats += len(numbers) - len(fresh)
        return [APPLIED if number in fresh else DUPLICATE for number in numbers]

    def record_dead(self, dead: Sequence[Rejected]) -> None:
        self.dead += [rejected.entry_id for rejected in dead]

    def record_lost(self, entry_ids: Sequence[str]) -> None:
        self.lost += entry_ids


class Running:
    """A consumer that runs in a thread of its own."""

    def __init__(self, consumer: Consumer[Noted]) -> None:
        self.consumer = consumer
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.consumer.run()
        except BaseException as error:
            self._error = error

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def result(self, within: float = 10.0) -> Counts:
        """What `run` returned or raised, once it has ended by itself."""
        self.join(within)
        if self._error is not None:
            raise self._error
        return self.consumer.counts

    def join(self, within: float = 10.0) -> None:
        """Waits until it has ended."""
        self._thread.join(within)
        assert not self.running, f"still running after {within:g} s: {self.consumer.counts}"

    def stop(self) -> Counts:
        """Asks it to stop; what `run` returned or raised."""
        self.consumer.stop()
        return self.result()


class Rig:
    """A destination on a server, and consumers of it."""

    def __init__(self, url: str) -> None:
        self.bus = Bus.from_url(url)
        self.keys = self.bus.keys("notes")
        self.stream = self.bus.stream("notes")
        self.client: Any = self.bus.endpoint.connect()
        self._started: list[Running] = []

    def publish(self, numbers: Iterable[int]) -> list[str]:
        """Publishes events with these numbers; their entry ids."""
        return self.bus.publish_many(Noted(number=number) for number in numbers)

    def held_by(self, name: str, numbers: Iterable[int]) -> list[str]:
        """Publishes events and delivers them to a consumer that never lived; their entry ids."""
        self.stream.create_group(GROUP)
        ids = self.publish(numbers)
        assert [entry.id for entry in self.stream.read_new(GROUP, name, len(ids))] == ids
        return ids

    def consumer(
        self, handler: Handler[Noted], *, url: str = "", name: str | None = None, **more: Any
    ) -> Consumer[Noted]:
        """A consumer, quick by default. Options may be given by their names, besides what `Consumer` takes."""
        known = {key: more.pop(key) for key in list(more) if key in ConsumerOptions.__dataclass_fields__}
        return Consumer(
            Endpoint(url) if url else self.bus.endpoint,
            self.keys,
            group=GROUP,
            events=[Noted],
            handler=handler,
            name=name,
            options=replace(QUICK, **known),
            **more,
        )

    def drain(self, handler: Handler[Noted], **more: Any) -> Counts:
        """Runs a consumer until nothing is left for it."""
        return self.start(handler, until_empty=True, **more).result()

    def start(self, handler: Handler[Noted], **more: Any) -> Running:
        """Runs a consumer in a thread; stopped when the test ends."""
        self._started.append(Running(self.consumer(handler, **more)))
        return self._started[-1]

    def pending(self) -> dict[str, int]:
        """How many entries each consumer holds."""
        return dict(self.stream.pending_summary(GROUP).by_consumer)

    def dead_letters(self) -> list[DeadLetterRecord]:
        return [read(entry) for entry in self.bus.dead_letters("notes", GROUP).range()]

    def close(self) -> None:
        for running in self._started:
            running.consumer.stop()
        for running in self._started:
            running.join()
        self.client.close()
        self.bus.close()


def settled(counts: Counts) -> int:
    """Deliveries that came to an end, whichever."""
    ends = (counts.applied, counts.superseded, counts.duplicates, counts.dead, counts.ignored, counts.lost)
    return sum(ends)
