"""What is seen of a group from outside, on every kind of server."""

from __future__ import annotations

import pytest

from imsync.bus import inspection
from imsync.bus.entry import id_after
from imsync.bus.inspection import ConsumerView, view_consumers, view_group, view_groups, view_retention
from imsync.bus.liveness import Life
from imsync.bus.publisher import PublishIncomplete
from imsync.bus.retention import Retention
from imsync.errors import GroupMissing
from tests.consumers import GROUP, Rig


def test_lag_and_pending_are_told(any_rig: Rig) -> None:
    stream = any_rig.stream
    stream.create_group(GROUP)
    any_rig.publish(range(1, 11))
    assert len(stream.read_new(GROUP, "dead-one", 3)) == 3
    view = view_group(any_rig.bus, "notes", GROUP)
    assert (view.exists, view.lag, view.pending, view.held_by_dead, view.alive) == (True, 7, 3, 3, ())
    assert view.consumers == 1
    assert view.lag_seconds is not None
    assert view.oldest_pending_seconds is not None
    any_rig.client.set(any_rig.keys.alive(GROUP, "dead-one"), "", px=60_000)
    view = view_group(any_rig.bus, "notes", GROUP)
    assert (view.held_by_dead, view.alive) == (0, ("dead-one",))


def test_what_was_trimmed_unread_is_not_waiting(any_rig: Rig) -> None:
    stream = any_rig.stream
    stream.create_group(GROUP)
    any_rig.publish(range(1, 11))
    stream.acknowledge(GROUP, [entry.id for entry in stream.read_new(GROUP, "c", 3)])
    any_rig.client.xtrim(any_rig.keys.stream, maxlen=2, approximate=False)
    assert view_group(any_rig.bus, "notes", GROUP).lag == 2


def test_a_lag_that_nobody_can_tell_is_unknown_and_never_0(any_rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = any_rig.stream
    stream.create_group(GROUP)
    ids = any_rig.publish(range(1, 11))
    stream.read_new(GROUP, "c", 3)
    stream.delete([ids[5]])  # from 7.0 on the server's own number is null then
    assert view_group(any_rig.bus, "notes", GROUP).lag == 6
    monkeypatch.setattr(inspection, "COUNT_LIMIT", 4)
    view = view_group(any_rig.bus, "notes", GROUP)
    assert view.lag is None
    assert view.lag_seconds is not None


def test_nothing_there_at_all(any_rig: Rig) -> None:
    view = view_group(any_rig.bus, "notes", GROUP)
    assert (view.exists, view.lag, view.lag_seconds, view.pending, view.dead) == (False, 0, 0.0, 0, 0)


# ── all groups, and their consumers ──────────────────────────────────────────────────────────────────────

HOSTILE = b"\xfe\x1b[2J"


def test_every_group_is_seen_whoever_made_it(any_rig: Rig) -> None:
    assert view_groups(any_rig.bus, "notes") == []
    stream = any_rig.stream
    stream.create_group(GROUP)
    any_rig.publish([1, 2])
    any_rig.client.xgroup_create(any_rig.keys.stream, HOSTILE, "$")
    any_rig.client.xadd(any_rig.keys.dead(GROUP), {"reason": "bad"})
    stream.read_new(GROUP, "ann", 1)
    views = view_groups(any_rig.bus, "notes")
    names = [view.group.encode(errors="surrogateescape") for view in views]
    assert names == [GROUP.encode(), HOSTILE]
    assert [(view.lag, view.pending, view.consumers, view.dead) for view in views] == [(1, 1, 1, 1), (0, 0, 0, 0)]
    assert views[0].last_delivered_id == stream.range()[0].id


def test_every_consumer_is_seen_alive_or_not(any_rig: Rig) -> None:
    with pytest.raises(GroupMissing):
        view_consumers(any_rig.bus, "notes", GROUP)
    stream = any_rig.stream
    stream.create_group(GROUP)
    assert view_consumers(any_rig.bus, "notes", GROUP) == []
    any_rig.publish([1, 2, 3])
    any_rig.client.set(any_rig.keys.alive(GROUP, "bob"), "", px=60_000)
    stream.read_new(GROUP, "bob", 1)
    any_rig.client.xreadgroup(GROUP, HOSTILE, {any_rig.keys.stream: ">"}, count=2)
    bob, other = view_consumers(any_rig.bus, "notes", GROUP)
    assert bob == ConsumerView(GROUP, "bob", 1, bob.idle_ms, Life(None, None, None, None))
    assert (other.name.encode(errors="surrogateescape"), other.alive, other.pending) == (HOSTILE, False, 2)
    assert 0 <= other.idle_ms <= bob.idle_ms < 10_000


# ── what the stream holds ────────────────────────────────────────────────────────────────────────────────

HOUR_MS = 3_600_000


def add(rig: Rig, hours_ago: int) -> str:
    now_ms = rig.stream.server_time_ms()
    added: bytes = rig.client.xadd(rig.keys.stream, {"event": b"x"}, id=f"{now_ms - hours_ago * HOUR_MS}-0")
    return added.decode()


def test_what_the_stream_holds_and_for_whom(any_rig: Rig) -> None:
    retention = Retention(hours=168, entries=2)
    view = view_retention(any_rig.bus, "notes", retention)
    assert (view.length, view.first_id, view.oldest_seconds, view.floor, view.waiting_seconds) == (0, *[None] * 4)
    assert (view.groups, view.pinned_by, view.retention) == ((), None, retention)
    stream = any_rig.stream
    first, second = add(any_rig, 200), add(any_rig, 100)
    stream.create_group("quick")
    stream.create_group("slow")
    stream.acknowledge("quick", [entry.id for entry in stream.read_new("quick", "ann", 2)])
    stream.read_new("slow", "ann", 2)
    view = view_retention(any_rig.bus, "notes", retention)
    assert (view.length, view.first_id, view.floor, view.floor_group) == (2, first, first, "slow")
    assert view.oldest_seconds == view.waiting_seconds == pytest.approx(200 * 3600, abs=60)
    assert (view.groups, view.pinned_by) == (("quick", "slow"), "slow")

    stream.acknowledge("slow", [first])
    view = view_retention(any_rig.bus, "notes", retention)
    assert (view.first_id, view.floor, view.pinned_by) == (first, second, None)
    assert view.waiting_seconds == pytest.approx(100 * 3600, abs=60)
    add(any_rig, 50)
    assert view_retention(any_rig.bus, "notes", retention).pinned_by == "slow", "for the number's sake"

    for group in ("quick", "slow"):
        stream.acknowledge(group, [second, *(entry.id for entry in stream.read_new(group, "ann", 9))])
    view = view_retention(any_rig.bus, "notes", retention)
    assert view.floor == id_after(stream.range()[-1].id)
    assert (view.length, view.waiting_seconds, view.pinned_by) == (3, None, None)


# ── the last id that there is ────────────────────────────────────────────────────────────────────────────

LAST = f"{2**64 - 1}-{2**64 - 1}"


def test_a_stream_that_was_given_the_last_id_can_be_looked_at(any_rig: Rig) -> None:
    stream, client = any_rig.stream, any_rig.client
    stream.create_group(GROUP)
    any_rig.publish([1])
    client.xadd(any_rig.keys.stream, {"event": b"x"}, id=LAST)
    view = view_group(any_rig.bus, "notes", GROUP)
    assert (view.lag, view.beyond_end) == (2, False)
    stream.acknowledge(GROUP, [stream.read_new(GROUP, "ann", 1)[0].id])
    view = view_group(any_rig.bus, "notes", GROUP)
    assert (view.lag, view.lag_seconds) == (1, None), "its id tells no time"
    assert view_retention(any_rig.bus, "notes", Retention()).full
    stream.acknowledge(GROUP, [stream.read_new(GROUP, "ann", 1)[0].id])
    view = view_group(any_rig.bus, "notes", GROUP)
    assert (view.lag, view.lag_seconds, view.last_delivered_id, view.beyond_end) == (0, 0.0, LAST, False)
    assert view_retention(any_rig.bus, "notes", Retention()).full
    with pytest.raises(PublishIncomplete):
        any_rig.publish([2])


def test_a_lag_that_is_unknown_is_not_below_what_was_counted(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.stream.create_group(GROUP)
    ids = rig.publish(range(1, 11))
    rig.stream.read_new(GROUP, "c", 3)
    rig.stream.delete([ids[5]])
    monkeypatch.setattr(inspection, "COUNT_LIMIT", 4)
    view = view_group(rig.bus, "notes", GROUP)
    assert (view.lag, view.lag_at_least) == (None, 4)
