"""Redriving: dead letters go back to their own group's store, and the accounts close behind them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from imsync.bus import Bus, RetryPolicy
from imsync.bus.binding import Binding
from imsync.bus.codec import Decoder, encode
from imsync.bus.dead_letter import read
from imsync.bus.entry import Entry
from imsync.bus.event import Event
from imsync.bus.handler import Received, Rejected
from imsync.bus.inspection import view_group
from imsync.bus.outcome import APPLIED, DeadLetter, Effect, Outcome, Retry
from imsync.bus.redrive import Redrive, Redriven, letters, original
from imsync.errors import StoreMismatch, StoreUnusable
from imsync.im.events import DESTINATION, IMBaseEvent, User2GroupEvent, UserUpdated
from imsync.im.group_store import GroupStore
from imsync.im.health import Accounting, account, judge_group
from imsync.im.letters import LetterFilter, look, select
from imsync.im.redrive import batches, plan
from tests.consumers import QUICK
from tests.projections import GROUP, deliver, tombstone, update
from tests.servers import Server
from tests.stores import sql

OPTIONS = replace(QUICK, until_empty=True, retry=RetryPolicy(max_attempts=1))
SOURCE = "urn:ours"


class Narrow(UserUpdated, type="im.user.updated.v1", destination=DESTINATION):
    """An older view, of a service that does not know tombstones."""


class Breaking:
    """A store whose handler fails, and which settles all the same."""

    def __init__(self, store: GroupStore) -> None:
        self._store = store
        self.record_dead = store.record_dead
        self.record_lost = store.record_lost

    def apply(self, batch: Sequence[Received[Any]]) -> list[Outcome]:
        raise ValueError("no such colour")


class World:
    """A group store, and the stream that it follows."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.bus = Bus.from_url(server.url, source=SOURCE)
        self.store = GroupStore(folder / "group.db", create=True)
        self.dead = self.bus.dead_letters(DESTINATION, "group")
        self.published = 0

    @property
    def binding(self) -> Binding:
        return self.bus.binding(DESTINATION, "group", self.store)

    def publish(self, *events: IMBaseEvent) -> None:
        self.bus.publish_many(events)
        self.published += len(events)

    def consume(self, *events: type[Event], handler: Any = None) -> None:
        self.bus.consumer(
            DESTINATION, group="group", events=events or GroupStore.events, handler=handler or self.store,
            options=OPTIONS,
        ).run()  # fmt: skip

    def redrive(self, handler: Any = None) -> list[Redriven]:
        redrive: Redrive[Any] = Redrive(
            self.dead, decoder=Decoder(GroupStore.events), handler=handler or self.store, binding=self.binding
        )
        return redrive.run([each.id for each in letters(self.dead)])

    def accounting(self) -> Accounting:
        view = view_group(self.bus, DESTINATION, "group")
        return account(SOURCE, self.published, self.published, self.store.tallies(), view.pending, view.lag)

    def versions(self) -> dict[int, int]:
        return {state.key: state.version for state in self.store.states(0, 1000)}


@pytest.fixture
def world(server: Server, tmp_path: Path) -> Iterator[World]:
    made = World(server, tmp_path)
    with closing(made.store), made.bus:
        yield made


def effects(done: Sequence[Redriven]) -> list[str]:
    return [str(each.effect or each.reason) for each in done]


def test_what_the_handler_had_failed_on_is_applied_and_counts_once(world: World) -> None:
    world.publish(update(1, 1), update(2, 1), update(1, 2))
    world.consume(handler=Breaking(world.store))
    assert (world.dead.length(), world.accounting().dead) == (3, 3)
    assert effects(world.redrive()) == ["superseded", "applied", "applied"]
    after = world.accounting()
    assert (after.applied, after.superseded, after.dead, after.unexplained, after.foreign) == (2, 1, 0, 0, 0)
    assert world.dead.length() == 0
    assert world.versions() == {1: 2, 2: 1}
    assert judge_group(view_group(world.bus, DESTINATION, "group"), after) == ()


def test_what_could_not_be_decoded_then_does_not_stay_dead_beside_what_it_has_become(world: World) -> None:
    world.publish(tombstone(1, 3), update(2, 1), tombstone(3, 1))
    world.consume(Narrow)
    assert [each.reason for each in letters(world.dead)] == ["unknown_type"] * 2
    assert world.store.tallies()["", "dead"] == 2
    assert effects(world.redrive()) == ["applied", "applied"]
    after = world.accounting()
    assert (after.applied, after.dead, after.foreign, after.unexplained, after.duplicates) == (3, 0, 0, 0, 0)
    keys = sql(world.store.path, "SELECT event_key FROM settled WHERE event_key >= X'656e747279'")
    assert keys == [], "an entry that is decoded is known by its event"


def test_an_undecodable_copy_of_a_settled_event_ends_as_a_repeat(world: World) -> None:
    gone = tombstone(1, 3)
    world.publish(gone)
    world.consume(Narrow)
    deliver(GROUP, world.store, gone)  # by a copy of it that somebody else could read
    assert effects(world.redrive()) == ["duplicate"]
    assert world.store.tallies()["", "dead"] == 0
    assert world.accounting().duplicates == 1


def test_other_undecodable_entries_stay_dead(world: World) -> None:
    world.publish(tombstone(1, 3))
    world.bus.stream(DESTINATION).append(b"not JSON")
    world.consume(Narrow)
    assert effects(world.redrive()) == ["applied", "bad_json"]
    assert world.store.tallies()["", "dead"] == 1
    (left,) = letters(world.dead)
    assert left.reason == "bad_json"
    assert (world.accounting().foreign, world.accounting().unexplained) == (1, 0)


def test_in_the_normal_run_of_things_nothing_is_looked_for(world: World) -> None:
    statements: list[str] = []
    world.store._database._connection.set_trace_callback(statements.append)  # type: ignore[union-attr]
    world.publish(update(1, 1))
    world.consume()
    assert any("tally" in each for each in statements)
    assert not any(each.startswith("DELETE FROM settled") for each in statements)


def test_a_letter_whose_effect_was_committed_before_is_a_repeat_and_goes(world: World) -> None:
    world.publish(update(1, 1))
    world.consume(handler=Breaking(world.store))
    (letter,) = world.dead.range()
    event = Decoder(GroupStore.events).decode(read(letter).raw[b"event"])
    assert event is not None
    world.store.apply([Received(event, read(letter).source_id)])  # and killed before the deletion
    assert effects(world.redrive()) == ["duplicate"]
    assert world.dead.length() == 0
    after = world.accounting()
    assert (after.applied, after.dead, after.duplicates, after.unexplained) == (1, 0, 1, 0)


class Grumpy:
    """Takes the first, refuses the second, fails on the third."""

    def apply(self, batch: Sequence[Received[Any]]) -> list[Outcome]:
        verdicts: list[Outcome] = [APPLIED, DeadLetter("refused", "never"), Retry("again")]
        return verdicts[: len(batch)]


def test_what_is_still_bad_or_fails_stays(world: World) -> None:
    world.publish(update(1, 1), update(2, 1), update(3, 1))
    world.consume(handler=Breaking(world.store))
    done = world.redrive(Grumpy())
    assert effects(done) == ["applied", "refused", "failed"]
    assert [each.message for each in done] == ["", "never", "again"]
    assert [each.id for each in letters(world.dead)] == [done[1].id, done[2].id]
    assert [each.reason for each in world.redrive(Breaking(world.store))] == ["failed", "failed"]


class InTrouble:
    """A store that cannot be written."""

    def apply(self, batch: Sequence[Received[Any]]) -> list[Outcome]:
        raise StoreUnusable("disk full", "")


def test_in_trouble_no_letter_goes(world: World) -> None:
    world.publish(update(1, 1), update(2, 1))
    world.consume(handler=Breaking(world.store))
    with pytest.raises(StoreUnusable):
        world.redrive(InTrouble())
    assert world.dead.length() == 2


def test_the_generation_is_noted_so_that_an_older_copy_is_refused(world: World, tmp_path: Path) -> None:
    world.publish(update(1, 1))
    world.consume()
    sql(world.store.path, "VACUUM INTO ?", (str(tmp_path / "copy.db"),))
    world.publish(update(1, 2))
    world.consume(handler=Breaking(world.store))
    before = world.binding
    before.note()
    noted = world.bus.client.zscore(world.bus.keys(DESTINATION).store("group"), world.store.store_id)
    world.redrive()
    later = world.bus.client.zscore(world.bus.keys(DESTINATION).store("group"), world.store.store_id)
    assert later == noted + 1 == world.store.generation
    with closing(GroupStore(tmp_path / "copy.db")) as copy:
        assert isinstance(world.bus.binding(DESTINATION, "group", copy).mismatch(), StoreMismatch)


def test_a_letter_that_somebody_else_took_is_gone(world: World) -> None:
    world.publish(update(1, 1), update(2, 1))
    world.consume(handler=Breaking(world.store))
    first, second = [each.id for each in letters(world.dead)]
    world.dead.delete([first])
    redrive: Redrive[Any] = Redrive(world.dead, decoder=Decoder(GroupStore.events), handler=world.store)
    done = redrive.run([first, second])
    assert [(each.gone, each.effect) for each in done] == [(True, None), (False, Effect.APPLIED)]


def test_a_letter_without_a_source_id_is_remembered_by_its_own(world: World) -> None:
    body = encode(update(1, 1), source=SOURCE)
    made = [world.bus.client.xadd(world.dead.key, {"source_id": bad, "raw.event": body}) for bad in ("", "x", "5-5-5")]
    world.bus.client.xadd(world.dead.key, {"source_id": "7", "raw.event": body})
    entries = [original(each) for each in letters(world.dead)]
    assert [each.id for each in entries] == [*(each.decode() for each in made), "7-0"]
    assert effects(world.redrive()) == ["applied", *["duplicate"] * 3]


# ── plans ────────────────────────────────────────────────────────────────────────────────────────────


def plant(world: World) -> list[str]:
    """Letters of several users, reasons and ages; their ids."""
    bodies = {
        "max_attempts": [update(1, 2), update(1, 3), update(2, 5)],
        "kills_consumer": [update(1, 1)],
    }
    planted = []
    for reason, events in bodies.items():
        for number, event in enumerate(events):
            fields = {"reason": reason, "source_id": f"{number + 1}-7", "raw.event": encode(event, source=SOURCE)}
            planted.append(world.bus.client.xadd(world.dead.key, fields).decode())
    broken = encode(update(1, 4), source=SOURCE).replace(b"nickName", b"nickname")
    planted.append(world.bus.client.xadd(world.dead.key, {"reason": "invalid", "raw.event": broken}).decode())
    return planted


def test_a_plan_says_what_comes_true(world: World) -> None:
    planted = plant(world)
    for size in (1, 2, 100):
        planned = plan(world.dead, world.store, LetterFilter(), batch=size)
        assert [each.id for each in planned] == planted
        foretold = [str(each.prediction.reason or each.prediction.outcome) for each in planned]
        with closing(GroupStore(world.store.path.parent / f"{size}.db", create=True)) as copy:
            redrive: Redrive[Any] = Redrive(world.dead, decoder=Decoder(copy.events), handler=copy)
            redrive._dead = Undeletable(world)  # type: ignore[assignment]
            done = [each for ids in batches(planned, size) for each in redrive.run(ids)]
        assert effects(done) == foretold
    assert [(each.user, each.version) for each in planned] == [(1, 2), (1, 3), (2, 5), (1, 1), (1, 4)]


class Undeletable:
    """Dead letters that stay, so that they can be redriven several times."""

    def __init__(self, world: World) -> None:
        self.fetch = world.dead.fetch

    def delete(self, ids: Sequence[str]) -> int:
        return len(ids)


def test_letters_are_selected(world: World) -> None:
    planted = plant(world)

    def chosen(**wanted: Any) -> list[int]:
        found = select(world.dead, world.store, LetterFilter(**wanted))
        return [planted.index(each.letter.id) for each in found]

    assert chosen() == [0, 1, 2, 3, 4]
    assert chosen(reasons={"kills_consumer", "invalid"}) == [3, 4]
    assert chosen(user=2) == [2]
    assert chosen(user=1) == [0, 1, 3, 4]
    assert chosen(user=99) == []
    assert chosen(ids={planted[1], "3-7"}) == [1, 2]
    assert chosen(since_ms=0) == [0, 1, 2, 3, 4]
    assert chosen(since_ms=world.dead.server_time_ms() + 60_000) == []
    assert chosen(user=1, reasons={"invalid"}) == [4]
    assert [each.id for each in plan(world.dead, world.store, LetterFilter(), batch=2, limit=3)] == planted[:3]


def test_a_letter_is_safe_to_drop_once_its_version_or_a_newer_one_is_applied(world: World) -> None:
    plant(world)

    def droppable() -> list[bool | None]:
        return [each.about.superseded for each in select(world.dead, world.store, LetterFilter())]

    assert droppable() == [False] * 5
    deliver(GROUP, world.store, update(1, 3))
    assert droppable() == [True, True, False, True, False]
    deliver(GROUP, world.store, update(1, 9))
    assert droppable() == [True, True, False, True, True], "also one that nobody can decode"
    deliver(GROUP, world.store, tombstone(2, 1))
    assert droppable() == [True] * 5, "nothing comes after a tombstone"
    without = [each.about for each in select(world.dead, None, LetterFilter())]
    assert [(each.user, each.version, each.superseded) for each in without][-1] == (1, 4, None)


def test_what_cannot_be_read_at_all_is_never_said_to_be_safe(world: World) -> None:
    deliver(GROUP, world.store, update(1, 9))
    for body in (b"", b"[]", b"null", b"{", b"\xff", b'{"subject":1,"sequence":2,"type":3}', b"[" * 70_000):
        letter = read(Entry.of("1-0", {b"raw.event": body}))
        about = look(letter, world.store)
        assert (about.type, about.user, about.version, about.superseded) == (None, None, None, None)
    assert look(read(Entry.of("1-0", {b"x": b"y"})), world.store).superseded is None


def test_the_view_of_the_service_decides(world: World) -> None:
    """A letter is about what its own service reads."""
    assert User2GroupEvent in GroupStore.events
    letter = read(Entry.of("1-0", {b"raw.event": encode(update(7, 4, "x" * 255), source=SOURCE)}))
    about = look(letter, world.store)
    assert (about.type, about.user, about.version, about.decoded) == ("im.user.updated.v1", 7, 4, True)
    assert about.applied_version == 0


def test_more_letters_than_a_page_holds_are_read(world: World) -> None:
    pipeline = world.bus.client.pipeline(transaction=False)
    for number in range(250):
        pipeline.xadd(world.dead.key, {"reason": f"r{number}"})
    pipeline.execute()
    assert [each.reason for each in letters(world.dead)] == [f"r{number}" for number in range(250)]


def test_a_rejected_event_is_dead_only_once(world: World) -> None:
    event = GROUP.received(update(1, 1)).event
    for _ in range(2):
        world.store.record_dead([Rejected(event, "1-0", DeadLetter("max_attempts", "x"))])
    assert deliver(GROUP, world.store, update(2, 1)) == [APPLIED]
    assert world.store.tallies()["urn:test", "dead"] == 1
