"""Hostile entries: of any bytes comes an event or a dead letter, quickly, and no error echoes them."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from imsync.bus.attempts import Attempts
from imsync.bus.codec import Decoder, encode
from imsync.bus.dead_letter import RAW, read
from imsync.bus.entry import Entry
from imsync.bus.event import Event
from imsync.bus.keys import Keys
from imsync.bus.processor import Processor
from imsync.bus.retry import RetryPolicy
from imsync.bus.stream import Stream
from imsync.errors import DataError
from imsync.im.events import User2GroupEvent, UserDeleted
from imsync.im.group_store import GroupStore
from tests.faults.fuzz import MARKER, POISON, Varied, expected, inputs
from tests.faults.in_memory import Client, Memory
from tests.faults.rig import MakeWorld
from tests.faults.table import Fault
from tests.stores import sql

REASONS = {"bad_json", "invalid", "unknown_type", "too_large"}
CPU_SECONDS = 1.0
"""What one input may take. A body of 64 KiB takes about a thousandth of that."""
INPUTS = 50_000
PARTS = 4
BATCH = 500
GROUP = "readers"

USERS: Decoder[Event] = Decoder([User2GroupEvent, UserDeleted])
ANY: Decoder[Event] = Decoder([User2GroupEvent, UserDeleted, Varied], ignore=["x.ignored"])


def read_one(decoder: Decoder[Event], body: bytes) -> tuple[Event | None, DataError | None]:
    """What a decoder makes of a body. Any exception but the one that it may raise ends the test."""
    began = time.thread_time()
    try:
        event, error = decoder.decode(body), None
    except DataError as refusal:
        event, error = None, refusal
    took = time.thread_time() - began
    assert took < CPU_SECONDS, f"{took:.1f} s for {body[:200]!r}…"
    if error is not None:
        shown = f"{error!r} {error.message} {error.hint}"
        assert error.reason in REASONS
        assert len(error.message) < 300
        assert "\n" not in error.message
        assert MARKER not in shown, f"{shown} echoes {body[:200]!r}…"
    return event, error


@pytest.mark.timeout(600)
@pytest.mark.parametrize("part", range(PARTS))
def test_bodies_are_read_or_refused(part: int, rng: random.Random, scaled: Callable[[int], int], fault: Fault) -> None:
    """By the oracle where it knows. What is read obeys its bounds, and is the same event when it is written again."""
    row = fault("fuzzed input · decoder")
    judged = events = 0
    for body in inputs(rng, scaled(INPUTS) // PARTS):
        row.reached()
        event, error = read_one(USERS, body)
        told = expected(body)
        if told is not None:
            judged += 1
            assert (event is not None) == told, f"{event!r} {error!r} of {body[:500]!r}"
        other, _ = read_one(ANY, body)
        assert isinstance(other, Varied) or other == event
        if other is not None:
            events += 1
            assert_the_same_when_written_again(other)
    # the generator is neither tame nor wild
    assert row.times / 2 < judged
    assert row.times / 10 < events < row.times / 2


def assert_the_same_when_written_again(event: Event) -> None:
    # built anew, so that every bound is checked once more
    assert type(event)(**{name: getattr(event, name) for name in type(event).model_fields}) == event
    if event.occurred_at.year in (1, 9999):
        return  # a local time there may have no name in UTC, and is refused then
    assert ANY.decode(encode(event, source="urn:unused")) == event


@pytest.fixture
def store(tmp_path: Path) -> Iterator[GroupStore]:
    with closing(GroupStore(tmp_path / "group.db", create=True)) as made:
        made.bootstrap([], [], [])
        yield made


@pytest.mark.timeout(600)
def test_of_a_hostile_stream_every_entry_is_settled(
    store: GroupStore,
    rng: random.Random,
    scaled: Callable[[int], int],
    fault: Fault,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """By a consumer's processor, into a real store: bad entries become dead letters, whole, and the rest is applied."""
    row = fault("fuzzed input · consumer")
    seen = letters = 0
    bodies = inputs(rng, scaled(INPUTS))
    while batch := list(islice(bodies, BATCH)):
        seen += len(batch)
        memory = Memory()
        memory.now_ms += seen  # entry ids are given once
        client: Any = Client(memory, lambda name: None)
        keys = Keys("imsync", "user-update")
        stream, dead = Stream(client, keys.stream, "memory"), Stream(client, keys.dead(GROUP), "memory")
        stream.create_group(GROUP)
        for body in batch:
            client.xadd(keys.stream, {b"event": body} if body or rng.random() < 0.5 else {b"": body})
        caplog.clear()
        with caplog.at_level(logging.INFO):
            failed = processor(client, stream, keys, store).process(stream.read_new(GROUP, "c", BATCH))
        assert failed == []
        assert stream.pending_summary(GROUP).count == 0
        assert MARKER not in caplog.text
        written = {entry.id: dict(entry.fields) for entry in stream.range()}
        for entry in dead.range():
            letter = read(entry)
            letters += 1
            assert letter.reason in REASONS | {"no_event_field"}
            assert dict(letter.raw) == written[letter.source_id]
            assert MARKER not in letter.message + letter.where
    row.reached(seen)
    tallies = store.tallies()
    settled = sum(n for (_, outcome), n in tallies.items() if outcome in ("applied", "superseded", "dead", "duplicate"))
    assert (settled, tallies["", "dead"]) == (seen, letters)


def processor(client: Any, stream: Stream, keys: Keys, store: GroupStore) -> Processor[Any]:
    return Processor(
        stream,
        keys.dead(GROUP),
        group=GROUP,
        consumer="c",
        decoder=Decoder(store.events),
        handler=store,
        retry=RetryPolicy(),
        attempts=Attempts(client, keys, GROUP, "c", "token", "memory"),
    )


def test_the_reader_of_dead_letters_reads_anything(
    rng: random.Random, scaled: Callable[[int], int], fault: Fault
) -> None:
    """Whoever may write to that stream may write anything there."""
    row = fault("fuzzed input · dead letters")
    names = [*(name.encode() for name in read(Entry.of("1-0", {})).__slots__), RAW, RAW + b"event", b"", b"\xff"]
    for body in inputs(rng, scaled(INPUTS) // 10):
        row.reached()
        fields = {
            rng.choice(names): body[:1000],
            rng.choice(names): rng.randbytes(rng.randrange(9)),
            b"deliveries": body[-9:],
        }
        letter = read(Entry.of("1-0", fields))
        assert all(isinstance(getattr(letter, name), str) for name in ("reason", "message", "event_id", "dead_at"))
        assert letter.deliveries >= 0
        assert set(letter.raw.values()) <= set(fields.values())


# ── every class once, with everything real ───────────────────────────────────────────────────────────


def test_every_class_of_poison(make_world: MakeWorld, fault: Fault) -> None:
    """Between good neighbours, which are applied; the poison is dead, whole and with the right reason."""
    world = make_world(proxied=False)
    world.edit(20)
    world.publish()
    entries = {name: world.inject(poison.entry) for name, poison in POISON.items() if poison.reason}
    world.edit(20)
    world.publish()
    world.settle()
    for service in world.services:
        letters = {
            letter.source_id: letter for letter in map(read, world.bus.dead_letters("user-update", service).range())
        }
        assert letters.keys() == set(entries.values())
        for name, entry_id in entries.items():
            poison, letter = POISON[name], letters[entry_id]
            raw = {b"event": poison.entry} if isinstance(poison.entry, bytes) else poison.entry
            assert (name, letter.reason, dict(letter.raw) == raw) == (name, poison.reason, True)
            assert (letter.group, letter.deliveries, letter.event_id) == (service, 1, "")
    violations = world.check()
    for name in entries:
        row = fault(f"poison · {name}")
        row.reached()
        row.found(violations)


def test_what_looks_like_poison_and_is_none(make_world: MakeWorld, fault: Fault) -> None:
    """Entries that any reader of JSON takes. Their users are known to nobody else, and `verify` says so."""
    world = make_world(proxied=False)
    harmless = {name: poison.entry for name, poison in POISON.items() if not poison.reason}
    entries = {name: world.inject(entry, expects="settled") for name, entry in harmless.items()}
    world.settle()
    for service in world.services:
        assert world.bus.dead_letters("user-update", service).length() == 0
        settled = dict(sql(world.stores / f"{service}.db", "SELECT entry_id, outcome FROM settled"))
        for name, entry_id in entries.items():
            assert (name, settled[entry_id]) == (name, "applied")
    verified = world.command("verify", "--json")
    assert (verified["code"], '"orphan": 8' in verified["out"]) == (3, True), verified
    for name in entries:
        fault(f"poison · {name}").reached()
