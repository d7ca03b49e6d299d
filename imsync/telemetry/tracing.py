"""Telemetry events as OpenTelemetry spans: one trace from the edit to what was applied. Needs the extra `otel`.

The spans follow OpenTelemetry's conventions for messaging
(https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans/):

- `create DESTINATION` (PRODUCER): an event is made. Its context travels in the event, as the CloudEvents extension
  `traceparent`, through the outbox, the relay and the stream.
- `send DESTINATION` (CLIENT): one round trip to Redis. Linked to the `create` spans.
- `process DESTINATION` (CONSUMER): one event, in one group. Its parent is the `create` span, which these conventions
  allow where a span is of one message; it is linked to it, and to the span of its batch.
- `apply DESTINATION` (INTERNAL): one batch. It is the current span while the handler works.

Without a tracer provider the API does nothing, and what was not sampled is not recorded.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextvars import Token
from dataclasses import dataclass
from itertools import islice
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Status, StatusCode, TracerProvider
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from imsync import __version__
from imsync.bus.event import Event
from imsync.bus.handler import Received
from imsync.bus.outcome import Ack, DeadLetter, Outcome
from imsync.bus.telemetry import BatchApplied, BatchFailed, BatchStarted, Published, PublishFailed, TelemetryEvent

MOST_LINKS = 128
"""How many links a span gets at most: OpenTelemetry's own default limit."""

_PROPAGATOR = TraceContextTextMapPropagator()
_TRACEPARENT = re.compile(rb',"traceparent":"([0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2})","data":')
"""Where `imsync.bus.codec.encode` puts it."""


@dataclass(slots=True)
class _Batch:
    """A batch that is being applied."""

    span: Span
    token: Token[otel_context.Context]
    began_ns: int


class Tracing:
    """A listener that makes spans, and gives published events their place in a trace.

        bus = Bus.from_url("redis://localhost:6379/0", listeners=[Tracing()])

    Args:
        tracer_provider: who records the spans; the global one when None.
        clock_ns: unix nanoseconds.
    """

    def __init__(
        self, tracer_provider: TracerProvider | None = None, *, clock_ns: Callable[[], int] = time.time_ns
    ) -> None:
        self._tracer = trace.get_tracer("imsync", __version__, tracer_provider)
        self._clock_ns = clock_ns
        self._batches: dict[tuple[str, str, str], _Batch] = {}

    def traceparent(self, event: Event) -> str | None:
        """See `imsync.bus.telemetry.TraceSource`: a `create` span, in the current context, and its name on the wire."""
        destination = event.event_destination
        attributes = {**_operation("create", destination), "messaging.message.id": str(event.event_id)}
        span = self._tracer.start_span(f"create {destination}", kind=SpanKind.PRODUCER, attributes=attributes)
        span.end()
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier, trace.set_span_in_context(span, otel_context.Context()))
        return carrier.get("traceparent")

    def __call__(self, event: TelemetryEvent) -> None:
        """Makes the spans of an event."""
        match event:
            case BatchStarted():
                self._begin(event)
            case BatchApplied():
                self._process(event)
            case BatchFailed():
                self._end(event, event.kind)
            case Published() | PublishFailed():
                self._send(event)

    # ── publishing ───────────────────────────────────────────────────────────────────────────────────

    def _send(self, trip: Published | PublishFailed) -> None:
        now = self._clock_ns()
        destination = _destination(trip.stream)
        failed = trip.kind if isinstance(trip, PublishFailed) else "refused" if trip.refused else ""
        span = self._tracer.start_span(
            f"send {destination}",
            kind=SpanKind.CLIENT,
            attributes={**_operation("send", destination), "messaging.batch.message_count": len(trip.bodies)},
            links=[Link(context) for context in islice(_creations(trip.bodies), MOST_LINKS)],
            start_time=now - int(trip.seconds * 1e9),
        )
        _end(span, failed, now)

    # ── consuming ────────────────────────────────────────────────────────────────────────────────────

    def _begin(self, batch: BatchStarted) -> None:
        self._end(batch, "abandoned")  # one whose end was never told
        destination = _destination(batch.stream)
        began_ns = self._clock_ns()
        span = self._tracer.start_span(
            f"apply {destination}",
            attributes={**_consuming(batch), "messaging.batch.message_count": batch.entries},
            start_time=began_ns,
        )
        token = otel_context.attach(trace.set_span_in_context(span))
        self._batches[_whose(batch)] = _Batch(span, token, began_ns)

    def _process(self, batch: BatchApplied) -> None:
        around = self._batches.get(_whose(batch))
        if around is None:
            return
        now = self._clock_ns()
        common = {**_operation("process", _destination(batch.stream)), **_consuming(batch)}
        try:
            for delivery, outcome in zip(batch.deliveries, batch.outcomes, strict=True):
                if delivery.event.traceparent is not None:
                    self._process_one(delivery, outcome, common, around, now)
            around.span.set_attributes({"imsync.applied": batch.applied, "imsync.dead": batch.dead})
        finally:
            self._end(batch)  # a span processor may raise, and the batch must not stay current

    def _process_one(
        self, delivery: Received[Any], outcome: Outcome, common: dict[str, Any], around: _Batch, now: int
    ) -> None:
        event = delivery.event
        parent = _PROPAGATOR.extract({"traceparent": event.traceparent}, otel_context.Context())
        creation = trace.get_current_span(parent).get_span_context()
        if not creation.is_valid:
            return
        span = self._tracer.start_span(
            f"process {common['messaging.destination.name']}",
            context=parent,
            kind=SpanKind.CONSUMER,
            attributes={
                **common,
                "messaging.message.id": str(event.event_id),
                "imsync.entry_id": delivery.entry_id,
                "imsync.outcome": _word(outcome),
            },
            links=[Link(creation), Link(around.span.get_span_context())],
            start_time=around.began_ns,
        )
        _end(span, "" if isinstance(outcome, Ack) else _word(outcome), now)

    def _end(self, batch: BatchStarted | BatchApplied | BatchFailed, failed: str = "") -> None:
        around = self._batches.pop(_whose(batch), None)
        if around is not None:
            otel_context.detach(around.token)
            _end(around.span, failed, self._clock_ns())


def _whose(batch: BatchStarted | BatchApplied | BatchFailed) -> tuple[str, str, str]:
    return batch.group, batch.consumer, batch.stream


def _word(outcome: Outcome) -> str:
    if isinstance(outcome, Ack):
        return str(outcome.effect)
    return "dead" if isinstance(outcome, DeadLetter) else "retry"


def _operation(name: str, destination: str) -> dict[str, str]:
    return {
        "messaging.system": "redis",
        "messaging.operation.name": name,
        "messaging.operation.type": name,
        "messaging.destination.name": destination,
    }


def _consuming(batch: BatchStarted | BatchApplied) -> dict[str, str]:
    return {
        "messaging.system": "redis",
        "messaging.destination.name": _destination(batch.stream),
        "messaging.consumer.group.name": batch.group,
        "messaging.client.id": batch.consumer,
    }


def _destination(stream: str) -> str:
    """The destination of a stream's key, which is its hash tag."""
    return stream.partition("{")[2].partition("}")[0] or stream


def _creations(bodies: Iterable[bytes]) -> Iterator[SpanContext]:
    """The contexts in which encoded events were made, of those that have one."""
    for body in bodies:
        if found := _TRACEPARENT.search(body):
            parent = _PROPAGATOR.extract({"traceparent": found[1].decode()}, otel_context.Context())
            context = trace.get_current_span(parent).get_span_context()
            if context.is_valid:
                yield context


def _end(span: Span, failed: str, now: int) -> None:
    if failed:
        span.set_attribute("error.type", failed)
        span.set_status(Status(StatusCode.ERROR))
    span.end(end_time=now)
