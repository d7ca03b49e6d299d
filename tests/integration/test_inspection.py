"""What is seen of a group from outside, on every kind of server."""

from __future__ import annotations

import pytest

from imsync.bus import inspection
from imsync.bus.inspection import view_group
from tests.consumers import GROUP, Rig


def test_lag_and_pending_are_told(any_rig: Rig) -> None:
    stream = any_rig.stream
    stream.create_group(GROUP)
    any_rig.publish(range(1, 11))
    assert len(stream.read_new(GROUP, "dead-one", 3)) == 3
    view = view_group(any_rig.bus, "notes", GROUP)
    assert (view.exists, view.lag, view.pending, view.held_by_dead, view.alive) == (True, 7, 3, 3, ())
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
