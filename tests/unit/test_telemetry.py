"""Telemetry: its events are those of the page, its metrics have bounded labels, and its listeners harm nobody."""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Sequence
from dataclasses import FrozenInstanceError, fields
from datetime import UTC, datetime, timedelta
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

import imsync.bus.telemetry as telemetry
from imsync.bus import APPLIED, DUPLICATE, SUPERSEDED, Ack, Event, PositiveInt, Received, Retry
from imsync.bus.telemetry import (
    BatchApplied,
    ConsumerEvent,
    ConsumerStarted,
    DeadLettered,
    Lost,
    Published,
    PublisherEvent,
    Relayed,
    RelayTrouble,
    Resent,
    TakenOver,
    Telemetry,
    TelemetryEvent,
    Trouble,
)
from imsync.telemetry import names
from imsync.telemetry.metrics import ConsumerMetrics, RelayMetrics
from imsync.telemetry.names import Metric

PAGE = Path(__file__).resolve().parents[2] / "docs" / "telemetry.md"
BASES = (TelemetryEvent, ConsumerEvent, PublisherEvent)
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Noted(Event, type="test.noted.v1", destination="notes"):
    number: PositiveInt = 1


# ── the page ─────────────────────────────────────────────────────────────────────────────────────────────


def table(title: str) -> list[list[str]]:
    """The cells of the table whose first column has this title."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {title} |"))
    rows = takewhile(lambda line: line.startswith("|"), lines[start + 2 :])
    return [[cell.strip() for cell in row.removeprefix("|").removesuffix("|").split("|")] for row in rows]


def quoted(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def event_classes() -> dict[str, type[TelemetryEvent]]:
    found = {
        name: each
        for name, each in inspect.getmembers(telemetry, inspect.isclass)
        if issubclass(each, TelemetryEvent) and each not in BASES
    }
    assert len(found) > 10
    return found


def own_fields(event: type[TelemetryEvent]) -> list[str]:
    base = ConsumerEvent if issubclass(event, ConsumerEvent) else PublisherEvent
    inherited = {field.name for field in fields(base)}
    return [field.name for field in fields(event) if field.name not in inherited]


def test_every_event_and_every_field_of_it_is_on_the_page() -> None:
    listed = {quoted(name)[0]: quoted(cell) for name, _, cell in table("event")}
    assert listed == {name: own_fields(event) for name, event in event_classes().items()}


def test_the_meanings_of_all_fields_and_of_no_others_are_on_the_page() -> None:
    types = {field.name: str(field.type) for event in event_classes().values() for field in fields(event)}
    told = {name: kind for cell, kind, _ in rows_of_events() for name in quoted(cell)}
    assert told == {name: kind.replace("[Any]", "") for name, kind in types.items()}


def rows_of_events() -> list[list[str]]:
    """The table of the fields of events: the last one of its title."""
    text = PAGE.read_text(encoding="utf-8").rpartition("| field |")[2].splitlines()[2:]
    rows = takewhile(lambda line: line.startswith("|"), text)
    return [[cell.strip() for cell in row.removeprefix("|").removesuffix("|").split("|")] for row in rows]


@pytest.mark.parametrize(
    ("title", "metrics"),
    [
        ("metric of a consumer", names.CONSUMER),
        ("metric of a relay", names.RELAY),
        ("metric of the check", names.CHECK),
    ],
)
def test_every_metric_is_on_the_page(title: str, metrics: Sequence[Metric]) -> None:
    listed = [(quoted(name)[0], kind, tuple(quoted(labels)), meaning) for name, kind, labels, meaning in table(title)]
    assert listed == [(each.name, each.kind, each.labels, each.meaning) for each in metrics]


def test_every_value_of_a_label_is_on_the_page() -> None:
    assert {quoted(name)[0]: quoted(values) for name, values in table("label")} == {
        "outcome": list(names.OUTCOMES),
        "reason": [*names.REASONS, names.OTHER],
        "kind": [*names.KINDS, names.OTHER],
        "step": list(names.STEPS),
    }


def test_the_words_are_those_of_the_errors() -> None:
    """A kind of trouble that imsync learns must be known here."""
    from imsync.errors import InfrastructureError

    def kinds(error: type[InfrastructureError]) -> set[str]:
        below = [kinds(each) for each in error.__subclasses__() if each.__module__ == "imsync.errors"]
        return {error.kind}.union(*below)

    assert kinds(InfrastructureError) == set(names.KINDS)


# ── listeners ────────────────────────────────────────────────────────────────────────────────────────────


def test_events_are_frozen() -> None:
    event = Relayed("s", 1)
    with pytest.raises(FrozenInstanceError):
        event.rows = 2  # type: ignore[misc]


def test_every_listener_is_told_in_order() -> None:
    seen: list[tuple[int, TelemetryEvent]] = []
    told = Telemetry([lambda event, n=n: seen.append((n, event)) for n in range(3)])  # type: ignore[misc]
    told.emit(Relayed("s", 1))
    assert seen == [(n, Relayed("s", 1)) for n in range(3)]


def test_a_listener_that_raises_is_logged_once_and_the_others_are_told(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[TelemetryEvent] = []

    def broken(event: TelemetryEvent) -> None:
        raise ValueError("no such colour")

    told = Telemetry([broken, seen.append])
    logger = logging.getLogger("imsync")
    propagates, logger.propagate = logger.propagate, True
    try:
        for _ in range(3):
            told.emit(Relayed("s", 1))
    finally:
        logger.propagate = propagates
    assert len(seen) == 3
    (record,) = caplog.records
    assert "broken" in record.getMessage()
    assert record.exc_info is not None


def test_nobody_listening_is_false_and_gives_no_event_a_trace() -> None:
    events = [Noted()]
    assert not Telemetry()
    assert Telemetry().traced(events) is events
    assert Telemetry([print]).traced(events) is events
    assert Telemetry([print])


class Source:
    """A listener that gives places in a trace."""

    def __init__(self, *answers: str | Exception | None) -> None:
        self.answers = list(answers)

    def __call__(self, event: TelemetryEvent) -> None:
        pass

    def traceparent(self, event: Event) -> str | None:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_the_first_source_that_has_a_place_in_a_trace_gives_it_and_none_is_replaced() -> None:
    told = Telemetry([Source(None, ValueError()), Source(TRACEPARENT, None)])
    first, second, third = told.traced([Noted(), Noted(), mine := Noted(traceparent="mine")])
    assert (first.traceparent, second.traceparent) == (TRACEPARENT, None)
    assert third is mine


@pytest.mark.parametrize("rubbish", [5, b"x", "x" * 300, TRACEPARENT + "\n", "00-\u202e"])
def test_an_event_does_not_bear_what_its_readers_would_refuse(rubbish: Any) -> None:
    (event,) = Telemetry([Source(rubbish), Source(TRACEPARENT)]).traced([Noted()])
    assert event.traceparent == TRACEPARENT


# ── metrics ──────────────────────────────────────────────────────────────────────────────────────────────

NOW = datetime(2026, 1, 1, tzinfo=UTC)
WHOSE = ("g", "c", "s")


def batch(outcomes: Sequence[Any], ages: Sequence[float], **more: Any) -> BatchApplied:
    numbers: dict[str, Any] = dict.fromkeys(
        ("applied", "superseded", "duplicates", "ignored", "dead", "lost", "retries"), 0
    )
    steps = dict.fromkeys(("decode_seconds", "apply_seconds", "acknowledge_seconds"), 0.25)
    deliveries = [Received(Noted(occurred_at=NOW - timedelta(seconds=age)), "1-1") for age in ages]
    values = {**numbers, **steps, "entries": len(outcomes), "seconds": 0.75, **more}
    return BatchApplied(*WHOSE, **values, deliveries=deliveries, outcomes=outcomes)


def scraped(registry: CollectorRegistry) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """The series as Prometheus would read them."""
    text = generate_latest(registry).decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def series(name: str, **labels: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    return name, tuple(sorted(labels.items()))


def test_a_consumer_is_counted() -> None:
    registry = CollectorRegistry()
    listener = ConsumerMetrics(registry, now=NOW.timestamp)
    listener(ConsumerStarted(*WHOSE))
    at_first = scraped(registry)
    assert set(at_first.values()) == {0.0}
    for event in (
        batch([APPLIED, Ack(), SUPERSEDED, DUPLICATE, Retry("no")], [0.2, 7.0, 99.0, 99.0, 99.0], applied=2,
              superseded=1, duplicates=1, ignored=3, dead=9, lost=9, retries=1),
        batch([APPLIED], [-60.0], applied=1),  # of a clock that is ahead
        DeadLettered(*WHOSE, "invalid", 2, "1-1"),
        Lost(*WHOSE, 4, "1-1"),
        TakenOver(*WHOSE, 5),
        Trouble(*WHOSE, "store_unusable", "locked", 1, 0.1),
        Relayed("s", 1),
    ):  # fmt: skip
        listener(event)
    now = scraped(registry)
    assert now.keys() == at_first.keys(), "all series were there from the start"
    outcomes = {outcome: now[series("imsync_events_total", group="g", outcome=outcome)] for outcome in names.OUTCOMES}
    assert outcomes == {
        "applied": 3, "superseded": 1, "duplicate": 1, "ignored": 3, "dead": 2, "lost": 4, "retry": 1,
    }  # fmt: skip
    assert now[series("imsync_batches_total", group="g")] == 2
    assert now[series("imsync_taken_over_total", group="g")] == 5
    assert now[series("imsync_lost_total", group="g")] == 4
    assert now[series("imsync_dead_letters_total", group="g", reason="invalid")] == 2
    assert now[series("imsync_troubles_total", group="g", kind="store_unusable")] == 1
    assert now[series("imsync_step_seconds_total", group="g", step="apply")] == 0.5
    assert now[series("imsync_batch_seconds_count", group="g")] == 2
    assert now[series("imsync_batch_entries_sum", group="g")] == 6
    age = {
        le: now[series("imsync_staleness_seconds_bucket", group="g", le=le)] for le in ("0.1", "0.25", "5.0", "10.0")
    }
    assert age == {"0.1": 1, "0.25": 2, "5.0": 2, "10.0": 3}
    assert now[series("imsync_staleness_seconds_count", group="g")] == 3
    assert now[series("imsync_staleness_seconds_sum", group="g")] == pytest.approx(7.2)


def test_a_relay_is_counted() -> None:
    registry = CollectorRegistry()
    listener = RelayMetrics(registry)
    for event in (
        Published("s", 3, 2, 0.1, []),
        Relayed("s", 3),
        Resent("s", 7),
        RelayTrouble("s", "redis_unreachable", "", 1, 0.1),
    ):
        listener(event)
    now = scraped(registry)
    assert now[series("imsync_relay_published_total")] == 3
    assert now[series("imsync_relay_refused_total")] == 2
    assert now[series("imsync_relay_resent_total")] == 7
    assert now[series("imsync_relay_troubles_total", kind="redis_unreachable")] == 1
    assert now[series("imsync_relay_round_trip_seconds_count")] == 1


def test_what_somebody_sends_makes_no_series() -> None:
    registry = CollectorRegistry()
    consumer, relay = ConsumerMetrics(registry), RelayMetrics(registry)
    consumer(ConsumerStarted(*WHOSE))
    before = scraped(registry).keys()
    for n in range(100):
        consumer(DeadLettered(*WHOSE, f"reason {n}\x1b[2J", 1, "1-1"))
        consumer(Trouble(*WHOSE, f"kind_{n}", "", 1, 0.1))
        relay(RelayTrouble("s", f"kind_{n}", "", 1, 0.1))
    now = scraped(registry)
    assert now.keys() == before
    assert now[series("imsync_dead_letters_total", group="g", reason="other")] == 100
    assert now[series("imsync_troubles_total", group="g", kind="other")] == 100
    assert now[series("imsync_relay_troubles_total", kind="other")] == 100


def test_the_metrics_are_those_that_have_names() -> None:
    """And each has its documented labels."""
    registry = CollectorRegistry()
    consumer, relay = ConsumerMetrics(registry), RelayMetrics(registry)
    consumer(ConsumerStarted(*WHOSE))
    relay(Relayed("s", 1))
    found: dict[str, set[str]] = {}
    for name, labels in scraped(registry):
        found.setdefault(name, set()).update(label for label, _ in labels)
    expected = {
        name: {*metric.labels, *(["le"] if name.endswith("_bucket") else [])}
        for metric in (*names.CONSUMER, *names.RELAY)
        for name in metric.samples
    }
    assert found == expected
