"""What happens inside, told to whoever listens. The events are API: docs/telemetry.md has their fields in tables.

A listener is anything that takes an event. There is one event per batch, round trip or trouble, and none per entry, so
that listening costs little and not listening costs nothing. Events hold what there was anyway, such as the deliveries
of a batch: a listener that looks into them pays for it itself.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeVar, runtime_checkable

from imsync.bus.event import Event
from imsync.bus.handler import Received
from imsync.bus.outcome import Outcome

log = logging.getLogger(__name__)

E = TypeVar("E", bound=Event)

_TRACE_CONTEXT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


@dataclass(frozen=True, slots=True)
class TelemetryEvent:
    """Base of all of them."""


# ── consumers ────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class ConsumerEvent(TelemetryEvent):
    """Base of what one consumer tells.

    Args:
        stream: the key of the stream.
    """

    group: str
    consumer: str
    stream: str


@dataclass(frozen=True, slots=True)
class ConsumerStarted(ConsumerEvent):
    """Its group is there, and it begins to read."""


@dataclass(frozen=True, slots=True)
class ConsumerStopped(ConsumerEvent):
    """It has left, however it ended.

    Args:
        events: the deliveries that came to something.
        troubles: how often Redis or the store was in trouble.
        left_pending: entries of the group that any consumer held, at the last look.
    """

    events: int
    troubles: int
    left_pending: int


@dataclass(frozen=True, slots=True)
class BatchStarted(ConsumerEvent):
    """Entries were decoded, and their events are given to the handler next, in this thread. A `BatchApplied` or a
    `BatchFailed` follows.

    Args:
        entries: how many entries the batch has, those among them that could not be decoded.
        deliveries: the events, not to be kept.
    """

    entries: int
    deliveries: Sequence[Received[Any]]


@dataclass(frozen=True, slots=True)
class BatchApplied(ConsumerEvent):
    """A batch was applied and acknowledged.

    Args:
        entries: how many entries it had.
        applied, superseded, duplicates, ignored, dead, lost: what became of deliveries since the last event of this
            kind, so that the sums are those that the consumer prints.
        retries: on how many deliveries the handler failed, since the last event of this kind.
        decode_seconds, apply_seconds, acknowledge_seconds: how long the steps took.
        seconds: how long all of it took.
        deliveries: the events, not to be kept.
        outcomes: what the handler said of each.
    """

    entries: int
    applied: int
    superseded: int
    duplicates: int
    ignored: int
    dead: int
    lost: int
    retries: int
    decode_seconds: float
    apply_seconds: float
    acknowledge_seconds: float
    seconds: float
    deliveries: Sequence[Received[Any]]
    outcomes: Sequence[Outcome]


@dataclass(frozen=True, slots=True)
class BatchFailed(ConsumerEvent):
    """A batch was given up, mostly because Redis or the store is in trouble. What was not acknowledged comes again.

    Args:
        entries: how many entries it had.
        kind: the error's kind, such as `store_unusable`; the name of its class when it is none of imsync's.
        seconds: how long it took until then.
        deliveries: the events, not to be kept.
    """

    entries: int
    kind: str
    seconds: float
    deliveries: Sequence[Received[Any]]


@dataclass(frozen=True, slots=True)
class TakenOver(ConsumerEvent):
    """Entries were claimed from a dead consumer.

    Args:
        entries: how many.
    """

    entries: int


@dataclass(frozen=True, slots=True)
class DeadLettered(ConsumerEvent):
    """Entries became dead letters, for one reason.

    Args:
        reason: the stable word that the letters bear.
        entries: how many.
        first_id: the id of the first one.
    """

    reason: str
    entries: int
    first_id: str


@dataclass(frozen=True, slots=True)
class Lost(ConsumerEvent):
    """Entries were trimmed while they were pending.

    Args:
        entries: how many.
        first_id: the id of the first one.
    """

    entries: int
    first_id: str


@dataclass(frozen=True, slots=True)
class Trouble(ConsumerEvent):
    """Redis or the store is in trouble, and the consumer waits.

    Args:
        kind: the error's kind, such as `redis_unreachable`.
        message: one line.
        attempt: 1 for the first trouble after a step that went well.
        delay_seconds: until it is tried again.
    """

    kind: str
    message: str
    attempt: int
    delay_seconds: float


# ── publishers and relays ────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class PublisherEvent(TelemetryEvent):
    """Base of what publishers and relays tell.

    Args:
        stream: the key of the stream.
    """

    stream: str


@dataclass(frozen=True, slots=True)
class Published(PublisherEvent):
    """A round trip of a publisher has ended.

    Args:
        events: how many events Redis has taken.
        refused: how many it has refused.
        seconds: how long it took, its repetitions and the waits between them included; and of `publish_many` the
            encoding of the next round trip, which goes on meanwhile.
        bodies: the encoded events, not to be kept.
    """

    events: int
    refused: int
    seconds: float
    bodies: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class PublishFailed(PublisherEvent):
    """A round trip was given up, and nobody knows what of it was written.

    Args:
        kind: the error's kind, such as `redis_unreachable`.
        seconds: how long it took, its repetitions and the waits between them included.
        bodies: the encoded events, not to be kept.
    """

    kind: str
    seconds: float
    bodies: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class Relayed(PublisherEvent):
    """Rows of the outbox were noted as sent.

    Args:
        rows: how many.
    """

    rows: int


@dataclass(frozen=True, slots=True)
class Resent(PublisherEvent):
    """The stream has lost what was sent: rows of the outbox are due again.

    Args:
        rows: how many.
    """

    rows: int


@dataclass(frozen=True, slots=True)
class RelayTrouble(PublisherEvent):
    """Redis or the store is in trouble, and the relay waits.

    Args:
        kind: the error's kind, such as `redis_unreachable`.
        message: one line.
        attempt: 1 for the first trouble after a delivery that went well.
        delay_seconds: until it is tried again.
    """

    kind: str
    message: str
    attempt: int
    delay_seconds: float


# ── who listens ──────────────────────────────────────────────────────────────────────────────────────

Listener: TypeAlias = Callable[[TelemetryEvent], None]
"""Takes each event, in the thread in which it happened: what takes long here makes the consumer slow."""


@runtime_checkable
class TraceSource(Protocol):
    """What a listener may offer besides: a place in a trace for events that are about to be published."""

    def traceparent(self, event: Event, /) -> str | None:
        """The W3C trace context that the event shall carry; None for none."""
        ...


class Telemetry:
    """Tells events to listeners. True when there are any.

    A listener that raises, or gives what is no trace context, harms nobody: the first time it is logged.

    Args:
        listeners: each is told every event, in this order.
    """

    def __init__(self, listeners: Iterable[Listener] = ()) -> None:
        self._listeners = tuple(listeners)
        self._trace_sources = tuple(_trace_sources(self._listeners))
        self._failed: set[int] = set()

    def __bool__(self) -> bool:
        return bool(self._listeners)

    @property
    def traces(self) -> bool:
        """Whether a listener may give events a place in a trace."""
        return bool(self._trace_sources)

    def emit(self, event: TelemetryEvent) -> None:
        """Tells an event. Whoever calls this asks first whether somebody listens, and makes no event otherwise."""
        for listener in self._listeners:
            try:
                listener(event)
            except Exception:
                self._note_failure(listener, type(event).__name__)

    def traced(self, events: Sequence[E]) -> Sequence[E]:
        """Events as they shall be published: those without a place in a trace get the one that a listener gives."""
        return [self._traced(event) for event in events] if self._trace_sources else events

    def _traced(self, event: E) -> E:
        for source in self._trace_sources if event.traceparent is None else ():
            try:
                if traceparent := source.traceparent(event):
                    if not _TRACE_CONTEXT.fullmatch(traceparent):  # every reader would refuse the event for it
                        raise ValueError("no W3C trace context")
                    return event.model_copy(update={"traceparent": traceparent})
            except Exception:
                self._note_failure(source, "traceparent")
        return event

    def _note_failure(self, listener: object, what: str) -> None:
        if id(listener) not in self._failed:
            self._failed.add(id(listener))
            name = getattr(listener, "__qualname__", type(listener).__qualname__)
            log.exception("the telemetry listener %s failed on %s; further failures of it are not told", name, what)


def _trace_sources(listeners: Iterable[object]) -> Iterator[TraceSource]:
    yield from (each for each in listeners if isinstance(each, TraceSource))
