"""One trace from the edit to every copy, through a real outbox, relay, stream and consumers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode, format_span_id, format_trace_id

from imsync.bus import APPLIED, Bus, ConsumerOptions, DeadLetter, Endpoint, Received, Retry
from imsync.bus.outcome import Outcome
from imsync.bus.publisher import Publisher
from imsync.bus.telemetry import Telemetry
from imsync.errors import InfrastructureError, RedisUnreachable
from imsync.im.events import DESTINATION
from imsync.im.friend_store import FriendStore
from imsync.im.group_store import GroupStore
from imsync.im.relay import Relay
from imsync.im.user_store import UserStore
from imsync.telemetry.tracing import Tracing
from tests.consumers import GROUP, Noted, Recorder, Rig, Settling
from tests.servers import Server
from tests.stores import PEOPLE, nick, outbox_events

HOSTILE = [
    "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",  # too short
    "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
    "00-00000000000000000000000000000000-b7ad6b7169203331-01",
    "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
    "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "00-0AF7651916CD43DD8448EB211C80319C-B7AD6B7169203331-01",
    "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-zz",
    "00-\u202e0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\u2066",
    "00-٠af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "\u202e" * 256,
    "[bold red]x[/]",
    "-" * 256,
]
"""What an event may bear and no trace context is. (Controls and more than 256 characters make no CloudEvents attribute:
such an event is refused whole, as with any other attribute.)"""


class Recording:
    """A tracer provider that keeps the spans, and its listener."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.listener = Tracing(self.provider)
        self.tracer = self.provider.get_tracer("test")

    def spans(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if span.name == name]


@pytest.fixture
def recording() -> Iterator[Recording]:
    recording = Recording()
    yield recording
    recording.provider.shutdown()


def ids(span: ReadableSpan) -> tuple[int, int]:
    context = span.get_span_context()
    assert context is not None
    return context.trace_id, context.span_id


def linked(span: ReadableSpan) -> list[tuple[int, int]]:
    return [(link.context.trace_id, link.context.span_id) for link in span.links]


def attribute(span: ReadableSpan, name: str) -> object:
    return (span.attributes or {}).get(name)


def traceparent(span: ReadableSpan) -> str:
    context = span.get_span_context()
    assert context is not None
    flags = int(context.trace_flags)
    return f"00-{format_trace_id(context.trace_id)}-{format_span_id(context.span_id)}-{flags:02x}"


# ── from edit to applied ─────────────────────────────────────────────────────────────────────────────────


def test_one_trace_from_the_edit_to_every_copy(tmp_path: Path, server: Server, recording: Recording) -> None:
    services = [GroupStore(tmp_path / "group.db", create=True), FriendStore(tmp_path / "friend.db", create=True)]
    with (
        Bus(Endpoint(server.url), listeners=[recording.listener]) as bus,
        closing(UserStore(tmp_path / "user.db", create=True, telemetry=bus.telemetry)) as users,
    ):
        users.bootstrap(PEOPLE, origin="test")
        with recording.tracer.start_as_current_span("request") as request:
            users.edit(nick(1, "Mia 2"))
        users.edit(nick(2, "Noah 2"))  # in no trace of anybody's
        publisher = Publisher(bus.stream(DESTINATION), users.source, telemetry=bus.telemetry)
        Relay(users, publisher).drain()
        entry_ids = [entry.id for entry in bus.stream(DESTINATION).range()]
        for service in services:
            options = ConsumerOptions(until_empty=True)
            bus.consumer(DESTINATION, group=service.name, events=service.events, handler=service, options=options).run()
            service.close()

    creates = recording.spans("create user-update")
    assert [traceparent(span) for span in creates] == [event.traceparent for event in outbox_events(users.path)]
    assert [span.kind for span in creates] == [SpanKind.PRODUCER] * 2
    assert (creates[0].parent, creates[1].parent) == (request.get_span_context(), None)
    events = [str(event.event_id) for event in outbox_events(users.path)]
    assert [attribute(span, "messaging.message.id") for span in creates] == events

    (send,) = recording.spans("send user-update")
    assert send.kind == SpanKind.CLIENT
    assert linked(send) == [ids(span) for span in creates]
    assert attribute(send, "messaging.batch.message_count") == 2

    batches = recording.spans("apply user-update")
    processes = recording.spans("process user-update")
    assert [attribute(span, "messaging.consumer.group.name") for span in batches] == ["group", "friend"]
    assert len(processes) == 4
    for span in processes:
        (create,) = [each for each in creates if ids(each)[0] == ids(span)[0]]
        assert span.parent is not None
        assert (span.parent.trace_id, span.parent.span_id) == ids(create)
        (batch,) = [
            each for each in batches
            if attribute(each, "messaging.consumer.group.name") == attribute(span, "messaging.consumer.group.name")
        ]  # fmt: skip
        assert linked(span) == [ids(create), ids(batch)]
        assert span.kind == SpanKind.CONSUMER
        assert attribute(span, "messaging.message.id") == attribute(create, "messaging.message.id")
        assert attribute(span, "imsync.entry_id") == entry_ids[creates.index(create)]
        assert attribute(span, "imsync.outcome") == "applied"
        assert span.status.status_code == StatusCode.UNSET
        assert create.end_time is not None
        assert span.start_time is not None
        assert span.end_time is not None
        assert create.end_time <= span.start_time < span.end_time
    in_trace = {span.name for span in recording.exporter.get_finished_spans() if ids(span)[0] == ids(creates[0])[0]}
    assert in_trace == {"request", "create user-update", "process user-update"}


def test_publishing_without_an_outbox(rig: Rig, server: Server, recording: Recording) -> None:
    with Bus(Endpoint(server.url), listeners=[recording.listener]) as bus:
        bus.publish(Noted(number=1))
        bus.publish_many([Noted(number=2), mine := Noted(number=3, traceparent=f"{HOSTILE[0]}-01")])
    handler = Recorder()
    rig.drain(handler, telemetry=Telemetry([recording.listener]))
    creates, sends = recording.spans("create notes"), recording.spans("send notes")
    assert len(creates) == 2, "whoever brings a trace context keeps it"
    assert [len(span.links) for span in sends] == [1, 2]
    parents = {f"{format_trace_id(s.parent.trace_id)}-{format_span_id(s.parent.span_id)}"
               for s in recording.spans("process notes") if s.parent}  # fmt: skip
    assert mine.traceparent is not None
    assert parents == {*(traceparent(span)[3:-3] for span in creates), mine.traceparent[3:-3]}


def test_the_span_of_the_batch_is_around_the_handler(rig: Rig, recording: Recording) -> None:
    seen: list[trace.SpanContext] = []
    outside = trace.get_current_span()
    rig.publish([1, 2])
    rig.consumer(
        Recorder(lambda numbers: seen.append(trace.get_current_span().get_span_context())),
        until_empty=True,
        telemetry=Telemetry([recording.listener]),
    ).run()  # in this thread
    (batch,) = recording.spans("apply notes")
    assert [(context.trace_id, context.span_id) for context in seen] == [ids(batch)]
    assert trace.get_current_span() is outside
    assert recording.spans("process notes") == []  # these events bear no trace


class Failing(SpanProcessor):
    """Somebody's span processor, which fails on the spans of single events."""

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        if span.name.startswith("process"):
            raise ValueError("no such colour")


def test_no_batch_stays_current_when_a_span_processor_fails(rig: Rig, recording: Recording) -> None:
    recording.provider.add_span_processor(Failing())
    outside = trace.get_current_span()
    rig.bus.publish(Noted(number=1, traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"))
    rig.consumer(Recorder(), until_empty=True, telemetry=Telemetry([recording.listener])).run()  # in this thread
    assert trace.get_current_span() is outside
    assert len(recording.spans("apply notes")) == 1


class Opinionated:
    """Refuses 2, and fails on 3 once."""

    def __init__(self) -> None:
        self.failed = False

    def apply(self, batch: Sequence[Received[Noted]]) -> list[Outcome]:
        return [self._outcome(received.event.number) for received in batch]

    def _outcome(self, number: int) -> Outcome:
        if number == 2:
            return DeadLetter("not_mine", "secret of the event")
        if number == 3 and not self.failed:
            self.failed = True
            return Retry("secret of the event")
        return APPLIED


def test_what_became_of_an_event_is_on_its_span(server: Server, rig: Rig, recording: Recording) -> None:
    with Bus(Endpoint(server.url), listeners=[recording.listener]) as bus:
        bus.publish_many(Noted(number=n) for n in (1, 2, 3))
    rig.drain(Opinionated(), telemetry=Telemetry([recording.listener]))
    ends = [
        (attribute(span, "imsync.outcome"), span.status.status_code, attribute(span, "error.type"))
        for span in recording.spans("process notes")
    ]
    ok, error = StatusCode.UNSET, StatusCode.ERROR
    assert ends == [("applied", ok, None), ("dead", error, "dead"), ("retry", error, "retry"), ("applied", ok, None)]
    assert "secret" not in "".join(span.to_json() for span in recording.exporter.get_finished_spans())


def test_a_batch_that_was_cut_short(server: Server, rig: Rig, recording: Recording) -> None:
    with Bus(Endpoint(server.url), listeners=[recording.listener]) as bus:
        bus.publish(Noted(number=1))
    errors = iter([InfrastructureError("ill")])

    def ail(numbers: list[int]) -> None:
        if error := next(errors, None):
            raise error

    rig.drain(Settling(ail), telemetry=Telemetry([recording.listener]))
    ends = [(span.status.status_code, attribute(span, "error.type")) for span in recording.spans("apply notes")]
    assert ends == [(StatusCode.ERROR, "infrastructure"), (StatusCode.UNSET, None)]
    assert len(recording.spans("process notes")) == 1


def test_a_round_trip_that_was_given_up(recording: Recording) -> None:
    nowhere = Bus(Endpoint("redis://127.0.0.1:1"), attempts=1, listeners=[recording.listener])
    with nowhere as bus, pytest.raises(RedisUnreachable):
        bus.publish(Noted(number=1))
    (send,) = recording.spans("send notes")
    assert (send.status.status_code, attribute(send, "error.type")) == (StatusCode.ERROR, "redis_unreachable")


# ── who records nothing, and who lies ────────────────────────────────────────────────────────────────────


def test_without_a_provider_nothing_is_borne_and_nothing_recorded(rig: Rig, server: Server) -> None:
    with Bus(Endpoint(server.url), listeners=[Tracing(trace.NoOpTracerProvider())]) as bus:
        bus.publish(Noted(number=1))
    (entry,) = rig.stream.range()
    assert b"traceparent" not in (entry.body or b"")
    assert rig.drain(Recorder(), telemetry=Telemetry([Tracing(trace.NoOpTracerProvider())])).applied == 1


def test_what_is_not_sampled_is_told_so_and_not_recorded(rig: Rig, server: Server, recording: Recording) -> None:
    unsampled = Tracing(TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False))
    with Bus(Endpoint(server.url), listeners=[unsampled]) as bus:
        bus.publish(Noted(number=1))
    (entry,) = rig.stream.range()
    flags = re.search(rb'"traceparent":"00-[0-9a-f]{32}-[0-9a-f]{16}-([0-9a-f]{2})"', entry.body or b"")
    assert flags is not None
    assert not int(flags[1], 16) & trace.TraceFlags.SAMPLED
    rig.drain(Recorder(), telemetry=Telemetry([recording.listener]))
    assert recording.spans("process notes") == []  # the sampler of the SDK follows the parent


def test_a_hostile_traceparent_is_harmless(rig: Rig, recording: Recording, caplog: pytest.LogCaptureFixture) -> None:
    good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    for number, text in enumerate([*HOSTILE, good], 1):
        rig.bus.publish(Noted(number=number, traceparent=text))
    handler = Recorder()
    counts = rig.drain(handler, telemetry=Telemetry([recording.listener]))
    assert handler.numbers == list(range(1, len(HOSTILE) + 2))
    assert (counts.applied, counts.dead, counts.troubles) == (len(HOSTILE) + 1, 0, 0)
    (span,) = recording.spans("process notes")
    assert span.parent is not None
    assert span.parent.trace_id == int(good[3:35], 16)
    exported = "".join(span.to_json() for span in recording.exporter.get_finished_spans())
    assert exported.isascii()
    assert "bold red" not in exported
    assert caplog.records == []
    assert GROUP in exported
