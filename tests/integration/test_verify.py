"""`verify`: each way in which a copy can be wrong is found and named, and what is on its way is not called wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from imsync.bus import Bus, ConsumerOptions
from imsync.im.events import DESTINATION
from imsync.im.flight import GroupFlight
from imsync.im.group_store import Group, GroupStore, Member
from imsync.im.relay import Relay
from imsync.im.user_store import Profile, ProfileEdit, UserStore
from imsync.im.verify import Cause, Verdict, verify
from imsync.store.projection import SourceState
from tests.servers import Server
from tests.stores import MIA, NOAH, PEOPLE, nick, sql


@dataclass
class World:
    """A user store, a group store with a member row for every user, and the stream between them."""

    users: UserStore
    groups: GroupStore
    bus: Bus

    def relay(self) -> None:
        Relay(self.users, self.bus.publisher(DESTINATION)).drain()

    def consume(self) -> None:
        options = ConsumerOptions(until_empty=True, heartbeat_ms=100, block_ms=20)
        self.bus.consumer(
            DESTINATION, group="group", events=self.groups.events, handler=self.groups, options=options
        ).run()

    def edit(self, *edits: ProfileEdit) -> None:
        assert self.users.edit_many(edits).accepted == len(edits)

    def verify(self) -> Verdict:
        return verify(self.users, [self.groups], lambda group: GroupFlight(self.bus.stream(DESTINATION), group))

    def found(self) -> dict[str, int]:
        """The drift by cause, after the whole was counted right."""
        verdict = self.verify()
        assert verdict.users == self.users.count_users()
        assert verdict.drift == sum(verdict.causes.values()) == len(verdict.examples)
        return {**verdict.causes, **({"in_flight": verdict.in_flight} if verdict.in_flight else {})}


@pytest.fixture
def world(tmp_path: Path, any_server: Server) -> Iterator[World]:
    users = UserStore(tmp_path / "user.db", create=True)
    groups = GroupStore(tmp_path / "group.db", create=True)
    with closing(users), closing(groups), Bus.from_url(any_server.url) as bus:
        users.bootstrap(PEOPLE, origin="test")
        groups.bootstrap(PEOPLE, [Group(7, "g", 1)], [Member(7, each.id) for each in PEOPLE])
        world = World(users, groups, bus)
        world.consume()  # the store is the group's, before somebody else reads for it
        yield world


def test_right_copies_are_right(world: World) -> None:
    verdict = world.verify()
    assert (verdict.users, verdict.rows, verdict.drift, verdict.in_flight) == (3, 3, 0, 0)
    world.edit(nick(MIA.id, "Mia 2"))
    world.relay()
    world.consume()
    assert world.found() == {}


def test_what_waits_in_the_outbox_in_the_stream_or_at_a_consumer_is_in_flight(world: World) -> None:
    world.edit(nick(MIA.id, "Mia 2"))
    assert world.found() == {"in_flight": 1}, "in the outbox"
    world.relay()
    assert world.found() == {"in_flight": 1}, "undelivered"
    assert len(world.bus.stream(DESTINATION).read_new("group", "somebody", 10)) == 1
    assert world.found() == {"in_flight": 1}, "pending"
    world.consume()
    assert world.found() == {}


def test_an_event_that_was_acknowledged_without_effect_is_drift(world: World) -> None:
    world.edit(nick(MIA.id, "Mia 2"))
    world.relay()
    stream = world.bus.stream(DESTINATION)
    stream.acknowledge("group", [entry.id for entry in stream.read_new("group", "somebody", 10)])
    assert world.found() == {Cause.BEHIND: 1}


@pytest.mark.parametrize("delivered", [False, True], ids=["undelivered", "pending"])
def test_an_event_that_the_server_lost_is_lost(world: World, delivered: bool) -> None:
    world.edit(nick(MIA.id, "Mia 2"), nick(NOAH.id, "Noah 2"))
    world.relay()
    stream = world.bus.stream(DESTINATION)
    if delivered:
        stream.read_new("group", "somebody", 10)
    stream.delete([stream.range()[-1].id])  # the tail, as a failover or a lost last second would
    assert world.found() == {Cause.LOST: 1, "in_flight": 1}


@pytest.mark.parametrize(
    ("statement", "cause"),
    [
        ("DELETE FROM user_profile_replica WHERE user_id = 1", Cause.MISSING),
        ("UPDATE user_profile_replica SET version = 40 WHERE user_id = 2", Cause.BEHIND),
        ("UPDATE user_profile_replica SET version = 2 WHERE user_id = 1", Cause.AHEAD),
        ("UPDATE user_profile_replica SET nick_name = 'x' WHERE user_id = 1", Cause.EDITED),
        ("UPDATE im_group_member SET user_nick_name = 'x' WHERE user_id = 1", Cause.STALE_ROWS),
        ("UPDATE im_group_member SET head_image = 'x' WHERE user_id = 3", Cause.STALE_ROWS),
        ("UPDATE user_profile_replica SET deleted = 0 WHERE user_id = 3", Cause.RESURRECTED),
        ("INSERT INTO user_profile_replica VALUES (99, 1, 'x', 'x', 0, 0)", Cause.ORPHAN),
        ("INSERT INTO im_group_member VALUES (99, 7, 'x', 'x', '', 0)", Cause.ORPHAN),
    ],
)
def test_each_cause_is_named(world: World, statement: str, cause: Cause) -> None:
    sql(world.groups.path, statement)
    assert world.found() == {cause: 1}


def test_an_override_is_no_drift(world: World) -> None:
    sql(world.groups.path, "UPDATE im_group_member SET remark_nick_name = 'mine', quit = 1")
    assert world.found() == {}


def test_a_source_that_is_edited_while_it_is_compared_is_looked_at_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copies are read after the source, so an edit in between makes them look ahead of it."""
    states = world.users.states

    def old_states(after: int, limit: int) -> list[SourceState]:
        page = states(after, limit)
        if limit > 1 and after == 0:  # the scan; looks at one user are up to date
            return [replace(page[0], version=page[0].version - 1), *page[1:]]
        return page

    world.edit(nick(MIA.id, "Mia 2"))
    world.relay()
    world.consume()
    monkeypatch.setattr(world.users, "states", old_states)
    assert world.found() == {}


def test_a_user_that_is_edited_at_every_look_is_in_flight(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = iter(range(1, 1000))

    def state(user_id: int) -> SourceState:
        return SourceState(user_id, 1, False, {"nick_name": f"{next(seen)}", "head_image": "", "head_image_thumb": ""})

    sql(world.groups.path, "UPDATE user_profile_replica SET version = 5 WHERE user_id = 1")
    monkeypatch.setattr(world.users, "state", state)
    assert world.found() == {"in_flight": 1}


def test_more_suspects_than_a_page_are_all_judged(tmp_path: Path, server: Server) -> None:
    people = [Profile(n, f"u{n}", f"n{n}", "", "") for n in range(1, 2502)]
    users = UserStore(tmp_path / "user.db", create=True)
    groups = GroupStore(tmp_path / "group.db", create=True)
    with closing(users), closing(groups), Bus.from_url(server.url) as bus:
        users.bootstrap(people, origin="test")
        groups.bootstrap([replace(each, nick_name="other") for each in people], [], [])
        verdict = World(users, groups, bus).verify()
    assert (verdict.users, verdict.drift, len(verdict.examples)) == (2501, 2501, 20)
    assert verdict.causes == {Cause.EDITED: 2501}
