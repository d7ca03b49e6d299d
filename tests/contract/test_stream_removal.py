"""What `Stream` promises about what leaves a stream, entries and groups, on every backend."""

from __future__ import annotations

import time

import pytest

from imsync.bus.stream import Stream
from imsync.errors import GroupMissing, RedisRefused
from tests.contract.conftest import KEY, Backend

GROUP = "billing"


@pytest.fixture
def stream(stream_backend: Backend) -> Stream:
    return stream_backend.stream()


def fill(backend: Backend, count: int) -> list[str]:
    """Adds entries with the ids 1-0, 2-0, …"""
    pipeline = backend.client().pipeline(transaction=False)
    for number in range(1, count + 1):
        pipeline.xadd(KEY, {b"event": b"x"}, id=f"{number}-0")
    return [entry_id.decode() for entry_id in pipeline.execute()]


def ids_of(stream: Stream) -> list[str]:
    return [entry.id for entry in stream.range()]


# --- trimming


def test_exactly_what_is_below_the_id_is_trimmed(stream_backend: Backend) -> None:
    stream, ids = stream_backend.stream(), fill(stream_backend, 250)
    assert stream.trim("1-0", exact=True) == 0
    assert stream.trim("3-0", exact=True) == 2
    assert ids_of(stream) == ids[2:]
    assert stream.trim("3-1", exact=True) == 1
    assert stream.trim("9-0", exact=True) == 5
    assert stream.trim("2-0", exact=True) == 0
    assert ids_of(stream) == ids[8:]
    assert stream.trim(f"{2**64 - 1}-{2**64 - 1}", exact=True) == 242
    assert stream.trim("999-0") == stream.trim("999-0", exact=True) == 0
    assert stream.length() == 0


def test_without_exact_never_more_is_trimmed_than_asked(stream_backend: Backend) -> None:
    stream = stream_backend.stream()
    ids = fill(stream_backend, 1000)
    assert stream.trim("100-0") == 0, "a node that is needed in part stays whole"
    removed = stream.trim("555-0")
    assert removed in (500, 554)
    assert ids_of(stream) == ids[removed:]


def test_one_step_removes_so_many_at_most(stream_backend: Backend) -> None:
    stream = stream_backend.stream()
    fill(stream_backend, 12_000)
    assert [stream.trim("99999-0") for _ in range(3)] == [10_000, 2000, 0]


def test_a_pending_entry_that_was_trimmed_is_still_pending(stream_backend: Backend) -> None:
    """Which is why nobody may trim past what a group has not acknowledged."""
    stream = stream_backend.stream()
    ids = fill(stream_backend, 3)
    stream.create_group(GROUP)
    stream.read_new(GROUP, "ann", 2)
    assert stream.trim("3-0", exact=True) == 2
    assert stream.pending_summary(GROUP).oldest_id == ids[0]
    assert [entry.body for entry in stream.read_own(GROUP, "ann", "0", 9)] == [None, None]


def test_trimming_is_counted_where_the_server_counts(stream_backend: Backend) -> None:
    stream = stream_backend.stream()
    fill(stream_backend, 5)
    known = stream_backend.features.counts_removed
    info = stream.info()
    assert info is not None
    assert info.removed == (0 if known else None)
    stream.trim("3-0", exact=True)
    info = stream.info()
    assert info is not None
    assert (info.length, info.first_id, info.removed) == (3, "3-0", 2 if known else None)


def test_trimming_no_stream_makes_none(stream: Stream) -> None:
    assert stream.trim("1-0") == stream.trim("1-0", exact=True) == 0
    assert stream.info() is None


@pytest.mark.parametrize("exact", [True, False])
def test_a_refusal_is_an_error(real_backend: Backend, exact: bool) -> None:
    real_backend.client().set(KEY, b"text")
    with pytest.raises(RedisRefused, match="WRONGTYPE"):
        real_backend.stream().trim("1-0", exact=exact)


# --- the clock


def test_the_servers_clock_is_that_of_its_entry_ids(stream: Stream) -> None:
    before = stream.server_time_ms()
    milliseconds = int(stream.append(b"x").partition("-")[0])
    after = stream.server_time_ms()
    assert before <= milliseconds <= after
    assert abs(after - time.time() * 1000) < 60_000


# --- groups


def test_a_destroyed_group_forgets_everything(stream_backend: Backend) -> None:
    stream, ids = stream_backend.stream(), fill(stream_backend, 3)
    stream.create_group(GROUP)
    stream.create_group("another")
    stream.read_new(GROUP, "ann", 2)
    assert stream.destroy_group(GROUP) is True
    assert [group.name for group in stream.groups()] == ["another"]
    with pytest.raises(GroupMissing):
        stream.pending_summary(GROUP)
    assert stream.destroy_group(GROUP) is False
    assert ids_of(stream) == ids
    stream.create_group(GROUP)
    assert [entry.id for entry in stream.read_new(GROUP, "ann", 9)] == ids, "it begins again"


def test_destroying_a_group_of_no_stream(stream: Stream) -> None:
    assert stream.destroy_group(GROUP) is False
    assert stream.info() is None


def test_a_group_can_begin_with_what_comes_next(stream: Stream) -> None:
    stream.append(b"passed over")
    assert stream.create_group(GROUP, "$") is True
    assert stream.read_new(GROUP, "ann", 9) == []
    wanted = stream.append(b"wanted")
    assert [entry.id for entry in stream.read_new(GROUP, "ann", 9)] == [wanted]


def test_a_group_whose_name_is_no_text_can_be_looked_at_and_destroyed(real_backend: Backend) -> None:
    stream, client = real_backend.stream(), real_backend.client()
    entry_id = stream.append(b"x")
    client.xgroup_create(KEY, b"\xfe\x1b", "0")
    client.xreadgroup(b"\xfe\x1b", b"\xff", {KEY: ">"})
    (group,) = stream.groups()
    (consumer,) = stream.consumers(group.name)
    assert stream.pending_summary(group.name).by_consumer == {consumer.name: 1}
    assert [entry.id for entry in stream.pending(group.name, count=9)] == [entry_id]
    assert stream.destroy_group(group.name) is True
    assert stream.groups() == []
