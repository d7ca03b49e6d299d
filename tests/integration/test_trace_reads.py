"""`trace` beside traffic, and where what it reads does not agree at first sight."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from imsync.im.causes import Cause, Mend
from imsync.im.trace import MAX_LOOKS, ServiceTrace, Standing, trace
from tests.drifting import World, make_world
from tests.servers import Server
from tests.stores import GONE, MIA, nick


@pytest.fixture
def world(tmp_path: Path, server: Server) -> Iterator[World]:
    with ExitStack() as stack:
        yield make_world(tmp_path, server.url, stack)


def traced(world: World, user_id: int, store: Any = None) -> ServiceTrace:
    (service,) = trace(world.users, {"group": store or world.groups}, world.bus, user_id).services
    return service


@dataclass
class EditedMeanwhile:
    """The group store of a world, in which an edit comes to its end before a user is read, so many times."""

    world: World
    times: int

    def state(self, key: int) -> Any:
        if self.times:
            self.times -= 1
            self.world.rename(MIA, f"Mia {self.times}")
        return self.world.groups.state(key)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.world.groups, name)


def test_a_user_that_is_edited_meanwhile_is_looked_at_again(world: World) -> None:
    found = trace(world.users, {"group": EditedMeanwhile(world, 2)}, world.bus, MIA.id)
    (service,) = found.services
    assert (found.profile.version, service.standing, service.what) == (3, Standing.IN_STEP, "")


def test_a_user_that_is_edited_at_every_look_is_on_its_way(world: World) -> None:
    service = traced(world, MIA.id, EditedMeanwhile(world, MAX_LOOKS))
    assert (service.standing, service.what) == (Standing.ON_ITS_WAY, "the user is being edited")


def test_of_two_tombstones_none_is_newer(world: World) -> None:
    """One was published anew, because another service had brought the user back."""
    world.users.touch({GONE.id: GONE.version})
    world.relay()
    world.consume()
    assert world.found() == {}
    assert traced(world, GONE.id).standing is Standing.IN_STEP


def test_rows_that_differ_from_what_is_applied_have_met_its_event(world: World) -> None:
    """Although the stream and the settlement log have forgotten it, and the outbox has not."""
    world.rename(MIA, "Mia 2")
    world.stream.trim("9999999999999-0", exact=True)
    world.group_sql("DELETE FROM settled")
    world.group_sql("UPDATE im_group_member SET user_nick_name = 'x' WHERE user_id = 1")
    assert world.found() == {Cause.EDITED: 1}
    assert traced(world, MIA.id).what == "1 row of group differs from version 2, which is applied"


@pytest.mark.parametrize("version", [1, 2, 9])
def test_no_event_passes_a_tombstone_so_none_is_on_its_way(world: World, version: int) -> None:
    world.group_sql("UPDATE user_profile_replica SET deleted = 1, version = ? WHERE user_id = 1", version)
    world.edit(nick(MIA.id, "Mia 2"))
    service = traced(world, MIA.id)
    assert service.standing is Standing.WRONG
    assert service.what == f"group has a tombstone of version {version}, which no event passes, and the source lives"
    rebuild, repair = "imsync rebuild group", "imsync verify --repair --user 1"
    assert service.remedy == (rebuild if version < 2 else f"{repair}, then {rebuild}")
    assert (world.verify(keys=[MIA.id]).mends["group", Mend.REBUILD] == 1) == (version < 2)
