"""What consumers, producers and operators do to each other: one name twice, zombies, events that kill, entries that are
repeated, reordered, trimmed, deleted or skipped by hand.

Nothing is lost, or it is said so; nothing happens twice.
"""

from __future__ import annotations

import json
import os
import random
import signal
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest

from imsync.bus.retry import KILLS_CONSUMER
from imsync.im.events import UserUpdated
from imsync.im.outbox import OutboxRow
from tests.faults.evidence import STREAM, load_group, load_source, parts, rows
from tests.faults.nursery import Worker
from tests.faults.rebuilding import covered, judged, rebuilt, refused
from tests.faults.rig import World
from tests.faults.steps import At
from tests.faults.table import Fault, Row
from tests.faults.traffic import Traffic, settled
from tests.servers import eventually

TAKEN = "another consumer named reader is alive"
LOCKED = "database is locked"
HELD = 20
READERS_KEY = "imsync:{user-update}:alive:group/reader"


def hold_some(world: World, at: At, *, edits: int = 40, **job: Any) -> Worker:
    """A consumer of `group` that has reached a step with ten entries at hand, ten that it has asked for, and more that
    nobody has read.
    """
    world.edit(edits)
    world.publish()
    worker = world.consumer(at=[at], options={"batch": HELD // 2}, **job).reach(at.step)
    eventually(lambda: len(world.pending()) == HELD)
    return worker


def bring_to_rest(world: World) -> None:
    """Heals, has a relay, and consumers of the other services, and more to do for those of `group` that live."""
    world.heal()
    world.relay()
    world.consumer("friend")
    world.edit(20)
    world.settle(by_living=True)


def go_on(world: World) -> None:
    """There is more to do, for new processes."""
    world.edit(20)
    world.settle()


def consume(world: World, service: str) -> None:
    """Has a service settle everything that it has not been given yet, and stops its consumer."""
    done = world.consumer(service, options={"until_empty": True}).finish()
    assert done["left_pending"] == 0


def letters(world: World, service: str = "group") -> Counter[str]:
    """How many dead letters each entry has."""
    return Counter(letter.source_id for letter in load_group(world.client, service).letters)


def tally(world: World, outcome: str, service: str = "group") -> int:
    """How many events of any source a service has settled so."""
    statement = "SELECT coalesce(sum(n), 0) FROM tally WHERE outcome = ?"
    return int(rows(world.stores / f"{service}.db", statement, [outcome])[0][0])


def told(world: World, command: str) -> tuple[int, dict[str, Any]]:
    """What `imsync status` or `verify` exits with, and says."""
    done = world.command(command, "--json")
    return done["code"], json.loads(done["out"])


def accounting(status: dict[str, Any], service: str = "group") -> dict[str, int]:
    """The accounts of a service."""
    (group,) = (each for each in status["groups"] if each["group"] == service)
    return dict(group["accounting"])


def has_problem(status: dict[str, Any], *words: str) -> bool:
    """Whether one of the problems names all these words."""
    return any(all(word in problem["what"] for word in words) for problem in status["problems"])


# ── two of one name ──────────────────────────────────────────────────────────────────────────────────


def test_the_second_consumer_of_a_name_waits(world: World, fault: Fault) -> None:
    row = fault("two consumers of one name · the second waits")
    first = hold_some(world, At("before_apply"), name="reader")
    second = world.consumer(name="reader")
    eventually(lambda: TAKEN in second.log)
    with world.watching(second):
        eventually(lambda: second.log.count(TAKEN) > 10)
    assert settled(world) == [0, 0]
    row.reached(second.log.count(TAKEN))
    first.kill()
    bring_to_rest(world)
    assert second.result["applied"] > 0
    row.found(world.check())


def test_two_consumers_of_one_name_are_at_work_at_once(world: World, fault: Fault) -> None:
    """Somebody deletes the key that says whose the name is: the second reads what the first has at hand."""
    row = fault("two consumers of one name · both at work, the heartbeat deleted")
    first = hold_some(world, At("before_apply"), name="reader")
    at_hand = set(world.pending())
    second = world.consumer(name="reader", at=[At("before_apply")], options={"batch": 10})
    _give_name_to(world, second)
    second.reach("before_apply")
    assert set(world.pending()) == at_hand
    assert set(world.pending().values()) == {"reader"}
    row.reached()
    for worker in (first, second):
        worker.go_on()
    for worker in (first, second) * 5:
        _give_name_to(world, worker)
        world.edit(3)
        world.publish()
        row.reached()
    bring_to_rest(world)
    assert first.result["applied"] + first.result["duplicates"] >= 10
    assert second.result["applied"] + second.result["duplicates"] >= 10
    row.found(world.check())


def _give_name_to(world: World, worker: Worker) -> None:
    """Deletes the key until this one is the quickest."""

    def has_it() -> bool:
        holder = json.loads(world.client.get(READERS_KEY) or b"{}")  # type: ignore[arg-type]
        if holder and holder["pid"] != worker.pid:
            world.client.delete(READERS_KEY)
        return bool(holder) and holder["pid"] == worker.pid

    eventually(has_it)


def test_somebody_else_takes_the_name(world: World, fault: Fault) -> None:
    """Whoever has it then reads no more, loudly, until it is free."""
    row = fault("two consumers of one name · the heartbeat overwritten")
    reader = hold_some(world, At("before_apply"), name="reader")
    world.client.set(READERS_KEY, json.dumps({"host": "elsewhere", "pid": 7, "token": "other"}))
    beats = world.proxy.hold("GET", READERS_KEY, nth=2).wait()  # it has looked once, and knows
    beats.release()
    reader.go_on()
    eventually(lambda: TAKEN in reader.log)
    with world.watching(reader):
        eventually(lambda: reader.log.count(TAKEN) > 10)
    assert tally(world, "applied") + tally(world, "superseded") == 10, "what it had at hand, and no more"
    row.reached(reader.log.count(TAKEN))
    world.client.delete(READERS_KEY)
    bring_to_rest(world)
    row.found(world.check())


# ── zombies ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("step", ["before_apply", "after_commit", "mid_ack"])
def test_a_zombie_is_harmless(world: World, fault: Fault, step: str) -> None:
    """Stopped for longer than its heartbeat lasts: another takes over what it holds. Then it goes on with it."""
    row = fault(f"zombie · {step}")
    zombie = hold_some(world, At(step, "freeze"))
    held = world.pending()
    assert len(held) == HELD
    other = world.consumer()
    eventually(lambda: settled(world)[0] == 40 and not world.pending())
    row.reached()
    zombie.thaw()
    other.terminate()
    assert other.finish()["taken_over"] == HELD
    bring_to_rest(world)
    assert zombie.result["applied"] > 0, "it goes on as before"
    row.found(world.check())


@pytest.mark.parametrize("end", ["killed", "continued"])
@pytest.mark.parametrize("step", ["in_transaction", "before_commit"])
def test_a_zombie_has_the_stores_lock(world: World, fault: Fault, step: str, end: str) -> None:
    """The other one can only wait, loudly."""
    row = fault(f"zombie · {step}, then {end}")
    zombie = hold_some(world, At(step, "freeze", inside="apply"))
    other = world.consumer(busy_timeout_ms=50)
    eventually(lambda: LOCKED in other.log)
    with world.watching(other):
        eventually(lambda: other.log.count(LOCKED) > 8)
    row.reached(other.log.count(LOCKED))
    assert settled(world)[0] == 0
    if end == "killed":
        zombie.kill()
    else:
        zombie.thaw()
    bring_to_rest(world)
    assert other.result["applied"] > 0
    row.found(world.check())


BURYING = ("before_bury", "in_transaction", "before_commit", "after_record_dead", "mid_bury")


@pytest.mark.parametrize("step", BURYING)
def test_a_zombie_buries_nothing_twice(world: World, fault: Fault, step: str) -> None:
    row = fault(f"zombie · dead letter · {step}")
    world.edit(10)
    world.publish()
    poison = world.inject(b"{")
    has_lock = step in ("in_transaction", "before_commit")
    zombie = world.consumer(at=[At(step, "freeze", inside="bury" if has_lock else "")]).reach(step)
    other = world.consumer(busy_timeout_ms=50)
    if has_lock:
        eventually(lambda: LOCKED in other.log)
    else:
        eventually(lambda: letters(world)[poison] and not world.pending())
    row.reached()
    zombie.thaw()
    bring_to_rest(world)
    row.found(world.check())
    assert letters(world) == {poison: 1}


# ── names that change ────────────────────────────────────────────────────────────────────────────────


def test_a_consumer_is_renamed_with_pending_entries(world: World, fault: Fault) -> None:
    row = fault("renamed with pending entries")
    old = hold_some(world, At("before_apply"), name="old")
    old.kill()
    held = world.pending()
    assert set(held.values()) == {"old"}
    renamed = world.consumer(name="renamed")
    bring_to_rest(world)
    assert renamed.result["taken_over"] == len(held) == HELD
    row.reached(len(held))
    row.found(world.check())
    pruned = world.command("consumer", "prune", "--group", "group", "--yes", "--json")
    assert [each["consumer"] for each in json.loads(pruned["out"])["consumers"]] == ["old"], "nobody else is left"
    assert json.loads(pruned["out"])["removed"] == 1


@pytest.mark.parametrize("alive", [False, True], ids=["dead", "living"])
def test_somebody_deletes_a_consumer_with_pending_entries(world: World, fault: Fault, alive: bool) -> None:
    """By XGROUP DELCONSUMER, which drops what it holds. A living one has them at hand and applies them all the same."""
    row = fault(f"XGROUP DELCONSUMER · {'living' if alive else 'dead'}")
    worker = hold_some(world, At("before_apply"))
    held = world.pending()
    if not alive:
        worker.kill()
    dropped: Any = world.client.xgroup_delconsumer(STREAM, "group", next(iter(held.values())))
    row.reached(dropped)
    assert dropped == HELD
    assert not world.pending()
    if not alive:
        world.settle()
        _is_told_of(world, unexplained=HELD)
        assert {"skipped_by_group", "copies_differ"} <= {violation.name for violation in world.check()}
        world.client.xgroup_setid(STREAM, "group", "0")  # one way to mend it: everything comes again
        world.consumer()
    bring_to_rest(world)
    row.found(judged(world))


def _is_told_of(world: World, *, unexplained: int, cause: str = "unknown") -> None:
    """`status` is red, and `verify` finds copies that are behind, acknowledged without an effect."""
    code, status = told(world, "status")
    assert (code, status["healthy"]) == (3, False)
    assert accounting(status)["unexplained"] == unexplained
    assert has_problem(status, "the group service", f"{unexplained} unexplained events")
    code, verdict = told(world, "verify")
    assert (code, set(verdict["causes"])) == (3, {cause})


# ── groups that are moved ────────────────────────────────────────────────────────────────────────────


def test_a_group_is_moved_forward(world: World, fault: Fault) -> None:
    """By XGROUP SETID: what was between is never delivered."""
    row = fault("XGROUP SETID · forward")
    world.edit(10)
    world.settle()
    world.edit_users(world.users[:40])
    world.publish()
    consume(world, "friend")
    ids = [entry_id for entry_id, _ in world.client.xrange(STREAM)]  # type: ignore[union-attr]
    world.client.xgroup_setid(STREAM, "group", ids[10 + 24])
    row.reached(25)
    code, status = told(world, "status")
    assert (code, accounting(status)["unexplained"]) == (3, 25), "before anybody has noticed"
    world.settle()
    _is_told_of(world, unexplained=25)
    _rebuild_what_was_skipped(world, row, 25)


def test_a_group_is_moved_forward_before_it_was_ever_fed(world: World, fault: Fault) -> None:
    """A store that has never settled anything is refused by such a group, by name."""
    row = fault("XGROUP SETID · forward, at the very start")
    world.edit(40)
    world.publish()
    world.client.xgroup_setid(STREAM, "group", "$")
    assert "group 'group' was fed before, and this store has never been" in refused(world)
    row.reached()
    _rebuild_what_was_skipped(world, row, 40)


def test_a_group_is_moved_beyond_the_end(world: World, fault: Fault) -> None:
    """It is given nothing any more, while its consumers look well."""
    row = fault("XGROUP SETID · beyond the end")
    world.edit(10)
    world.settle()
    world.client.xgroup_setid(STREAM, "group", "9999999999999-0")
    world.edit_users(world.users[:40])
    world.publish()
    consume(world, "group")
    consume(world, "friend")
    row.reached(40)
    code, status = told(world, "status")
    assert (code, accounting(status)["unexplained"]) == (3, 40)
    problem = status["problems"][0]
    assert "behind the end of the stream" in problem["what"]
    assert problem["remedy"] == "imsync rebuild group"
    _rebuild_what_was_skipped(world, row, 40)


def _rebuild_what_was_skipped(world: World, row: Row, skipped: int) -> None:
    """What the group was never given is in the stream still, and the snapshot covers it."""
    rebuilt(world, "group")
    go_on(world)
    assert covered(world) == skipped
    row.found(judged(world))


def test_a_group_is_moved_backward(world: World, fault: Fault) -> None:
    """By XGROUP SETID: everything comes again, and changes nothing."""
    row = fault("XGROUP SETID · backward")
    traffic = Traffic(world)
    traffic.progress()
    before = tally(world, "duplicate")
    for _ in range(3):
        world.client.xgroup_setid(STREAM, "group", "0")
        traffic.progress()
    traffic.stop()
    bring_to_rest(world)
    repeats = tally(world, "duplicate") - before
    assert repeats >= 3 * 15
    row.reached(repeats)
    row.found(judged(world))


# ── entries that are removed by hand ─────────────────────────────────────────────────────────────────


def _trim(world: World, ids: Sequence[bytes]) -> None:
    rest: Any = world.client.xlen(STREAM)
    world.client.xtrim(STREAM, maxlen=rest - len(ids), approximate=False)


def _delete(world: World, ids: Sequence[bytes]) -> None:
    world.client.xdel(STREAM, *ids)


REMOVALS: dict[str, Callable[[World, Sequence[bytes]], None]] = {"XTRIM MAXLEN": _trim, "XDEL": _delete}


NOTICED = pytest.mark.parametrize("per_round_trip", [10, 1000], ids=["unnoticed", "noticed by the relay"])
"""The relay looks at the first and at the last row of its newest round trip, and at the last one before: it sends again
what a server has lost. What is removed before that it cannot notice."""


def remove_first(world: World, how: str, count: int) -> None:
    """Removes the oldest entries."""
    ids = [entry_id for entry_id, _ in world.client.xrange(STREAM, count=count)]  # type: ignore[union-attr]
    REMOVALS[how](world, ids)
    assert not world.client.xrange(STREAM, ids[0], ids[-1])


@NOTICED
@pytest.mark.parametrize("how", REMOVALS)
def test_pending_entries_are_removed(world: World, fault: Fault, how: str, per_round_trip: int) -> None:
    """They are lost: acknowledged, counted, and told."""
    row = fault(f"{how} · pending entries")
    users = world.users[:30]
    world.edit_users(users)
    world.publish(batch=per_round_trip)
    consume(world, "friend")
    world.consumer(at=[At("before_apply")], options={"batch": 10}).reach("before_apply").kill()
    remove_first(world, how, 6)
    code, verdict = told(world, "verify")
    assert (code, verdict["causes"], verdict["in_flight"]) == (3, {"trimmed": 6}, 24)
    other = world.consumer()
    world.settle(stop=False)
    assert "6 entries of imsync:{user-update}:stream were trimmed while they were pending" in other.log
    row.reached(tally(world, "lost"))
    code, status = told(world, "status")
    told_of = code, accounting(status)["lost"], accounting(status)["unexplained"]
    if per_round_trip != 10:
        assert told_of == (0, 0, 0), "the relay has sent them again, and nothing is missing"
    else:
        assert told_of == (3, 6, 0)
        assert has_problem(status, "the group service", "lost 6 entries")
        code, verdict = told(world, "verify")
        assert (code, verdict["causes"]) == (3, {"trimmed": 6})
        world.edit_users(users)  # newer events carry everything
    world.settle(by_living=True)
    assert other.result["lost"] == 6
    row.found(judged(world))


@pytest.mark.parametrize("how", REMOVALS)
def test_entries_are_removed_that_a_consumer_has_at_hand(world: World, fault: Fault, how: str) -> None:
    """Nothing is lost: it knows what they say."""
    row = fault(f"{how} · entries at hand")
    world.edit(20)
    world.publish()
    consume(world, "friend")
    reader = world.consumer(at=[At("before_apply")], options={"batch": 10}).reach("before_apply")
    remove_first(world, how, 10)
    row.reached(10)
    reader.go_on()
    bring_to_rest(world)
    assert (tally(world, "lost"), reader.result["lost"]) == (0, 0)
    row.found(judged(world))


@NOTICED
@pytest.mark.parametrize("how", REMOVALS)
def test_unread_entries_are_removed(world: World, fault: Fault, how: str, per_round_trip: int) -> None:
    """No consumer ever hears of them. The accounts do, and so does whoever compares."""
    row = fault(f"{how} · unread entries")
    world.edit_users(world.users[:40])
    world.publish(batch=per_round_trip)
    consume(world, "friend")
    remove_first(world, how, 25)
    code, verdict = told(world, "verify")
    assert (code, verdict["causes"], verdict["in_flight"]) == (3, {"trimmed": 25}, 15)
    code, status = told(world, "status")
    assert (code, accounting(status)["unexplained"]) == (3, 25)
    row.reached(25)
    world.settle()
    if per_round_trip == 10:
        _is_told_of(world, unexplained=25, cause="trimmed")
        rebuilt(world, "group")
    go_on(world)
    row.found(judged(world))


@NOTICED
def test_a_group_is_created_after_trimming(world: World, fault: Fault, per_round_trip: int) -> None:
    """It would miss what has left the stream: refused, unless its store is filled from a snapshot."""
    row = fault("a group created after trimming")
    world.edit(30)
    world.settle()
    assert world.command("group", "drop", "friend", "--yes")["code"] == 0
    world.edit_users(world.users[:30])
    world.publish(batch=per_round_trip)
    consume(world, "group")
    remove_first(world, "XTRIM MAXLEN", 40)
    answer = world.command("group", "create", "friend", "--json")
    error = json.loads(answer["out"])["error"]
    assert (answer["code"], error["kind"]) == (2, "usage"), error
    assert "at least 40 entries have left the stream" in error["message"]
    assert "imsync rebuild friend" in error["hint"]
    assert not load_group(world.client, "friend").exists
    row.reached()
    rebuilt(world, "friend")
    go_on(world)
    row.found(judged(world))


# ── repeats, and other orders ────────────────────────────────────────────────────────────────────────


def _shuffled(rng: random.Random, events: Sequence[OutboxRow]) -> list[OutboxRow]:
    return rng.sample(events, len(events))


ORDERS: dict[str, Callable[[random.Random, Sequence[OutboxRow]], Sequence[OutboxRow]]] = {
    "three times each": lambda rng, events: [event for event in events for _ in range(3)],
    "newest first": lambda rng, events: events[::-1],
    "in any order": _shuffled,
    "three times each, in any order": lambda rng, events: _shuffled(rng, [*events] * 3),
}


@pytest.mark.parametrize("per_batch", [4, 50])
@pytest.mark.parametrize("name", ORDERS)
def test_events_are_repeated_and_reordered(
    world: World, fault: Fault, rng: random.Random, name: str, per_batch: int
) -> None:
    """In one batch of the consumers, and across many of them."""
    row = fault(f"published {name}")
    events = 0
    for _ in range(3):
        events += world.edit(40)
        world.publish(order=lambda rows: ORDERS[name](rng, rows))
        row.reached(_repeats(world) + _overtaken(world))
        world.republish()
    for service in world.services:
        world.consumer(service, options={"batch": per_batch})
    world.settle()
    row.found(world.check())
    extra = world.client.xlen(STREAM) - events  # type: ignore[operator]
    assert [tally(world, "duplicate", service) for service in world.services] == [extra, extra]


def _events(world: World) -> list[tuple[str, int, int]]:
    """What the stream says, in its order: event ids, users, versions."""
    bodies: Any = [json.loads(fields[b"event"]) for _, fields in world.client.xrange(STREAM)]  # type: ignore[union-attr]
    return [(body["id"], body["data"]["id"], int(body["sequence"])) for body in bodies]


def _repeats(world: World) -> int:
    return sum(n - 1 for n in Counter(event_id for event_id, _, _ in _events(world)).values())


def _overtaken(world: World) -> int:
    """How many events come after a newer one of their user."""
    newest: Counter[int] = Counter()
    overtaken = 0
    for _, user, version in _events(world):
        overtaken += version < newest[user]
        newest[user] = max(newest[user], version)
    return overtaken


# ── one user ─────────────────────────────────────────────────────────────────────────────────────────


def test_two_producers_edit_one_user(world: World, fault: Fault) -> None:
    """One waits for the other's transaction; each sees what the other has written."""
    row = fault("two producers edit one user")
    user = world.users[0]
    at = [At("before_commit", nth=5), At("after_commit", nth=10)]
    job = {"users": [user], "count": 30, "per_transaction": 1}
    for service in world.services:
        world.consumer(service)
    world.relay()
    first = world.producer(name="first", at=at, **job).reach("before_commit")
    second = world.producer(name="second", at=[At("before_edit", "note")], **job).reach("before_edit")
    first.go_on()
    first.reach("after_commit")
    assert second.finish() == {"accepted": 30}
    first.go_on()
    assert first.finish() == {"accepted": 30}
    world.settle()
    events = load_source(world.stores / "user.db").outbox
    assert [event.version for event in events] == list(range(2, 62))
    writers = ["first" if "first" in _news(before, after) else "second" for before, after in _steps(world, user)]
    turns = sum(one != other for one, other in pairwise(writers))
    assert turns >= 2
    row.reached(turns)
    row.found(world.check())


def _steps(world: World, user: int) -> list[tuple[dict[str, str], dict[str, str]]]:
    events = load_source(world.stores / "user.db").outbox
    states = [dict(world.template.began[user].values), *(dict(event.values or {}) for event in events)]
    return list(pairwise(states))


def _news(before: dict[str, str], after: dict[str, str]) -> str:
    return " ".join(value for name, value in after.items() if before[name] != value)


@pytest.mark.parametrize("late", ["the same event again", "one that was overtaken", "one of another source"])
def test_an_update_comes_after_the_tombstone(world: World, fault: Fault, late: str) -> None:
    row = fault(f"after the tombstone · {late}")
    user = world.users[0]
    for service in world.services:
        world.consumer(service, options={"batch": 1})
    world.edit_users([user])
    if late == "one that was overtaken":
        world.delete(user)
        world.publish(order=lambda rows: rows[::-1])
    else:
        world.publish()
        world.delete(user)
        world.publish()
        eventually(lambda: settled(world) == [2, 2])
    if late == "the same event again":
        world.client.xadd(STREAM, world.client.xrange(STREAM)[0][1])  # type: ignore[index]
    elif late == "one of another source":
        event = UserUpdated(id=user, version=99, nick_name="back", head_image="", head_image_thumb="")
        world.inject_event(event)
    world.settle()
    row.reached()
    row.found(judged(world))
    replicas = [
        rows(
            world.stores / f"{service}.db",
            "SELECT deleted, nick_name FROM user_profile_replica WHERE user_id = ?",
            [user],
        )
        for service in world.services
    ]
    assert replicas == [[(1, "")], [(1, "")]]
    if late == "one of another source":
        code, status = told(world, "status")
        assert (code, accounting(status)["conflicts"], accounting(status)["foreign"]) == (3, 1, 1)


# ── an event that kills ──────────────────────────────────────────────────────────────────────────────

DEADLY = "kills"


def _dies_of_one(store: Any) -> Any:
    """A handler whose process one event ends."""
    apply = store.apply

    def dying(batch: Sequence[Any]) -> Any:
        if any(getattr(each.event, "nick_name", "") == DEADLY for each in batch):
            os.kill(os.getpid(), signal.SIGKILL)
        return apply(batch)

    store.apply = dying
    return store


def test_an_event_kills_its_consumers(world: World, fault: Fault) -> None:
    """Twice with all that came with it, three times alone: then it is buried. Whatever came with it is applied."""
    row = fault("an event that kills its consumer")
    world.services = ("group",)
    world.relay(batch=5)
    producer = world.producer(count=None, pause_seconds=0.02)
    eventually(lambda: world.client.xlen(STREAM) > 5)  # type: ignore[operator]
    event = UserUpdated(id=world.users[0], version=1, nick_name=DEADLY, head_image="", head_image_thumb="")
    poison = world.inject_event(event, expects="dead")
    eventually(lambda: _newest(world) > parts(poison))
    deaths = 0
    while not letters(world):
        worker = world.consumer(handler=_dies_of_one)
        eventually(lambda worker=worker: not worker.alive or letters(world))
        if not worker.alive:
            assert worker.wait() == -signal.SIGKILL, worker.log
            deaths += 1
            assert deaths < 10
    producer.terminate()
    producer.finish()
    world.settle(by_living=True)
    row.reached(deaths)
    assert deaths == 2 + 3
    row.found(world.check())
    assert [letter.reason for letter in load_group(world.client, "group").letters] == [KILLS_CONSUMER]
    assert letters(world) == {poison: 1}
    assert not world.client.exists("imsync:{user-update}:attempting:group")


def _newest(world: World) -> tuple[int, int]:
    return parts(world.client.xrevrange(STREAM, count=1)[0][0].decode())  # type: ignore[index]
