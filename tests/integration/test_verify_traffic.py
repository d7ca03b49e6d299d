"""`verify` while edits flow: it never calls wrong what is merely on its way, and finds what is wrong all the same."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from imsync.bus import Bus, ConsumerOptions
from imsync.im.causes import Cause, Place
from imsync.im.events import DESTINATION
from imsync.im.export import ExportedCopies, export_copies
from imsync.im.flight import ExportFlight, barrier
from imsync.im.group_store import GroupStore
from imsync.im.relay import Relay
from imsync.im.repair import Plan, recheck, touch
from imsync.im.user_store import Profile, ProfileEdit, UserStore
from imsync.im.verify import Verdict, verify
from tests.drifting import World, make_world
from tests.servers import Server, eventually

USERS = 40
LOOKS = 500
EDITS = 1000
WAYS = {Place.OUTBOX, Place.UNDELIVERED, Place.PENDING}
"""All of them are met."""
OPTIONS = ConsumerOptions(batch=7, heartbeat_ms=100, block_ms=20)


@contextmanager
def at_work(*works: Callable[[threading.Event], None]) -> Iterator[None]:
    """Runs each in a thread until the block ends; what one of them raises, the block raises."""
    stop, errors = threading.Event(), []

    def run(work: Callable[[threading.Event], None]) -> None:
        try:
            work(stop)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]


class Traffic:
    """An editor with its relay, and consumers that come and go, each on connections of their own."""

    def __init__(self, world: World, url: str) -> None:
        self.world = world
        self.url = url
        self.edits = 0

    def edit(self, stop: threading.Event) -> None:
        rng = random.Random(7)
        with closing(UserStore(self.world.users.path)) as users, Bus.from_url(self.url) as bus:
            relay = Relay(users, bus.publisher(DESTINATION))
            while not stop.is_set():
                chosen = [rng.randint(1, USERS) for _ in range(rng.randint(1, 5))]
                edits = [ProfileEdit(user_id=each, nick_name=f"n{rng.random()}") for each in chosen]
                self.edits += users.edit_many(edits).accepted
                if rng.random() < 0.7:
                    relay.drain()
                stop.wait(rng.random() / 500)
            relay.drain()

    def consume(self, stop: threading.Event) -> None:
        while not stop.is_set():  # one ends after some events, and another takes its place
            with closing(GroupStore(self.world.groups.path)) as groups, Bus.from_url(self.url) as bus:
                consumer = bus.consumer(
                    DESTINATION, group="group", events=groups.events, handler=groups,
                    options=replace(OPTIONS, max_events=100),
                )  # fmt: skip
                ending = threading.Thread(target=lambda c=consumer: (stop.wait(), c.stop()), daemon=True)  # type: ignore[misc]
                ending.start()
                consumer.run()

    def grab(self, stop: threading.Event) -> None:
        """Reads for the group and dies: what it held is taken over."""
        with Bus.from_url(self.url) as bus:
            while not stop.wait(0.05):
                bus.stream(DESTINATION).read_new("group", "victim", 3)


@pytest.fixture
def world(tmp_path: Path, server: Server) -> Iterator[World]:
    people = [Profile(n, f"u{n}", f"n{n}", "", "") for n in range(1, USERS + 1)]
    with ExitStack() as stack:
        yield make_world(tmp_path, server.url, stack, people)


def test_hundreds_of_looks_find_no_drift(world: World, server: Server) -> None:
    traffic = Traffic(world, server.url)
    ways: Counter[str] = Counter()
    verdicts: list[Verdict] = []
    with at_work(traffic.edit, traffic.consume, traffic.grab):
        while len(verdicts) < LOOKS or traffic.edits < EDITS or not ways.keys() >= WAYS:
            verdicts.append(world.verify())
            ways += verdicts[-1].ways
            assert len(verdicts) < 100 * LOOKS, f"too little was in flight: {traffic.edits} edits, {ways}"
    assert [verdict.examples for verdict in verdicts if verdict.drift] == []
    world.consume()
    assert world.found() == {}


def test_drift_is_found_and_mended_among_the_traffic(world: World, server: Server) -> None:
    """Copies of users that nobody edits are broken by hand; the others flow."""
    traffic = Traffic(world, server.url)
    idle = Profile(1000, "idle", "Idle", "", "")
    world.users.create_user(idle)
    world.relay()
    world.consume()
    world.group_sql("INSERT INTO im_group_member VALUES (1000, 7, 'Idle', '', '', 0)")
    with at_work(traffic.edit, traffic.consume):
        eventually(lambda: traffic.edits > 10)
        world.group_sql("UPDATE im_group_member SET user_nick_name = 'x' WHERE user_id = 1000")
        for _ in range(20):
            assert world.verify().causes == {Cause.EDITED: 1}
        with Plan(["group"]) as plan:
            world.verify(on_drift=plan.add)
            touch(world.users, plan)
            result = recheck(world.users, [world.groups], world.flight_to, plan, patience_seconds=20)
        assert (result.repaired, result.waiting, result.wrong) == (1, 0, 0)
        assert world.verify().drift == 0


def test_exports_among_the_traffic_show_no_drift(world: World, server: Server, tmp_path: Path) -> None:
    traffic = Traffic(world, server.url)
    path = tmp_path / "file"
    found: list[Verdict] = []
    with at_work(traffic.edit, traffic.consume, traffic.grab):
        while len(found) < 100 or not any(verdict.ways[Place.AFTER_EXPORT] for verdict in found):
            export_copies(world.groups, path, barrier=barrier(world.stream, "group"))
            with closing(ExportedCopies(path, {"group": GroupStore.expected})) as copies:
                live = world.flight_to("group") if len(found) % 2 else None
                flight = ExportFlight(copies.barrier, live)
                found.append(verify(world.users, [copies], lambda group, flight=flight: flight))  # type: ignore[misc]
            assert len(found) < 10_000, "nothing was in flight"
    assert [verdict.examples for verdict in found if verdict.drift] == []
