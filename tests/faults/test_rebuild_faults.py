"""A rebuild that is cut short, repeated, or not alone: until it is whole its store is refused, and then the accounts
close. And a user store that was restored, which no rebuild can help."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.faults import breakage, changelog
from tests.faults.evidence import STREAM, rows
from tests.faults.rebuilding import (
    UNFINISHED_STEPS,
    WHOLE_STEPS,
    covered,
    is_refused,
    judged,
    overrides,
    rebuilt,
    run_until_rest,
    start_rebuild,
)
from tests.faults.rig import World
from tests.faults.steps import At
from tests.faults.table import Fault


def nobody_beats(world: World) -> bool:
    """Whether the heartbeats of the dead have expired."""
    return not list(world.client.scan_iter("imsync:{user-update}:alive:*", count=1000))


def published(world: World, edits: int) -> None:
    """Edits that nobody has consumed."""
    world.producer(count=edits).finish()
    world.publish(**world.relay_options)


# ── cut short ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("how", ["restored from a copy", "made anew", "healthy"])
def test_a_rebuild_is_killed_everywhere(group_world: World, fault: Fault, backup: Path, how: str) -> None:
    """Each time something else waits for the group, and each time the store is refused: it is not whole."""
    world, path = group_world, group_world.stores / "group.db"
    names = overrides(world, "group")
    create = []
    if how == "restored from a copy":
        breakage.restore(path, backup)
    elif how == "made anew":
        breakage.remove(path)
        create, names = ["--create"], {}
    taken = []
    lines = {
        at: fault(f"kill -9 · rebuild, {how} · {at.step} {at.inside}".rstrip())
        for at in (*UNFINISHED_STEPS, *WHOLE_STEPS)
    }
    for at, row in lines.items():
        published(world, 5)
        worker = start_rebuild(world, "group", *create, at=[replace(at, do="die")])
        assert worker.reach(at.step).wait() == -9
        row.reached()
        if how != "healthy" and at in UNFINISHED_STEPS and not is_refused(world):
            taken.append(f"{at.step} {at.inside}")
        world.expect(lambda: nobody_beats(world), "the dead are known to be dead")
    assert not taken, "a store was taken for its group's although it was not whole"
    world.rebuilt.add("group")
    if create:
        changelog.install(path, "group")
    run_until_rest(world, 10)
    rebuilt(world)
    run_until_rest(world, 10)
    assert overrides(world, "group") == names
    found = judged(world)
    for row in lines.values():
        row.found(found)


# ── not alone ────────────────────────────────────────────────────────────────────────────────────────


def test_a_rebuild_is_refused_while_a_consumer_lives(group_world: World, fault: Fault, backup: Path) -> None:
    world, row = group_world, fault("rebuild · while a consumer lives")
    path = world.stores / "group.db"
    consumer = world.consumer()
    world.expect(lambda: not nobody_beats(world), "it lives")
    for arguments in (["group"], ["group", "--create"]):
        done = start_rebuild(world, *arguments).finish()
        assert done["code"] == 2, done
        assert "living" in json.loads(done["out"])["error"]["message"]
        row.reached()
    breakage.remove(path)
    done = start_rebuild(world, "group", "--create").finish()
    assert done["code"] == 2, done
    assert not path.exists(), "a rebuild that is refused changes nothing"
    breakage.restore(path, backup)
    assert consumer.wait() == 1
    rebuilt(world)
    run_until_rest(world, 10)
    row.found(judged(world))


def test_edits_go_on_during_a_rebuild(group_world: World, fault: Fault, backup: Path) -> None:
    """They wait in the outbox while the group is brought up to date, and come after the snapshot otherwise."""
    world, row = group_world, fault("rebuild · while a producer edits")
    breakage.restore(world.stores / "group.db", backup)
    published(world, 20)
    producer = world.producer(count=None, pause_seconds=0.002)
    pauses = [At("after_drain"), At("before_page"), At("before_page", nth=3), At("before_note")]
    worker = start_rebuild(world, at=pauses)
    worker.reach("after_drain")
    relay = world.relay()
    length, edits = world.client.xlen(STREAM), accepted(world)
    world.expect(lambda: accepted(world) > edits + 50, "edits go on")
    assert world.client.xlen(STREAM) == length, "published while the group was brought up to date"
    for step in ("before_page", "before_page", "before_note"):
        worker.go_on()
        worker.reach(step)
        edits = accepted(world)
        world.expect(lambda edits=edits: accepted(world) > edits + 50, "edits go on")
        row.reached()
    assert world.client.xlen(STREAM) > length
    worker.go_on()
    done = worker.finish()
    assert done["code"] == 0, done
    world.rebuilt.add("group")
    world.consumer()
    producer.terminate()
    assert producer.wait() == 0
    assert relay.alive
    world.settle()
    row.found(judged(world))


def test_a_relay_at_work_lets_a_rebuild_pass(group_world: World, fault: Fault, backup: Path) -> None:
    """As it is in production: `imsync relay` runs all day, and an edit comes every moment."""
    world, row = group_world, fault("rebuild · while a relay publishes")
    breakage.restore(world.stores / "group.db", backup)
    world.relay()
    producer = world.producer(count=None, pause_seconds=0.005)
    done = start_rebuild(world).finish()
    assert done["code"] == 0, done
    row.reached()
    world.rebuilt.add("group")
    world.consumer()
    producer.terminate()
    world.settle()
    row.found(judged(world))


def accepted(world: World) -> int:
    """How many edits were accepted so far."""
    return len(world.history.read().accepted)


# ── what comes after ─────────────────────────────────────────────────────────────────────────────────


def test_rebuilt_twice_and_once_more(group_world: World, fault: Fault, backup: Path) -> None:
    world, row = group_world, fault("rebuild · repeated")
    breakage.restore(world.stores / "group.db", backup)
    first, second = rebuilt(world), rebuilt(world)
    assert first["covered"] == second["covered"] == covered(world) == 30
    assert first["changed"] > 0 == second["changed"]
    row.reached()
    run_until_rest(world, 20)
    third = rebuilt(world)
    assert (third["covered"], third["changed"]) == (30, 0)
    row.reached()
    run_until_rest(world, 20)
    row.found(judged(world))


@pytest.mark.parametrize("unread", [False, True], ids=["read", "unread"])
def test_a_store_is_made_anew_after_the_stream_was_trimmed(
    group_world: World, fault: Fault, backup: Path, unread: bool
) -> None:
    """No event can bring back what the stream has forgotten; the source knows it still."""
    world = group_world
    world.relay_options = {"history_hours": 0.0}  # all that is trimmed is old
    row = fault(f"rebuild · stream trimmed{', past what was not read' if unread else ''}")
    path = world.stores / "group.db"
    breakage.remove(path)
    if unread:
        published(world, 20)
    assert world.client.xtrim(STREAM, maxlen=0, approximate=False) == (80 if unread else 60)
    row.reached()
    result = rebuilt(world, "group", "--create")
    changelog.install(path, "group")
    assert result["covered"] == (80 if unread else 60)
    run_until_rest(world, 20)
    row.found(judged(world))


@pytest.mark.parametrize("trimmed", [0, 45])
def test_the_group_reads_again_what_a_snapshot_covers(
    group_world: World, fault: Fault, backup: Path, trimmed: int
) -> None:
    """What the snapshot covers is recognised, and counts once."""
    world, row = group_world, fault("rebuild · group deleted afterwards")
    world.relay_options = {"history_hours": 0.0}  # all that is trimmed is old
    breakage.restore(world.stores / "group.db", backup)
    assert rebuilt(world)["covered"] == 30
    if trimmed:
        world.client.xtrim(STREAM, maxlen=60 - trimmed, approximate=False)
    world.client.xgroup_destroy(STREAM, "group")
    row.reached()
    run_until_rest(world, 10)
    assert covered(world) == 30
    row.found(judged(world))


@pytest.mark.parametrize("how", ["FLUSHALL", "stream deleted"])
def test_what_a_snapshot_covers_is_lost_by_the_server_and_sent_again(
    group_world: World, fault: Fault, backup: Path, how: str
) -> None:
    world, row = group_world, fault(f"rebuild · {how} afterwards")
    breakage.restore(world.stores / "group.db", backup)
    assert rebuilt(world)["covered"] == 30
    if how == "FLUSHALL":
        world.client.flushall()
    else:
        world.client.delete(STREAM)
    row.reached()
    run_until_rest(world, 10)
    row.found(judged(world))


def test_an_event_was_sent_and_not_noted_when_the_rebuild_began(group_world: World, fault: Fault, backup: Path) -> None:
    world, row = group_world, fault("rebuild · sent, and not noted as sent")
    breakage.restore(world.stores / "group.db", backup)
    world.producer(count=5).finish()
    relay = world.relay(at=[At("after_send", "die")])
    assert relay.reach("after_send").wait() == -9
    row.reached()
    rebuilt(world)
    run_until_rest(world, 10)
    row.found(judged(world))


def test_the_original_comes_back_after_a_rebuild(
    group_world: World, fault: Fault, backup: Path, tmp_path: Path
) -> None:
    """It has committed something that nobody has noted, but not what the rebuilt one has acknowledged since."""
    world, row = group_world, fault("rebuild · the original comes back")
    path = world.stores / "group.db"
    world.consumer_options = world.consumer_options | {"batch": 1}
    run_until_rest(world, 30)  # the copy is far behind
    published(world, 5)
    consumer = world.consumer(at=[At("after_commit", "die")])
    assert consumer.reach("after_commit").wait() == -9
    original = breakage.copy(path, tmp_path / "original.db")
    published(world, 15)
    breakage.restore(path, backup)
    world.expect(lambda: nobody_beats(world), "the dead is known to be dead")
    rebuilt(world)
    mended = breakage.copy(path, tmp_path / "mended.db")
    breakage.restore(path, original)
    row.reached()
    assert is_refused(world)
    breakage.restore(path, mended)
    run_until_rest(world, 10)
    row.found(judged(world))


# ── the source ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("how", ["restored from a backup", "write-ahead log deleted after kill -9"])
def test_the_user_store_is_older_than_its_copies(world: World, fault: Fault, how: str, tmp_path: Path) -> None:
    """The versions that it gives are taken already. Nothing falls and nothing flaps, and it is not silent; what heals
    it is edits, of each user that is ahead, until its version is beyond that of its copies.
    """
    row = fault(f"user store {how}")
    path = world.stores / "user.db"
    run_until_rest(world, 20)
    world.producer(count=5).finish()  # not published yet: they will be, a second time
    backup = breakage.copy(path, tmp_path / "backup.db")
    known = world.history.read().accepted
    relay = world.relay()
    for service in world.services:
        world.consumer(service)
    users = world.users[:10]
    producer = world.producer(count=None, users=users, pause_seconds=0.002)
    world.expect(lambda: edited_since(world, known) >= {*users} and accepted(world) > len(known) + 80, "edits go on")
    producer.kill()
    world.expect(lambda: not world.left(), "they are applied")
    if how == "restored from a backup":
        breakage.restore(path, backup)
        world.expect(lambda: "was replaced while in use" in relay.log, "the relay does not go on with another store")
    relay.kill()
    if how != "restored from a backup":
        assert path.with_name("user.db-wal").stat().st_size > 0
        for each in breakage.all_of(path)[1:]:
            each.unlink()
    row.reached()
    world.history.forgotten(world.history.read().accepted - (known if how == "restored from a backup" else set()))

    assert verdict(world)["causes"] == {"ahead": 2 * len(users)}
    status = world.command("status", "--json")
    assert status["code"] == 3
    assert all(group["accounting"]["unexplained"] < 0 for group in json.loads(status["out"])["groups"])

    world.relay()
    while drifted := sorted({each["user"] for each in verdict(world)["examples"]}):
        assert {*drifted} <= {*users}
        world.producer(count=len(drifted), users=drifted, per_transaction=1).finish()
        world.expect(lambda: not world.left(), "they are applied, or superseded")
        assert not world.found, world.found
    world.settle()
    assert conflicts(world) >= 2, "each service has met an event whose version was taken"
    problems = json.loads(world.command("status", "--json")["out"])["problems"]
    assert any("contradict its history" in problem["what"] for problem in problems)
    # one version has two events, and the outbox knows only the later one; nor does it know how much was published
    row.found(world.check(without=["accounting_open", "outcome_contradicts_effect"]))


def edited_since(world: World, known: set[str]) -> set[int]:
    """The users of whom an edit was accepted besides those that are known."""
    story = world.history.read()
    return {story.attempts[token].user for token in story.accepted - known}


def verdict(world: World) -> dict[str, Any]:
    """What `imsync verify` finds."""
    found: dict[str, Any] = json.loads(world.command("verify", "--json")["out"])
    return found


def conflicts(world: World) -> int:
    """How many events contradict what was applied."""
    return sum(
        n
        for service in world.services
        for (n,) in rows(world.stores / f"{service}.db", "SELECT n FROM tally WHERE outcome = 'conflict'")
    )
