"""What `Stream` promises, on every backend: fakeredis, Valkey 9.1, Redis 7.0 and Redis 6.2."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imsync.bus.entry import (
    LAST_ID,
    ConsumerInfo,
    Entry,
    GroupInfo,
    Letter,
    PendingSummary,
    StreamInfo,
    following,
    id_parts,
)
from imsync.bus.stream import Stream
from imsync.errors import GroupMissing
from tests.contract.conftest import KEY, Backend
from tests.servers import eventually

GROUP = "billing"
NOBODY_ID = "1-1"
HOUR_MS = 3_600_000


@pytest.fixture
def stream(stream_backend: Backend) -> Stream:
    return stream_backend.stream()


def ids_of(entries: list[Entry]) -> list[str]:
    return [entry.id for entry in entries]


def deliver(stream: Stream, count: int, consumer: str = "ann") -> list[str]:
    """Appends so many entries and has a consumer read them; their ids."""
    stream.create_group(GROUP)
    ids = [stream.append(b"%d" % number) for number in range(count)]
    assert ids_of(stream.read_new(GROUP, consumer, count)) == ids
    return ids


def deliveries(stream: Stream) -> dict[str, int]:
    return {entry.id: entry.deliveries for entry in stream.pending(GROUP, count=100)}


# --- writing


@pytest.mark.parametrize("body", [b"", b"{}", bytes(range(256)), "名前 \u202e".encode(), b"x" * 70_000])
def test_what_was_appended_is_read_back(stream: Stream, body: bytes) -> None:
    entry_id = stream.append(body)
    entry = Entry.of(entry_id, {b"event": body})
    assert stream.range() == [entry]
    assert entry.body == body


def test_append_many_gives_the_ids_in_order(stream: Stream) -> None:
    before = stream.append(b"before")
    ids = stream.append_many([b"a", b"b", b"c"])
    assert [(entry.id, entry.body) for entry in stream.range(following(before))] == list(
        zip(ids, [b"a", b"b", b"c"], strict=True)
    )
    assert stream.append_many([]) == []
    assert stream.length() == 4


def test_many_large_events_are_a_round_trip_in_many_pieces(stream: Stream) -> None:
    bodies = [bytes([97 + n % 26]) * (n * 997 % 60_000) for n in range(200)]
    ids = stream.append_many(bodies)
    assert [(entry.id, entry.body) for entry in stream.range()] == list(zip(ids, bodies, strict=True))


def test_a_round_trip_that_is_given_up_leaves_no_reply_for_others(stream: Stream) -> None:
    trip = stream.start_append([b"a" * 60_000, b"b"])
    trip.send_some()
    trip.abandon()
    trip.abandon()
    assert stream.append(b"c") == stream.range()[-1].id
    assert b"b" not in {entry.body for entry in stream.range()}


def test_a_round_trip_that_was_begun_and_not_sent_is_sent_at_the_end(stream: Stream) -> None:
    trip = stream.start_append([b"a", b"b"])
    assert stream.length() == 0
    assert trip.results() == [entry.id for entry in stream.range()]
    assert [entry.body for entry in stream.range()] == [b"a", b"b"]
    late = stream.start_append([b"c"])
    late.send_some()
    late.send_some()
    assert late.results() == [stream.range()[-1].id]


def test_acknowledging_counts_what_was_pending_until_now(stream: Stream) -> None:
    first, second, third = deliver(stream, 3)
    assert stream.acknowledge(GROUP, [first, second]) == 2
    assert stream.acknowledge(GROUP, [first, second]) == 0
    assert stream.acknowledge(GROUP, []) == 0
    assert stream.acknowledge("nobody", [third]) == 0
    assert list(deliveries(stream)) == [third]
    assert stream.length() == 3


def test_bury_moves_entries_to_the_dead_letters(stream_backend: Backend) -> None:
    stream, dead = stream_backend.stream(), stream_backend.stream("contract:{orders}:dead:billing")
    first, second, third = deliver(stream, 3)
    letters = [
        Letter(first, {b"reason": b"bad", b"raw.event": b"\x00"}),
        Letter(third, {b"reason": b"worse"}),
    ]
    assert stream.bury(GROUP, "ann", dead.key, letters) == letters
    assert [entry.fields for entry in dead.range()] == [letter.fields for letter in letters]
    assert list(deliveries(stream)) == [second]
    assert ids_of(stream.range()) == [first, second, third]


def test_bury_moves_only_what_the_consumer_still_holds(stream_backend: Backend) -> None:
    """Not what is settled, nor what somebody else has taken over: that is somebody else's to bury."""
    stream, dead = stream_backend.stream(), stream_backend.stream("contract:{orders}:dead:billing")
    first, second, third = deliver(stream, 3)
    letters = [Letter(each, {b"reason": b"bad"}) for each in (first, second, third)]
    stream.acknowledge(GROUP, [first])
    assert stream.claim(GROUP, "d", [second], 0)
    assert stream.bury(GROUP, "ann", dead.key, letters) == letters[2:]
    assert stream.bury(GROUP, "ann", dead.key, letters) == []
    assert dead.length() == 1
    assert [pending.id for pending in stream.pending(GROUP, count=9)] == [second]


def test_two_that_bury_the_same_entry_bury_it_once(real_backend: Backend) -> None:
    """The second comes between the look and the MULTI of the first."""
    stream, dead = real_backend.stream(), real_backend.stream("contract:{orders}:dead:billing")
    (source,) = deliver(stream, 1)
    other, looked = real_backend.stream(), stream.pending_among

    def look(*args: Any) -> Any:
        held = looked(*args)
        stream.pending_among = looked  # type: ignore[method-assign]
        assert other.claim(GROUP, "d", [source], 0)
        assert other.bury(GROUP, "d", dead.key, [Letter(source, {b"by": b"d"})])
        return held

    stream.pending_among = look  # type: ignore[method-assign]
    assert stream.bury(GROUP, "ann", dead.key, [Letter(source, {b"by": b"c"})]) == []
    assert [entry.fields for entry in dead.range()] == [{b"by": b"d"}]


def test_delete_counts_what_there_was(stream: Stream) -> None:
    first, second, third = (stream.append(b"x") for _ in range(3))
    assert stream.delete([first, second, NOBODY_ID]) == 2
    assert stream.delete([first]) == stream.delete([]) == 0
    assert ids_of(stream.range()) == [third]


# --- groups


def test_a_group_is_created_once_and_reads_from_the_start(stream: Stream) -> None:
    ids = [stream.append(b"early"), stream.append(b"earlier than the group")]
    assert stream.create_group(GROUP) is True
    assert ids_of(stream.read_new(GROUP, "ann", 1)) == ids[:1]
    assert stream.create_group(GROUP) is False
    assert ids_of(stream.read_new(GROUP, "ann", 9)) == ids[1:], "creating it again must not rewind it"


def test_a_group_may_start_elsewhere_and_before_its_stream(stream: Stream) -> None:
    assert stream.create_group("first of all") is True
    assert stream.info() is not None
    skipped, wanted = stream.append(b"skipped"), stream.append(b"wanted")
    assert stream.create_group(GROUP, start=skipped) is True
    assert ids_of(stream.read_new(GROUP, "ann", 9)) == [wanted]
    assert ids_of(stream.read_new("first of all", "ann", 9)) == [skipped, wanted]


def test_deleting_a_consumer_drops_what_it_holds(stream: Stream) -> None:
    deliver(stream, 2, "ann")
    (kept,) = deliver(stream, 1, "bob")
    assert stream.delete_consumer(GROUP, "ann") == 2
    assert stream.delete_consumer(GROUP, "ann") == 0
    assert list(deliveries(stream)) == [kept]
    assert [consumer.name for consumer in stream.consumers(GROUP)] == ["bob"]


def test_groups_and_their_consumers(stream_backend: Backend) -> None:
    stream = stream_backend.stream()
    assert stream.groups() == []
    first, second = deliver(stream, 2, "ann")
    stream.append(b"undelivered")
    stream.create_group("idle")
    known = stream_backend.features.reports_lag
    assert stream.groups() == [
        GroupInfo(GROUP, consumers=1, pending=2, last_delivered_id=second, lag=1 if known else None),
        GroupInfo("idle", consumers=0, pending=0, last_delivered_id="0-0", lag=3 if known else None),
    ]
    (ann,) = stream.consumers(GROUP)
    assert ann == ConsumerInfo("ann", pending=2, idle_ms=ann.idle_ms)
    assert 0 <= ann.idle_ms < 10_000
    assert stream.consumers("idle") == []
    stream.acknowledge(GROUP, [first])
    assert [consumer.pending for consumer in stream.consumers(GROUP)] == [1]


def test_info_knows_no_stream_from_an_empty_one(stream_backend: Backend) -> None:
    stream, known = stream_backend.stream(), stream_backend.features.counts_removed
    assert stream.info() is None
    assert (stream.range(), stream.length()) == ([], 0)
    first, second = stream.append(b"a"), stream.append(b"b")
    assert stream.info() == StreamInfo(2, first, second, second, removed=0 if known else None)
    stream.delete([second])
    assert stream.info() == StreamInfo(1, first, first, second, removed=1 if known else None)
    stream.delete([first])
    assert stream.info() == StreamInfo(0, None, None, second, removed=2 if known else None)


# --- reading


def test_new_entries_go_to_one_consumer_each(stream: Stream) -> None:
    stream.create_group(GROUP)
    ids = [stream.append(b"x") for _ in range(5)]
    assert ids_of(stream.read_new(GROUP, "ann", 2)) == ids[:2]
    assert ids_of(stream.read_new(GROUP, "bob", 9)) == ids[2:]
    assert stream.read_new(GROUP, "ann", 9) == []
    assert stream.pending_summary(GROUP).by_consumer == {"ann": 2, "bob": 3}


def test_a_blocking_read_wakes_up_when_an_entry_arrives(stream_backend: Backend) -> None:
    reader, writer = stream_backend.stream(block_ms=20_000), stream_backend.stream()
    writer.create_group(GROUP)
    if not stream_backend.features.blocks_with_count:
        assert reader.read_new(GROUP, "ann", 9, block_ms=20_000) == []
        return
    got: list[Entry] = []
    client = stream_backend.client()
    thread = threading.Thread(target=lambda: got.extend(reader.read_new(GROUP, "ann", 9, block_ms=20_000)))
    thread.start()
    try:
        eventually(lambda: client.info("clients")["blocked_clients"] == 1)
        assert not got
    finally:
        entry_id = writer.append(b"wake up")
        thread.join(10)
    assert got == [Entry.of(entry_id, {b"event": b"wake up"})]


def test_what_is_asked_for_ahead_is_the_consumers_at_once(stream: Stream) -> None:
    stream.create_group(GROUP)
    ids = [stream.append(b"%d" % number) for number in range(3)]
    ahead = stream.begin_read_new(GROUP, "ann", 2, 7.0)
    eventually(lambda: deliveries(stream) == dict.fromkeys(ids[:2], 1))
    assert stream.read_new(GROUP, "bob", 9) == [Entry.of(ids[2], {b"event": b"2"})], (
        "and other commands go on meanwhile"
    )
    assert ahead.entries() == [Entry.of(ids[0], {b"event": b"0"}), Entry.of(ids[1], {b"event": b"1"})]
    assert (ahead.count, ahead.since) == (2, 7.0)
    assert stream.begin_read_new(GROUP, "ann", 2, 7.0).entries() == []


def test_what_is_asked_for_ahead_and_dropped_stays_pending(stream: Stream) -> None:
    stream.create_group(GROUP)
    ids = [stream.append(b"%d" % number) for number in range(3)]
    ahead = stream.begin_read_new(GROUP, "ann", 2, 0.0)
    eventually(lambda: len(deliveries(stream)) == 2)
    ahead.drop()
    assert ids_of(stream.read_new(GROUP, "ann", 9)) == ids[2:], "and its reply is nobody else's"
    assert ids_of(stream.read_own(GROUP, "ann", "0", 9)) == ids


def test_asking_ahead_a_group_that_is_not_there(stream: Stream) -> None:
    stream.append(b"0")
    ahead = stream.begin_read_new(GROUP, "ann", 2, 0.0)
    with pytest.raises(GroupMissing):
        ahead.entries()
    assert stream.create_group(GROUP), "and the connection is as good as before"


def test_a_blocking_read_gives_up_in_time(stream_backend: Backend) -> None:
    stream = stream_backend.stream(block_ms=60)
    stream.create_group(GROUP)
    began = time.monotonic()
    assert stream.read_new(GROUP, "ann", 9, block_ms=60) == []
    assert (time.monotonic() - began >= 0.06) is stream_backend.features.blocks_with_count


def test_entries_are_read_for_no_group(stream: Stream) -> None:
    assert stream.read_after("0-0", 9) == []
    ids = deliver(stream, 3)
    before = stream.groups()
    assert ids_of(stream.read_after("0-0", 2)) == ids[:2]
    assert ids_of(stream.read_after(ids[1], 2)) == ids[2:]
    assert stream.read_after(ids[2], 9) == []
    assert stream.read_after(ids[2], 9, block_ms=1) == []
    assert stream.groups() == before, "nothing is moved or noted"


@pytest.mark.parametrize("there_is", ["an entry", "no stream"])
def test_a_reader_for_no_group_wakes_up_when_an_entry_arrives(real_backend: Backend, there_is: str) -> None:
    reader, writer = real_backend.stream(block_ms=20_000), real_backend.stream()
    last = writer.append(b"before") if there_is == "an entry" else "0-0"
    got: list[Entry] = []
    client = real_backend.client()
    thread = threading.Thread(target=lambda: got.extend(reader.read_after(last, 9, block_ms=20_000)))
    thread.start()
    try:
        eventually(lambda: client.info("clients")["blocked_clients"] == 1)
        assert not got
    finally:
        entry_id = writer.append(b"wake up")
        thread.join(10)
    assert got == [Entry.of(entry_id, {b"event": b"wake up"})]


def test_a_reader_for_no_group_gives_up_in_time(stream_backend: Backend) -> None:
    stream = stream_backend.stream(block_ms=60)
    began = time.monotonic()
    assert stream.read_after("0-0", 9, block_ms=60) == []
    assert time.monotonic() - began >= 0.06


def test_a_stream_that_is_made_anew_is_read_on(real_backend: Backend) -> None:
    """Deleted under a blocked reader: no error, and the next entry comes."""
    reader, writer = real_backend.stream(block_ms=20_000), real_backend.stream()
    last, client = writer.append(b"before"), real_backend.client()
    got: list[Entry] = []
    thread = threading.Thread(target=lambda: got.extend(reader.read_after(last, 9, block_ms=20_000)))
    thread.start()
    try:
        eventually(lambda: client.info("clients")["blocked_clients"] == 1)
        client.delete(KEY)
        eventually(lambda: _milliseconds(client) > id_parts(last)[0])  # else it would be given the same id again
    finally:
        entry_id = writer.append(b"after")
        thread.join(10)
    assert ids_of(got) == [entry_id]


def _milliseconds(client: Any) -> int:
    seconds, microseconds = client.time()
    return int(seconds * 1000 + microseconds // 1000)


def test_own_entries_are_read_page_by_page(stream: Stream) -> None:
    ids = deliver(stream, 5, "ann")
    deliver(stream, 1, "bob")
    stream.append(b"undelivered")
    stream.acknowledge(GROUP, [ids[1]])
    assert ids_of(stream.read_own(GROUP, "ann", "0", 2)) == [ids[0], ids[2]]
    assert ids_of(stream.read_own(GROUP, "ann", ids[2], 2)) == ids[3:]
    assert stream.read_own(GROUP, "ann", ids[4], 2) == []
    assert stream.read_own(GROUP, "eve", "0", 9) == []
    assert [deliveries(stream)[entry_id] for entry_id in [ids[0], *ids[2:]]] == [2, 2, 2, 2]


def test_own_entries_that_were_deleted_are_empty(stream: Stream) -> None:
    gone, there = deliver(stream, 2)
    stream.delete([gone])
    entries = stream.read_own(GROUP, "ann", "0", 9)
    assert entries == [Entry.of(gone, {}), Entry.of(there, {b"event": b"1"})]
    assert entries[0].body is None
    assert stream.acknowledge(GROUP, [gone]) == 1


def test_a_range_includes_its_ends(stream: Stream) -> None:
    ids = [stream.append(b"x") for _ in range(5)]
    assert ids_of(stream.range()) == ids
    assert ids_of(stream.range(ids[1], ids[3])) == ids[1:4]
    assert ids_of(stream.range(following(ids[1]))) == ids[2:]
    assert ids_of(stream.range(ids[1], count=2)) == ids[1:3]
    assert stream.range(following(ids[4])) == stream.range(NOBODY_ID, NOBODY_ID) == []


def test_fetching_keeps_the_order_and_tells_what_is_gone(stream: Stream) -> None:
    gone, there = stream.append(b"x"), stream.append(b"y")
    stream.delete([gone])
    assert stream.fetch([there, gone]) == [Entry.of(there, {b"event": b"y"}), Entry.of(gone, {})]
    assert stream.fetch([]) == []


def test_behind_the_largest_id_there_is_nothing(stream: Stream) -> None:
    """The server calls such a range an error."""
    stream.create_group(GROUP)
    stream._client.xadd(stream.key, {"event": "x"}, id=LAST_ID)
    assert ids_of(stream.range()) == [LAST_ID]
    assert stream.range(following(LAST_ID)) == []
    assert stream.pending(GROUP, start=following(LAST_ID), count=5) == []


def test_existing_tells_what_is_still_there(stream: Stream) -> None:
    gone, there = stream.append(b"x"), stream.append(b"x")
    stream.delete([gone])
    assert stream.existing([there, gone, NOBODY_ID]) == {there}
    assert stream.existing([]) == set()


# --- pending entries


def test_pending_entries_by_range_consumer_and_idle_time(stream_backend: Backend) -> None:
    stream = stream_backend.stream()
    anns, bobs = deliver(stream, 3, "ann"), deliver(stream, 2, "bob")
    first = stream.pending(GROUP, count=1)[0]
    assert (first.id, first.consumer, first.deliveries) == (anns[0], "ann", 1)
    assert 0 <= first.idle_ms < 10_000

    def found(count: int = 9, **filters: object) -> list[str]:
        return [entry.id for entry in stream.pending(GROUP, count=count, **filters)]  # type: ignore[arg-type]

    assert found() == anns + bobs
    assert found(count=2) == anns[:2]
    assert found(start=anns[1], end=bobs[0]) == [*anns[1:], bobs[0]]
    assert found(start=following(anns[1])) == [anns[2], *bobs]
    assert found(consumer="bob") == bobs
    assert found(consumer="eve") == []
    stream_backend.let_time_pass(GROUP, "ann", anns[1:], 2 * HOUR_MS)
    assert found(min_idle_ms=HOUR_MS) == anns[1:]
    assert found(min_idle_ms=HOUR_MS, consumer="ann", count=1) == anns[1:2]
    assert found(min_idle_ms=3 * HOUR_MS) == []


def test_the_summary_of_pending_entries(stream: Stream) -> None:
    stream.create_group(GROUP)
    assert stream.pending_summary(GROUP) == PendingSummary(0, None, {})
    anns, bobs = deliver(stream, 3, "ann"), deliver(stream, 1, "bob")
    assert stream.pending_summary(GROUP) == PendingSummary(4, anns[0], {"ann": 3, "bob": 1})
    stream.acknowledge(GROUP, anns)
    assert stream.pending_summary(GROUP) == PendingSummary(1, bobs[0], {"bob": 1})


def test_a_claim_takes_what_is_pending_and_idle_for_so_long(stream_backend: Backend) -> None:
    stream = stream_backend.stream()
    idle, busy, done = deliver(stream, 3)
    stream.acknowledge(GROUP, [done])
    stream_backend.let_time_pass(GROUP, "ann", [idle], HOUR_MS)
    assert stream.claim(GROUP, "bob", [idle, busy, done, NOBODY_ID], HOUR_MS) == [Entry.of(idle, {b"event": b"0"})]
    assert stream.pending_summary(GROUP).by_consumer == {"ann": 1, "bob": 1}
    assert deliveries(stream) == {idle: 2, busy: 1}
    assert stream.claim(GROUP, "eve", [idle], HOUR_MS) == [], "a claim ends the idle time"


def test_a_claim_leaves_out_what_was_trimmed(stream_backend: Backend) -> None:
    stream = stream_backend.stream()
    trimmed, there = deliver(stream, 2)
    stream.delete([trimmed])
    assert ids_of(stream.claim(GROUP, "bob", [trimmed, there], 0)) == [there]
    forgotten = stream_backend.features.claim_forgets_trimmed
    assert stream.pending_summary(GROUP).by_consumer == {"bob": 1 if forgotten else 2}
    assert stream.acknowledge(GROUP, [trimmed]) == (0 if forgotten else 1)


def test_keeping_ends_the_idle_time_and_counts_no_delivery(stream_backend: Backend) -> None:
    stream = stream_backend.stream()
    idle, busy = deliver(stream, 2)
    stream_backend.let_time_pass(GROUP, "ann", [idle], HOUR_MS)
    assert stream.keep(GROUP, "ann", [idle, busy, NOBODY_ID], HOUR_MS) == [idle]
    assert stream.pending(GROUP, count=9, min_idle_ms=HOUR_MS) == []
    assert deliveries(stream) == {idle: 1, busy: 1}
    assert stream.pending_summary(GROUP).by_consumer == {"ann": 2}


def test_names_that_are_not_text_come_back_as_they_are(real_backend: Backend) -> None:
    name = b"\xffann\x00"
    stream, client = real_backend.stream(), real_backend.client()
    stream.create_group(GROUP)
    entry_id = stream.append(b"x")
    client.xreadgroup(GROUP, name, {KEY: ">"})
    client.xgroup_create(KEY, b"\xfe", "0")
    assert {group.name.encode(errors="surrogateescape") for group in stream.groups()} == {GROUP.encode(), b"\xfe"}
    (consumer,) = stream.consumers(GROUP)
    assert consumer.name.encode(errors="surrogateescape") == name
    assert stream.pending_summary(GROUP).by_consumer == {consumer.name: 1}
    (pending,) = stream.pending(GROUP, count=9, consumer=consumer.name)
    assert (pending.id, pending.consumer) == (entry_id, consumer.name)


# --- what is not there

NEEDS_A_GROUP: dict[str, Callable[[Stream], object]] = {
    "consumers": lambda stream: stream.consumers(GROUP),
    "delete_consumer": lambda stream: stream.delete_consumer(GROUP, "ann"),
    "read_new": lambda stream: stream.read_new(GROUP, "ann", 1),
    "read_new, blocking": lambda stream: stream.read_new(GROUP, "ann", 1, block_ms=10),
    "read_own": lambda stream: stream.read_own(GROUP, "ann", "0", 1),
    "pending_summary": lambda stream: stream.pending_summary(GROUP),
    "pending": lambda stream: stream.pending(GROUP, count=1),
    "claim": lambda stream: stream.claim(GROUP, "ann", [NOBODY_ID], 1),
    "keep": lambda stream: stream.keep(GROUP, "ann", [NOBODY_ID], 1),
}


@pytest.mark.parametrize("command", NEEDS_A_GROUP.values(), ids=NEEDS_A_GROUP)
@pytest.mark.parametrize("there_is", ["no stream", "no group", "another group"])
def test_a_missing_group_is_always_the_same_error(
    stream: Stream, there_is: str, command: Callable[[Stream], object]
) -> None:
    if there_is != "no stream":
        stream.append(b"x")
    if there_is == "another group":
        stream.create_group("another")
    with pytest.raises(GroupMissing, match="no such stream or group"):
        command(stream)
    assert (stream.info() is None) is (there_is == "no stream"), "asking must create nothing"


def test_nothing_to_claim_is_nothing_to_do(stream: Stream) -> None:
    deliver(stream, 1)
    assert stream.claim(GROUP, "bob", [], 0) == []
    assert stream.keep(GROUP, "bob", [], 0) == []


# --- entry ids


@pytest.mark.parametrize(("entry_id", "parts"), [("1-2", (1, 2)), ("17", (17, 0)), ("0-0", (0, 0))])
def test_an_entry_id_as_numbers(entry_id: str, parts: tuple[int, int]) -> None:
    assert id_parts(entry_id) == parts


def test_entry_ids_order_as_the_server_orders_them(stream_backend: Backend) -> None:
    client = stream_backend.client()
    ids = ["9-10", "10-2", "10-10", "100-1", f"{2**64 - 1}-{2**64 - 1}"]
    for entry_id in ids:
        client.xadd(KEY, {b"event": b""}, id=entry_id)
    stream = stream_backend.stream()
    assert ids_of(stream.range()) == sorted(sorted(ids), key=id_parts) == ids


@given(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1)))
def test_every_entry_id_survives_the_way_to_numbers_and_back(parts: tuple[int, int]) -> None:
    assert id_parts("{}-{}".format(*parts)) == parts
