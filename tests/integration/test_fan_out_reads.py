"""What `verify`, an export and a trace say of a user whose rows are being written a few at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from unittest.mock import patch

import pytest

from imsync.bus import ConsumerOptions
from imsync.bus.deferred import finish
from imsync.im import fan_out
from imsync.im.causes import Cause, Place
from imsync.im.events import DESTINATION
from imsync.im.export import ExportedCopies, export_copies
from imsync.im.flight import ExportFlight, barrier
from imsync.im.group_store import GroupStore
from imsync.im.overview import look
from imsync.im.rebuild import rebuild
from imsync.im.relay import Relay
from imsync.im.trace import Standing, trace
from imsync.im.verify import verify
from imsync.im.workspace import Workspace
from tests.drifting import World, make_world
from tests.servers import Server
from tests.stores import MIA, nick, sql


@pytest.fixture
def world(tmp_path: Path, server: Server) -> Iterator[World]:
    """Mia is in six groups, and that is very many."""
    with ExitStack() as stack:
        world = make_world(tmp_path, server.url, stack)
        for group in range(10, 15):
            world.groups.join(group, MIA.id)
        stack.enter_context(patch.multiple(fan_out, FAN_OUT_ROWS=2, PIECE_ROWS=2))
        yield world


class Leaving:
    """The group store, for a consumer that ends before it goes on with anything."""

    def __init__(self, groups: GroupStore) -> None:
        self._groups = groups

    def __getattr__(self, name: str) -> object:
        if name == "go_on":
            raise AttributeError(name)
        return getattr(self._groups, name)

    def apply(self, batch: object) -> object:
        return self._groups.apply(batch)  # type: ignore[arg-type]


def begin(world: World, name: str, pieces: int = 1) -> None:
    """An edit whose event is settled, and whose fan-out stands after so many pieces."""
    world.edit(nick(MIA.id, name))
    world.relay()
    world.consume(Leaving(world.groups))
    for _ in range(pieces):
        world.groups.go_on()


def test_rows_that_a_fan_out_will_come_to_are_in_flight(world: World) -> None:
    begin(world, "Mia 2")
    verdict = world.verify()
    assert (verdict.drift, verdict.ways, verdict.unfinished) == (0, {Place.FAN_OUT: 1}, {"group": 1})
    assert world.verify(keys=[MIA.id]).ways == {Place.FAN_OUT: 1}
    world.consume()
    assert world.found() == {}


def test_a_row_that_it_has_left_behind_is_drift(world: World) -> None:
    begin(world, "Mia 2")
    world.group_sql("UPDATE im_group_member SET user_nick_name = 'by hand' WHERE user_id = ? AND group_id = 7", MIA.id)
    drift = world.drift()
    assert (drift.cause, drift.detail) == (Cause.EDITED, "1 of 6 rows show what no remembered event has said")
    finish(world.groups)
    assert world.found() == {"edited": 1}
    begin(world, "Mia 3", pieces=9)
    assert world.found() == {}


def test_a_newer_event_explains_it_whatever_the_fan_out_does(world: World) -> None:
    begin(world, "Mia 2")
    world.edit(nick(MIA.id, "Mia 3"))
    assert world.verify().ways == {Place.OUTBOX: 1}
    world.relay()
    world.consume(Leaving(world.groups))
    assert world.verify().ways == {Place.FAN_OUT: 1}
    world.consume()
    assert world.found() == {}


def test_an_export_tells_it_too(world: World, tmp_path: Path) -> None:
    begin(world, "Mia 2")
    path = tmp_path / "group.ndjson"
    settled_below = barrier(world.stream, "group")
    export_copies(world.groups, path, barrier=settled_below)
    with closing(ExportedCopies(path, {"group": GroupStore.expected})) as copies:
        assert copies.state(MIA.id) == world.groups.state(MIA.id)
        verdict = verify(world.users, [copies], lambda name: ExportFlight(settled_below, world.flight_to(name)))
    assert (verdict.drift, verdict.ways) == (0, {Place.FAN_OUT: 1})


def test_a_trace_says_how_far_it_is(world: World) -> None:
    begin(world, "Mia 2")
    found = trace(world.users, {"group": world.groups}, world.bus, MIA.id)
    (service,) = found.services
    assert service.copies is not None
    assert (service.copies.visited, service.copies.rows, service.copies.right) == (2, 6, False)
    what = "the fan-out of version 2 in group has come to 2 of 6 rows, and no consumer is alive"
    assert (service.standing, service.what, service.remedy) == (Standing.WRONG, what, "imsync consume group")
    world.consume()
    found = trace(world.users, {"group": world.groups}, world.bus, MIA.id)
    assert found.services[0].copies is not None
    assert (found.standing, found.services[0].copies.visited) == (Standing.IN_STEP, None)


def test_status_says_it_at_once_and_is_red_when_nobody_goes_on(world: World) -> None:
    begin(world, "Mia 2")
    (late,) = sql(world.groups.path, "SELECT moved_ms FROM fan_out")
    workspace = Workspace(world.groups.path.parent)

    def group(after_ms: int) -> tuple[object, list[str]]:
        seen = look(world.bus, workspace, ConsumerOptions().retention, whole=False, clock_ms=lambda: late[0] + after_ms)
        (found,) = (each for each in seen.groups if each.view.group == "group")
        return found.fan_out, [f"{each.kind}: {each.what}; {each.remedy}" for each in found.problems]

    unfinished, problems = group(2000)
    assert (unfinished.users, unfinished.seconds, problems) == (1, 2.0, [])  # type: ignore[attr-defined]
    what = "fan_out: the group service has not finished the fan-out of 1 user and no consumer is alive; "
    assert group(31_000)[1] == [what + "imsync consume group"]
    finish(world.groups)
    unfinished, problems = group(31_000)
    assert (unfinished.users, unfinished.seconds, problems) == (0, None, [])  # type: ignore[attr-defined]


def test_a_rebuild_ends_when_every_row_is_as_the_source_says(world: World) -> None:
    begin(world, "Mia 2")
    world.group_sql("UPDATE im_group_member SET user_nick_name = 'by hand'")
    world.group_sql("DELETE FROM fan_out")
    relay = Relay(world.users, world.bus.publisher(DESTINATION))
    options = ConsumerOptions(until_empty=True, heartbeat_ms=100, block_ms=20)
    done = rebuild(world.users, world.groups, world.bus, DESTINATION, relay, options=options)
    assert (done.users, done.changed) == (3, 3)
    assert world.groups.put_off.users == 0
    assert world.found() == {}


def test_a_store_is_not_whole_before_its_rows_are(world: World) -> None:
    world.group_sql("UPDATE im_group_member SET user_nick_name = 'by hand' WHERE user_id = ?", MIA.id)
    relay = Relay(world.users, world.bus.publisher(DESTINATION))
    options = ConsumerOptions(until_empty=True, heartbeat_ms=100, block_ms=20)
    go_on = world.groups.go_on

    def cut_short() -> bool:
        go_on()
        if world.groups.put_off.users:
            raise KeyboardInterrupt
        return False

    with patch.object(world.groups, "go_on", cut_short), pytest.raises(KeyboardInterrupt):
        rebuild(world.users, world.groups, world.bus, DESTINATION, relay, options=options)
    assert sql(world.groups.path, "SELECT 1 FROM meta WHERE key = 'unfinished'") == [(1,)]
    rebuild(world.users, world.groups, world.bus, DESTINATION, relay, options=options)
    assert world.groups.generation
    assert world.found() == {}
