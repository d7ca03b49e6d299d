"""A user store, a group store with a row for every user, and the stream between them: to be brought apart."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from imsync.bus import Bus, ConsumerOptions
from imsync.bus.codec import encode
from imsync.bus.handler import Received
from imsync.bus.outcome import DeadLetter, Outcome
from imsync.im.causes import Cause
from imsync.im.events import DESTINATION, UserUpdated
from imsync.im.flight import GroupFlight
from imsync.im.group_store import Group, GroupStore, Member
from imsync.im.relay import Relay
from imsync.im.user_store import Profile, ProfileEdit, UserStore
from imsync.im.verify import Drift, Verdict, verify
from tests.stores import MIA, NOAH, PEOPLE, nick, sql

OPTIONS = ConsumerOptions(until_empty=True, heartbeat_ms=100, block_ms=20)


@dataclass
class World:
    """The stores, and the bus between them."""

    users: UserStore
    groups: GroupStore
    bus: Bus

    @property
    def stream(self) -> Any:
        return self.bus.stream(DESTINATION)

    def relay(self) -> None:
        Relay(self.users, self.bus.publisher(DESTINATION)).drain()

    def consume(self, handler: Any = None) -> None:
        self.bus.consumer(
            DESTINATION, group="group", events=self.groups.events, handler=handler or self.groups, options=OPTIONS
        ).run()

    def edit(self, *edits: ProfileEdit) -> None:
        assert self.users.edit_many(edits).accepted == len(edits)

    def rename(self, user: Profile, *names: str) -> None:
        """Edits of a nickname that are published and applied, one after the other."""
        for name in names:
            self.edit(nick(user.id, name))
            self.relay()
            self.consume()

    def acknowledge_unseen(self) -> list[str]:
        """Somebody reads for the group, and acknowledges without an effect; the entries."""
        ids = [entry.id for entry in self.stream.read_new("group", "somebody", 100)]
        self.stream.acknowledge("group", ids)
        return ids

    def flight_to(self, group: str) -> GroupFlight:
        return GroupFlight(self.stream, group, self.bus.dead_letters(DESTINATION, group))

    def verify(self, **options: Any) -> Verdict:
        return verify(self.users, [self.groups], self.flight_to, **options)

    def found(self) -> dict[str, int]:
        """The drift by cause, after the whole was counted right."""
        verdict = self.verify()
        assert verdict.users == self.users.count_users()
        assert verdict.drift == sum(verdict.causes.values()) == len(verdict.examples)
        return {**verdict.causes, **({"in_flight": verdict.in_flight} if verdict.in_flight else {})}

    def drift(self) -> Drift:
        """The one that there is."""
        (drift,) = self.verify().examples
        return drift

    def group_sql(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        return sql(self.groups.path, statement, parameters)


@dataclass
class Refusing:
    """The group store, whose handler refuses some users for good."""

    groups: GroupStore
    refused: Iterable[int] = field(default_factory=list)

    def apply(self, batch: Sequence[Received[Any]]) -> list[Outcome]:
        good = [each for each in batch if each.event.id not in self.refused]
        outcomes = iter(self.groups.apply(good))
        return [next(outcomes) if each in good else DeadLetter("colour", "no such colour") for each in batch]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.groups, name)


def make_world(folder: Path, url: str, stack: ExitStack, people: Sequence[Profile] = PEOPLE) -> World:
    """A world at rest, in which every user is in one group."""
    users = stack.enter_context(closing(UserStore(folder / "user.db", create=True)))
    groups = stack.enter_context(closing(GroupStore(folder / "group.db", create=True)))
    bus = stack.enter_context(Bus.from_url(url))
    users.bootstrap(people, origin="test")
    members = [Member(7, each.id) for each in people]
    groups.bootstrap(people, [Group(7, "g", 1)], members, source=users.source)
    world = World(users, groups, bus)
    world.consume()  # the store is the group's, before somebody else reads for it
    return world


def foreign(user_id: int, version: int, nick_name: str, source: str) -> bytes:
    """An event that the outbox does not know: somebody else's, or of a history that the source has forgotten."""
    event = UserUpdated(id=user_id, version=version, nick_name=nick_name, head_image="", head_image_thumb="")
    return encode(event, source=source)


# ── one way into each cause that a touch mends ───────────────────────────────────────────────────────────


def dead_lettered(world: World) -> None:
    world.rename(MIA, "Mia 2")
    world.edit(nick(MIA.id, "Mia 3"))
    world.relay()
    world.consume(Refusing(world.groups, [MIA.id]))


def trimmed(world: World) -> None:
    world.edit(nick(MIA.id, "Mia 2"), nick(NOAH.id, "Noah 2"))
    world.relay()
    world.stream.trim(world.stream.range()[-1].id, exact=True)
    world.consume()


def lost_by_server(world: World) -> None:
    world.edit(nick(MIA.id, "Mia 2"))
    world.relay()
    world.bus.client.flushall()
    world.consume()


def stale_join(world: World) -> None:
    world.rename(MIA, "Mia 2", "Mia 3")
    world.group_sql("INSERT INTO im_group_member VALUES (1, 8, 'Mia 2', 'mia_t.png', '', 0)")


def edited(world: World) -> None:
    world.rename(MIA, "Mia 2")
    world.group_sql("UPDATE im_group_member SET user_nick_name = 'x' WHERE user_id = 1")


def ahead(world: World) -> None:
    world.stream.append(foreign(MIA.id, 7, "Mia 7", world.users.source))
    world.consume()


def missing(world: World) -> None:
    world.group_sql("DELETE FROM user_profile_replica WHERE user_id = 1")


def orphan(world: World) -> None:
    world.stream.append(foreign(99, 4, "nobody", "urn:somebody:else"))
    world.consume()
    world.group_sql("INSERT INTO im_group_member VALUES (99, 8, 'nobody', '', 'mine', 0)")


def resurrected(world: World) -> None:
    world.group_sql("UPDATE user_profile_replica SET deleted = 0, nick_name = 'back' WHERE user_id = 3")
    world.group_sql("UPDATE im_group_member SET user_nick_name = 'back' WHERE user_id = 3")


def unknown(world: World) -> None:
    world.edit(nick(MIA.id, "Mia 2"))
    world.relay()
    world.acknowledge_unseen()


WAYS: dict[Cause, Callable[[World], None]] = {
    Cause(way.__name__): way
    for way in (
        dead_lettered, trimmed, lost_by_server, stale_join, edited, ahead, missing, orphan, resurrected, unknown
    )
}  # fmt: skip
