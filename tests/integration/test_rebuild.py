"""`rebuild`: a projection is filled from the source, in place, and becomes its group's store when it is whole."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

import imsync.im.rebuild
from imsync.bus import Bus
from imsync.bus.codec import encode
from imsync.errors import RedisUnreachable, StoreMismatch, StoreUnusable, UsageError
from imsync.im.events import DESTINATION
from imsync.im.flight import GroupFlight
from imsync.im.friend_store import Friendship, FriendStore
from imsync.im.group_store import Group, GroupStore, Member
from imsync.im.profile_projection import ProfileProjection
from imsync.im.rebuild import Rebuilt, rebuild
from imsync.im.relay import Relay
from imsync.im.user_store import Profile, ProfileEdit, UserStore
from imsync.im.verify import Cause, verify
from tests.consumers import QUICK
from tests.projections import FRIEND, GROUP, Kind, Row, update
from tests.servers import Server, StartServer
from tests.stores import nick, sql

OPTIONS = replace(QUICK, until_empty=True)
USERS = 30
PAGE = 10


@dataclass
class World:
    """A user store, a projection with a row for every user, and the stream between them."""

    kind: Kind
    folder: Path
    users: UserStore
    store: Any
    bus: Bus
    client: Redis
    closing: ExitStack = field(default_factory=ExitStack)

    @property
    def service(self) -> str:
        return str(self.store.name)

    @property
    def path(self) -> Path:
        return self.folder / f"{self.service}.db"

    def edit(self, *edits: ProfileEdit) -> None:
        assert self.users.edit_many(edits).accepted == len(edits)

    def publish(self, *edits: ProfileEdit) -> None:
        """Edits that are in the stream, and that nobody has consumed."""
        self.edit(*edits)
        Relay(self.users, self.bus.publisher(DESTINATION)).deliver(2**63 - 1)

    def consume(self, **options: Any) -> None:
        self.bus.consumer(
            DESTINATION, group=self.service, events=self.store.events, handler=self.store,
            options=replace(OPTIONS, **options),
        ).run()  # fmt: skip

    def settle(self, *edits: ProfileEdit) -> None:
        """Edits that are applied."""
        self.publish(*edits)
        self.consume()

    def rebuild(self, on_users: Callable[[int], None] = lambda n: None) -> Rebuilt:
        return rebuild(
            self.users, self.store, self.bus, DESTINATION, Relay(self.users, self.bus.publisher(DESTINATION)),
            options=OPTIONS, on_users=on_users,
        )  # fmt: skip

    def put(self, copy: bytes) -> None:
        """Stops, puts a copy in the place of the store, and opens it."""
        self.store.close()
        for suffix in ("-wal", "-shm"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
        self.path.write_bytes(copy)
        self.reopen()

    def lose(self) -> None:
        """The store is gone; one is made that knows nothing."""
        self.store.close()
        for suffix in ("", "-wal", "-shm"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
        self.reopen(create=True)

    def reopen(self, *, create: bool = False) -> None:
        self.store = self.closing.enter_context(closing(self.kind.make(self.path, create=create)))

    def copy(self) -> bytes:
        """The store as it is, at rest."""
        self.store.close()
        content = self.path.read_bytes()
        self.reopen()
        return content

    def rows(self) -> list[Row]:
        return self.kind.rows(self.store)

    def memberships(self) -> list[tuple[int, int, str]]:
        """Who is where, under which name of their own."""
        return [(user, container, remark) for user, container, _, _, remark in self.rows()]

    def bound(self) -> dict[bytes, float]:
        return dict(self.client.zrange(self.bus.keys(DESTINATION).store(self.service), 0, -1, withscores=True))

    def drift(self) -> dict[str, int]:
        flight = lambda group: GroupFlight(self.bus.stream(DESTINATION), group)  # noqa: E731
        return dict(verify(self.users, [self.store], flight).causes)

    def balance(self) -> int:
        """What was published and is accounted for nowhere, at rest."""
        tallies = self.store.tallies()
        return self.users.published() - sum(
            tallies.get((self.users.source, outcome), 0) for outcome in ("applied", "superseded", "dead", "covered")
        )

    def assert_mended(self) -> None:
        """Everything is as the source has it, and the accounts are closed."""
        assert self.drift() == {}
        assert self.balance() == 0
        assert self.bound() == {self.store.store_id.encode(): self.store.generation}


def profiles() -> list[Profile]:
    return [Profile(n, f"user{n}", f"name {n}", f"image {n}", f"thumb {n}") for n in range(1, USERS + 1)]


@pytest.fixture(params=[GROUP, FRIEND], ids=["group", "friend"])
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param  # type: ignore[no-any-return]


def make(kind: Kind, folder: Path, url: str, stack: ExitStack) -> World:
    """A world at its beginning."""
    users = stack.enter_context(closing(UserStore(folder / "user.db", create=True)))
    name = str(kind.make.name)
    store: ProfileProjection
    if kind is GROUP:
        store = groups = GroupStore(folder / f"{name}.db", create=True)
        members = [Member(7, n, "mine" if n == 1 else "") for n in range(1, USERS + 1)]
        groups.bootstrap(profiles(), [Group(7, "g", 1)], members, source=users.source)
    else:
        store = friends = FriendStore(folder / f"{name}.db", create=True)
        known = [Friendship(1, n, "mine" if n == 2 else "") for n in range(1, USERS + 1)]
        friends.bootstrap(profiles(), known, source=users.source)
    stack.enter_context(closing(store))
    users.bootstrap(profiles(), origin="test")
    bus = stack.enter_context(Bus.from_url(url))
    client = stack.enter_context(Redis.from_url(url))
    bus.stream(DESTINATION).create_group(name)
    return World(kind, folder, users, store, bus, client, stack)


@pytest.fixture
def world(kind: Kind, tmp_path: Path, server: Server) -> Iterator[World]:
    with ExitStack() as stack:
        yield make(kind, tmp_path, server.url, stack)


@pytest.fixture
def group_world(tmp_path: Path, server: Server) -> Iterator[World]:
    with ExitStack() as stack:
        yield make(GROUP, tmp_path, server.url, stack)


def names(first: int, last: int, suffix: str) -> list[ProfileEdit]:
    """An edit of each of these users' nicknames."""
    return [nick(n, f"name {n} {suffix}") for n in range(first, last + 1)]


# ── what it makes of a store ─────────────────────────────────────────────────────────────────────────


def test_a_store_that_was_made_anew_is_filled_and_bound(world: World) -> None:
    world.settle(*names(1, 19, "a"))
    world.users.delete_user(20)
    world.settle()
    world.lose()
    with pytest.raises(StoreMismatch):
        world.consume()
    done = world.rebuild()
    assert done.users == done.changed == USERS
    assert done.covered == 20
    assert done.position == world.bus.stream(DESTINATION).range()[-1].id
    assert world.rows() == [], "memberships are its own, and are gone with it"
    world.settle(*names(1, 5, "b"))
    world.assert_mended()
    world.kind.join(world.store, 3, 99, "remark")
    world.kind.join(world.store, 20, 99)
    rows = {row[0]: row[2:] for row in world.rows()}
    assert rows[3][0] == "name 3 b"
    assert rows[20] == ("", "", "")


def test_an_older_copy_is_brought_up_to_date_and_keeps_its_rows(world: World) -> None:
    world.settle(*names(1, 10, "a"))
    copy, memberships = world.copy(), world.memberships()
    world.settle(*names(5, 20, "b"))
    world.users.delete_user(7)
    world.settle()
    generation = world.store.generation
    world.put(copy)
    with pytest.raises(StoreMismatch):
        world.consume()
    done = world.rebuild()
    assert (done.users, done.changed, done.covered) == (USERS, 16, 17)
    assert world.memberships() == memberships
    assert world.store.generation > generation
    world.assert_mended()
    assert [row[2:4] for row in world.rows() if row[0] == 7] == [("", "")]
    world.settle(*names(21, 25, "c"))
    world.assert_mended()


def test_what_waits_for_the_group_is_settled_first(group_world: World) -> None:
    """Pending entries of the dead, undelivered ones, poison, and events of somebody else."""
    world = group_world
    world.settle(*names(1, 5, "a"))
    copy = world.copy()
    world.settle(*names(6, 10, "b"))
    world.publish(*names(11, 15, "c"))
    stream = world.bus.stream(DESTINATION)
    assert len(stream.read_new("group", "dead", 3)) == 3
    stream.append(b"poison")
    stream.append(encode(update(30, 7, "somebody else's"), source="urn:test:else"))
    world.put(copy)
    done = world.rebuild()
    assert done.covered == 5
    assert stream.pending_summary("group").count == 0
    assert world.client.xlen(world.bus.keys(DESTINATION).dead("group")) == 1
    tallies = world.store.tallies()
    assert tallies["", "dead"] == 1
    assert tallies["urn:test:else", "applied"] == 1
    assert world.balance() == 0
    assert world.drift() == {Cause.AHEAD: 1}, "somebody else's event is not the source's to take back"


def test_rows_that_were_edited_by_hand_are_made_right(world: World) -> None:
    world.settle(*names(1, 5, "a"))
    columns = [name.strip() for name in world.kind.columns.split(",")]
    sql(world.path, f"UPDATE {world.kind.table} SET {columns[2]} = 'by hand' WHERE {columns[0]} = 3")
    sql(world.path, "UPDATE user_profile_replica SET head_image = 'by hand' WHERE user_id = 9")
    sql(world.path, "DELETE FROM user_profile_replica WHERE user_id = 12")
    assert sum(world.drift().values()) == 3
    done = world.rebuild()
    assert (done.changed, done.covered) == (3, 0)
    world.assert_mended()
    assert world.rebuild().changed == 0
    world.assert_mended()


def test_neither_a_newer_version_nor_a_tombstone_is_taken_back(group_world: World) -> None:
    """The source was restored from a backup: what is ahead stays, for `verify` to name."""
    world = group_world
    sql(world.path, "UPDATE user_profile_replica SET version = 9, nick_name = 'newer' WHERE user_id = 1")
    sql(world.path, "UPDATE user_profile_replica SET version = 1, deleted = 1, nick_name = '' WHERE user_id = 2")
    world.rebuild()
    replicas = dict(sql(world.path, "SELECT user_id, nick_name FROM user_profile_replica WHERE user_id < 3"))
    assert replicas == {1: "newer", 2: ""}
    assert world.drift() == {Cause.AHEAD: 1, Cause.EDITED: 1}


def test_a_group_that_nobody_has_created_is_served(group_world: World) -> None:
    """The server lost everything, and nothing has been published since."""
    world = group_world
    world.settle(*names(1, 5, "a"))
    world.client.flushall()
    world.lose()
    assert world.rebuild().users == USERS
    assert world.drift() == {}
    world.settle(*names(1, 5, "b"))
    assert world.drift() == {}


def test_every_kind_of_server_will_do(any_server: Server, tmp_path: Path) -> None:
    with ExitStack() as stack:
        world = make(GROUP, tmp_path, any_server.url, stack)
        world.settle(*names(1, 10, "a"))
        world.lose()
        world.publish(*names(5, 15, "b"))
        assert world.rebuild().covered == 10
        world.settle(*names(10, 20, "c"))
        world.assert_mended()


# ── edits and joins in the middle ────────────────────────────────────────────────────────────────────


def in_the_middle(monkeypatch: pytest.MonkeyPatch, do: Callable[[int], None]) -> Callable[[int], None]:
    """Calls `do` after each page, with the number of pages so far. There are three."""
    monkeypatch.setattr(imsync.im.rebuild, "PAGE", PAGE)
    pages = iter(range(1, 100))
    return lambda users: do(next(pages))


def test_edits_in_the_middle_come_behind_the_snapshot(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.settle(*names(1, 20, "a"))
    world.lose()

    def edit(page: int) -> None:
        world.publish(*names(5, 25, f"in page {page}"))  # of users that were written, and of those that were not

    done = world.rebuild(in_the_middle(monkeypatch, edit))
    assert done.covered == 20
    world.consume()
    world.assert_mended()
    assert world.store.tallies()[world.users.source, "superseded"] > 0, "the snapshot had overtaken some"


def test_a_join_in_the_middle_is_right(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It copies what the projection knows by then, and the snapshot comes after it."""
    world.settle(*names(1, 20, "a"))
    world.lose()

    def join(page: int) -> None:
        for user in (1, 15, 29):
            world.kind.join(world.store, user, 100 + page, "remark")

    world.rebuild(in_the_middle(monkeypatch, join))
    world.assert_mended()
    assert len(world.rows()) == 9
    assert {row[4] for row in world.rows()} == {"remark"}


# ── cut short ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("lost", [True, False], ids=["made anew", "older copy"])
def test_cut_short_it_is_refused_until_it_is_run_again(
    world: World, monkeypatch: pytest.MonkeyPatch, lost: bool
) -> None:
    """Although each page is a transaction, so that the store may have more of them than its group has noted."""
    world.settle(*names(1, 10, "a"))
    copy = world.copy()
    world.settle(*names(16, 25, "b"))
    world.lose() if lost else world.put(copy)
    world.publish(*names(26, 30, "c"))

    def fail(page: int) -> None:
        if page == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        world.rebuild(in_the_middle(monkeypatch, fail))
    assert world.drift() != {}
    with pytest.raises(StoreMismatch) as refusal:
        world.consume()
    assert f"imsync rebuild {world.service}" in refusal.value.hint
    done = world.rebuild()
    assert done.covered == (20 if lost else 10)
    world.assert_mended()
    world.settle(*names(1, 30, "d"))
    world.assert_mended()


def test_a_store_that_its_group_never_knew_is_not_taken_when_it_is_half_filled(
    group_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no binding to compare with: the server lost it."""
    world = group_world
    world.settle(*names(1, 10, "a"))
    world.lose()
    world.client.delete(world.bus.keys(DESTINATION).store("group"))
    world.publish(*names(11, 12, "b"))

    def fail(page: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        world.rebuild(in_the_middle(monkeypatch, fail))
    with pytest.raises(StoreMismatch):
        world.consume()
    world.rebuild()
    world.assert_mended()


def test_the_store_is_locked_in_the_middle(group_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world = group_world
    world.settle(*names(1, 10, "a"))
    world.lose()
    world.store.close()
    world.store = world.closing.enter_context(closing(GroupStore(world.path, busy_timeout_ms=50)))
    with ExitStack() as stack:

        def lock(page: int) -> None:
            other = stack.enter_context(closing(sqlite3.connect(world.path, isolation_level=None)))
            other.execute("BEGIN IMMEDIATE")

        with pytest.raises(StoreUnusable, match="locked"):
            world.rebuild(in_the_middle(monkeypatch, lock))
    with pytest.raises(StoreMismatch):
        world.consume()
    world.rebuild()
    world.assert_mended()


def test_the_server_is_gone_when_all_is_written(
    tmp_path: Path, start_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start_server(appendonly=True)
    with ExitStack() as stack:
        world = make(GROUP, tmp_path, server.url, stack)
        world.settle(*names(1, 10, "a"))
        world.lose()

        def kill(page: int) -> None:
            if page == 3:
                server.kill()

        with pytest.raises(RedisUnreachable):
            world.rebuild(in_the_middle(monkeypatch, kill))
        server.start()
        world.settle(*names(1, 5, "b"))  # nothing is missing but the note of its generation
        world.assert_mended()


def test_another_store_that_comes_back_in_the_middle_is_refused(
    group_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On another machine, where nobody knew of the rebuild: what it acknowledged now, neither would ever have."""
    world = group_world
    world.settle(*names(1, 10, "a"))
    other = world.folder / "elsewhere.db"
    other.write_bytes(world.copy())
    refused = []

    def come_back(page: int) -> None:
        world.publish(*names(1, 3, f"in page {page}"))
        with closing(GroupStore(other)) as store, pytest.raises(StoreMismatch) as refusal:
            world.bus.consumer(DESTINATION, group="group", events=store.events, handler=store, options=OPTIONS).run()
        refused.append(refusal.value.message)

    world.rebuild(in_the_middle(monkeypatch, come_back))
    assert len(refused) == 3
    assert all("another store" in message for message in refused)
    world.consume()
    world.assert_mended()


def test_what_was_settled_twice_is_not_missing_for_ever(group_world: World) -> None:
    """The log was pruned, the server lost all, and the outbox had kept what it then sent again."""
    world = group_world
    world.settle(*names(1, 10, "a"))
    sql(world.path, "DELETE FROM settled")
    world.client.flushall()
    world.settle()
    assert world.balance() == -10
    done = world.rebuild()
    assert done.covered == -10
    world.settle(*names(1, 5, "b"))
    world.assert_mended()


# ── not alone ────────────────────────────────────────────────────────────────────────────────────────


def test_refused_while_a_consumer_lives(group_world: World) -> None:
    world = group_world
    world.settle(*names(1, 5, "a"))
    world.client.set(world.bus.keys(DESTINATION).alive("group", "somebody"), b"{}", px=60_000)
    stream = world.bus.stream(DESTINATION)
    world.publish(*names(1, 5, "b"))
    assert stream.read_new("group", "somebody", 1)
    before = (world.rows(), world.bound(), world.store.generation, stream.pending_summary("group").count)
    with pytest.raises(UsageError, match="1 living consumer") as refusal:
        world.rebuild()
    assert refusal.value.hint
    assert (world.rows(), world.bound(), world.store.generation, stream.pending_summary("group").count) == before


def test_nothing_is_published_while_the_group_is_brought_up_to_date(
    group_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What came between the last entry read and the position would be neither applied nor counted as covered."""
    world = group_world
    world.settle(*names(1, 10, "a"))
    world.lose()
    world.publish(*names(11, 12, "b"))
    other = UserStore(world.folder / "user.db")
    tried: list[str] = []
    apply = GroupStore.apply

    def publish_meanwhile(store: GroupStore, batch: Any) -> Any:
        assert other.edit_many(names(13, 14, "c")).accepted == 2
        with Relay(other, world.bus.publisher(DESTINATION))._lock() as lock:
            tried.append("free" if lock else "held")
        return apply(store, batch)

    monkeypatch.setattr(GroupStore, "apply", publish_meanwhile)
    with closing(other):
        done = world.rebuild()
    monkeypatch.undo()
    assert tried == ["held"]
    assert done.covered == 10
    world.settle()
    world.assert_mended()
