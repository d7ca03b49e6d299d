"""Telemetry events as Prometheus metrics.

A listener keeps its numbers in a registry that its caller gives; the caller exposes it, as
`prometheus_client.start_http_server` does. Labels take only words that are known before: see `imsync.telemetry.names`.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from threading import Lock
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from imsync import __version__
from imsync.bus.handler import Received
from imsync.bus.outcome import Ack, Effect, Outcome
from imsync.bus.telemetry import (
    BatchApplied,
    ConsumerStarted,
    DeadLettered,
    Lost,
    Published,
    Relayed,
    RelayTrouble,
    Resent,
    TakenOver,
    TelemetryEvent,
    Trouble,
)
from imsync.telemetry import names
from imsync.telemetry.names import KINDS, OTHER, OUTCOMES, REASONS, STEPS, Metric


class ConsumerMetrics:
    """A listener that counts what consumers tell, by group.

    Args:
        registry: where the metrics are kept; one listener of this class per registry.
        now: unix seconds, for the age of events.
    """

    def __init__(self, registry: CollectorRegistry, *, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._events = _counter(names.EVENTS, registry)
        self._batches = _counter(names.BATCHES, registry)
        self._troubles = _counter(names.TROUBLES, registry)
        self._taken_over = _counter(names.TAKEN_OVER, registry)
        self._dead_letters = _counter(names.DEAD_LETTERS, registry)
        self._lost = _counter(names.LOST, registry)
        self._step_seconds = _counter(names.STEP_SECONDS, registry)
        self._batch_seconds = _histogram(names.BATCH_SECONDS, registry)
        self._batch_entries = _histogram(names.BATCH_ENTRIES, registry)
        self._staleness = _Ages(names.STALENESS)
        registry.register(self._staleness)

    def __call__(self, event: TelemetryEvent) -> None:
        """Counts an event."""
        match event:
            case BatchApplied():
                self._count_batch(event)
            case DeadLettered():
                self._events.labels(event.group, "dead").inc(event.entries)
                self._dead_letters.labels(event.group, _known(event.reason, REASONS)).inc(event.entries)
            case Lost():
                self._events.labels(event.group, "lost").inc(event.entries)
                self._lost.labels(event.group).inc(event.entries)
            case TakenOver():
                self._taken_over.labels(event.group).inc(event.entries)
            case Trouble():
                self._troubles.labels(event.group, _known(event.kind, KINDS)).inc()
            case ConsumerStarted():
                self._begin(event.group)

    def _count_batch(self, batch: BatchApplied) -> None:
        numbers = (batch.applied, batch.superseded, batch.duplicates, batch.ignored, batch.retries)
        for outcome, number in zip(("applied", "superseded", "duplicate", "ignored", "retry"), numbers, strict=True):
            if number:
                self._events.labels(batch.group, outcome).inc(number)
        self._batches.labels(batch.group).inc()
        for step, seconds in zip(
            STEPS, (batch.decode_seconds, batch.apply_seconds, batch.acknowledge_seconds), strict=True
        ):
            self._step_seconds.labels(batch.group, step).inc(seconds)
        self._batch_seconds.labels(batch.group).observe(batch.seconds)
        self._batch_entries.labels(batch.group).observe(batch.entries)
        self._staleness.observe(batch.group, _ages(batch.deliveries, batch.outcomes, self._now()))

    def _begin(self, group: str) -> None:
        """Every series of a group, at 0: what appears only with its first event is not seen to rise by it."""
        for metric in (self._batches, self._taken_over, self._lost, self._batch_seconds, self._batch_entries):
            metric.labels(group)
        for counter, words in (
            (self._events, OUTCOMES),
            (self._troubles, (*KINDS, OTHER)),
            (self._dead_letters, (*REASONS, OTHER)),
            (self._step_seconds, STEPS),
        ):
            for word in words:
                counter.labels(group, word)
        self._staleness.observe(group, [])


class RelayMetrics:
    """A listener that counts what a relay tells.

    Args:
        registry: where the metrics are kept; one listener of this class per registry.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._published = _counter(names.RELAY_PUBLISHED, registry)
        self._resent = _counter(names.RELAY_RESENT, registry)
        self._refused = _counter(names.RELAY_REFUSED, registry)
        self._troubles = _counter(names.RELAY_TROUBLES, registry)
        self._round_trip = _histogram(names.ROUND_TRIP_SECONDS, registry)
        for kind in (*KINDS, OTHER):
            self._troubles.labels(kind)

    def __call__(self, event: TelemetryEvent) -> None:
        """Counts an event."""
        match event:
            case Relayed():
                self._published.inc(event.rows)
            case Resent():
                self._resent.inc(event.rows)
            case Published():
                self._refused.inc(event.refused)
                self._round_trip.observe(event.seconds)
            case RelayTrouble():
                self._troubles.labels(_known(event.kind, KINDS)).inc()


def note_build(registry: CollectorRegistry) -> None:
    """Adds the version to a registry."""
    metric = names.BUILD
    Gauge(metric.name, metric.meaning, metric.labels, registry=registry).labels(__version__).set(1)


class _Ages(Collector):
    """A histogram that takes many values at once: prometheus_client's takes one, under a lock, and a batch has
    thousands.
    """

    def __init__(self, metric: Metric) -> None:
        self._metric = metric
        self._lock = Lock()
        self._groups: dict[str, tuple[list[int], float]] = {}

    def observe(self, group: str, seconds: Iterable[float]) -> None:
        """Adds values."""
        bounds = self._metric.buckets
        with self._lock:
            counts, total = self._groups.get(group) or ([0] * (len(bounds) + 1), 0.0)
            for each in seconds:
                counts[bisect_left(bounds, each)] += 1
                total += each
            self._groups[group] = counts, total

    def collect(self) -> Iterable[HistogramMetricFamily]:
        """What prometheus_client calls at each scrape."""
        family = HistogramMetricFamily(self._metric.name, self._metric.meaning, labels=self._metric.labels)
        bounds = [*map(floatToGoString, self._metric.buckets), "+Inf"]
        with self._lock:
            for group, (counts, total) in self._groups.items():
                below = 0
                buckets = [(bound, float(below := below + count)) for bound, count in zip(bounds, counts, strict=True)]
                family.add_metric([group], buckets, total)
        return [family]


def _ages(deliveries: Sequence[Received[Any]], outcomes: Sequence[Outcome], now: float) -> list[float]:
    """How old the applied events are, in seconds; 0 for those of a clock that is ahead."""
    return [
        max(0.0, now - delivery.event.occurred_at.timestamp())
        for delivery, outcome in zip(deliveries, outcomes, strict=True)
        if isinstance(outcome, Ack) and outcome.effect is Effect.APPLIED
    ]


def _known(word: str, words: Sequence[str]) -> str:
    return word if word in words else OTHER


def _counter(metric: Metric, registry: CollectorRegistry) -> Counter:
    return Counter(metric.name, metric.meaning, metric.labels, registry=registry)


def _histogram(metric: Metric, registry: CollectorRegistry) -> Histogram:
    return Histogram(metric.name, metric.meaning, metric.labels, buckets=metric.buckets, registry=registry)
