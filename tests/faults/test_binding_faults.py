"""A store belongs to its group: a second, a lost, a restored or an alien file is refused by name, nothing is consumed
into it, and `imsync rebuild` mends it."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tests.faults import breakage, changelog
from tests.faults.evidence import STREAM, rows
from tests.faults.nursery import Worker
from tests.faults.rebuilding import (
    content,
    failures,
    is_refused,
    judged,
    make_another,
    overrides,
    rebuilt,
    refused,
    store_id,
)
from tests.faults.rig import World
from tests.faults.steps import At
from tests.faults.table import Fault
from tests.servers import eventually

BEAT_SECONDS = 0.06
"""The heartbeat's interval of the consumers here."""


def machine(world: World, folder: Path) -> Path:
    """Another machine's data folder, with stores of its own."""
    return world.template.copy(folder / "machine-two")


def ended_by(worker: Worker) -> str:
    """Waits for the end of a worker that fails; by which error it was ended."""
    assert worker.wait() == 1, worker.log
    assert worker.error is not None
    return worker.error[0]


def names_in(world: World) -> list[str]:
    """Who is in the group: a consumer has a name there from its first read on, which comes after its first look at
    its store."""
    return [each["name"] for each in world.client.xinfo_consumers(STREAM, "group")]


def wait_for(worker: Worker, words: str) -> None:
    """Waits until a worker has said something."""
    eventually(lambda: words in worker.log)


# ── two files in one group ───────────────────────────────────────────────────────────────────────────


def test_a_second_file_is_refused_and_the_first_goes_on(group_world: World, fault: Fault, tmp_path: Path) -> None:
    world, row = group_world, fault("two files in one group · of two systems")
    two = machine(world, tmp_path)
    make_another(two / "group.db")
    before = content(two / "group.db", "group")
    first = world.consumer()
    world.relay()
    world.producer(count=20).finish()
    world.expect(lambda: not world.left(), "the first file is fed")
    producer = world.producer(count=None, pause_seconds=0.005)
    for _ in range(3):
        message = refused(world, data_dir=two)
        assert f"feeds another store ({store_id(world.stores / 'group.db')})" in message
        row.reached()
    assert first.alive
    producer.terminate()
    producer.wait()
    world.settle(by_living=True)
    assert content(two / "group.db", "group") == before
    row.found(world.check(also=["published_twice"]))


def test_two_copies_of_one_file_are_found_out(group_world: World, fault: Fault, tmp_path: Path) -> None:
    """They have one identity and one generation, until the first of them commits something."""
    world, row = group_world, fault("two files in one group · identical copies")
    two = machine(world, tmp_path)
    consumers = {world.stores: world.consumer(), two: world.consumer(data_dir=two)}
    world.expect(lambda: len(names_in(world)) == 2, "both are at work")
    world.producer(count=1).finish()
    world.publish()
    began = time.monotonic()
    world.expect(lambda: not all(worker.alive for worker in consumers.values()), "one of them ends")
    assert time.monotonic() - began < 1.0, "heartbeats are 60 ms apart, and reads take 50 ms"
    (loser,) = [folder for folder, worker in consumers.items() if not worker.alive]
    assert ended_by(consumers[loser]) == "StoreMismatch"
    assert rows(loser / "group.db", "SELECT count(*) FROM settled") == [(0,)]
    row.reached()
    if loser == world.stores:
        world.stop()
        breakage.restore(world.stores / "group.db", breakage.copy(two / "group.db", tmp_path / "winner.db"))
    world.settle()
    row.found(world.check())


def test_two_copies_that_were_both_fed_are_mended_by_a_rebuild(
    group_world: World, fault: Fault, tmp_path: Path
) -> None:
    """Each was given something before it was found out: what one of them has acknowledged, the other one misses."""
    world, row = group_world, fault("two files in one group · both were fed")
    two = machine(world, tmp_path)
    users = world.users[:2]
    both = []
    for user, folder in zip(users, (world.stores, two), strict=True):
        both.append(world.consumer(at=[At("before_apply")], data_dir=folder))
        world.producer(count=1, users=[user]).finish()
        world.publish()
        both[-1].reach("before_apply")
    home, away = both
    home.go_on()
    away.go_on()
    world.expect(lambda: not world.client.xpending(STREAM, "group")["pending"], "both have acknowledged")
    assert [rows(folder / "group.db", "SELECT count(*) FROM settled") for folder in (world.stores, two)] == [[(1,)]] * 2
    world.heal()
    status = json.loads(world.command("status", "--json")["out"])
    assert status["groups"][0]["accounting"]["unexplained"] == 1, "it is known before they are found out"
    deadline = time.monotonic() + 10
    while home.alive and away.alive:  # as long as both have committed equally often, they look alike
        assert time.monotonic() < deadline
        world.producer(count=3).finish()
        world.publish()
    assert ended_by(away if home.alive else home) == "StoreMismatch"
    row.reached()
    world.stop()
    result = rebuilt(world)
    assert result["covered"] >= 1
    world.settle()
    assert "another store" in refused(world, data_dir=two)
    row.found(judged(world))


# ── deleted, restored, replaced ──────────────────────────────────────────────────────────────────────


def test_a_projection_is_deleted_under_its_consumer_and_an_older_copy_put_there(
    group_world: World, fault: Fault, backup: Path
) -> None:
    world = group_world
    deleted, restored = fault("projection deleted · consumer at work"), fault("projection restored · consumer at work")
    path = world.stores / "group.db"
    names = overrides(world, "group")
    consumer = world.consumer()
    world.expect(lambda: names_in(world), "it is at work")
    breakage.remove(path)
    world.producer(count=20).finish()
    world.publish()
    wait_for(consumer, "deleted or moved away")
    with world.watching(consumer):
        time.sleep(1.0)
    assert consumer.alive
    assert world.left(), "acknowledged, and applied nowhere"
    assert not path.exists(), "it was made anew, and empty"
    deleted.reached()
    breakage.restore(path, backup)
    assert ended_by(consumer) == "StoreMismatch"
    before = content(path, "group")
    assert is_refused(world)
    assert content(path, "group") == before
    assert failures(world) == {}
    restored.reached()
    result = rebuilt(world)
    assert result["covered"] == 30
    world.settle()
    assert overrides(world, "group") == names
    found = judged(world)
    for row in (deleted, restored):
        row.found(found)


def test_an_older_copy_takes_the_place_in_the_middle_of_a_batch(group_world: World, fault: Fault, backup: Path) -> None:
    """The events are not to blame: no failure is recorded, and nothing becomes a dead letter."""
    world, row = group_world, fault("projection restored · before a batch is applied")
    consumer = world.consumer(at=[At("before_apply")])
    world.producer(count=20).finish()
    world.publish()
    consumer.reach("before_apply")
    breakage.restore(world.stores / "group.db", backup)
    row.reached()
    consumer.go_on()
    assert ended_by(consumer) == "StoreMismatch"
    assert "the handler failed" not in consumer.log
    assert failures(world) == {}
    rebuilt(world)
    world.settle()
    row.found(judged(world))


@pytest.mark.parametrize("how", ["deleted", "restored from a copy", "replaced by another system's"])
def test_a_projection_is_not_the_groups_when_its_consumer_starts(
    group_world: World, fault: Fault, backup: Path, how: str, tmp_path: Path
) -> None:
    world, row = group_world, fault(f"projection {how} · nobody at work")
    path = world.stores / "group.db"
    names = overrides(world, "group")
    world.producer(count=20).finish()
    world.publish()
    if how == "deleted":
        breakage.remove(path)
        done = world.command("consume", "group", "--until-empty", "--json")
        assert done["code"] == 5
        assert json.loads(done["out"])["error"]["kind"] == "store_unusable"
        assert not path.exists()
        done = world.command("rebuild", "group", "--yes", "--json")
        assert done["code"] == 5
        assert "--create" in json.loads(done["out"])["error"]["hint"]
        assert not path.exists()
    else:
        breakage.restore(path, backup)
        if how != "restored from a copy":
            make_another(path)
        before = content(path, "group")
        assert is_refused(world)
        assert refused(world)
        assert content(path, "group") == before
    assert world.client.xpending(STREAM, "group")["pending"] == 0
    assert failures(world) == {}
    row.reached()
    if how == "deleted":
        result = rebuilt(world, "group", "--create")
        changelog.install(path, "group")
        assert result["creates"]
        assert result["covered"] == 60
        names = {}
    else:
        result = rebuilt(world)
        assert result["covered"] == 30
    assert result["users"] == 200
    world.producer(count=20).finish()
    world.settle()
    assert overrides(world, "group") == names
    row.found(judged(world))


def test_a_store_of_another_kind_is_no_projection_of_this_group(group_world: World, fault: Fault, backup: Path) -> None:
    world, row = group_world, fault("projection replaced by another kind of store")
    breakage.restore(world.stores / "group.db", world.stores / "friend.db")
    for command in (["consume", "group"], ["rebuild", "group", "--yes"], ["rebuild", "group", "--yes", "--create"]):
        done = world.command(*command, "--json")
        assert done["code"] == 5, done
        assert "is not a group store" in json.loads(done["out"])["error"]["message"]
    row.reached()
    breakage.restore(world.stores / "group.db", backup)
    rebuilt(world)
    world.settle()
    row.found(judged(world))


# ── the write-ahead log ──────────────────────────────────────────────────────────────────────────────


def test_the_logs_are_deleted_under_those_who_write_them(world: World, fault: Fault) -> None:
    """What was committed is in no file that has a name: it is saved before anything is acknowledged."""
    row = fault("write-ahead log deleted · everybody at work")
    last = world.users[-1]
    version = world.template.began[last].version + 1
    relay = world.relay(at=[At("xadd_unread", containing=f'"id":{last}')])
    held = breakage.hold(last, version)
    consumers = {service: world.consumer(service, at=[held]) for service in world.services}
    world.producer(count=50, users=world.users[:-1]).finish()
    world.expect(lambda: not world.left(), "the first edits are applied")
    world.producer(count=1, users=[last]).finish()
    relay.reach("xadd_unread")
    for consumer in consumers.values():
        consumer.reach("before_apply")
    for name in ("user", *consumers):
        for path in breakage.all_of(world.stores / f"{name}.db")[1:]:
            path.unlink()
    for worker in (relay, *consumers.values()):
        worker.go_on()
        wait_for(worker, "has lost its write-ahead log")
        row.reached()
    world.producer(count=20).finish()
    world.settle(by_living=True)
    row.found(world.check())


def test_the_log_of_a_projection_is_deleted_after_a_kill(group_world: World, fault: Fault) -> None:
    """The file is an older copy of itself then: refused, and mended by a rebuild."""
    world, row = group_world, fault("write-ahead log deleted · projection, after kill -9")
    path = world.stores / "group.db"
    consumer = world.consumer()
    world.producer(count=30).finish()
    world.publish()
    world.expect(lambda: not world.left(), "it is applied")
    consumer.kill()
    assert path.with_name("group.db-wal").stat().st_size > 0
    for each in breakage.all_of(path)[1:]:
        each.unlink()
    row.reached()
    assert is_refused(world)
    assert rows(path, "SELECT count(*) FROM settled") == [(0,)]
    assert rebuilt(world)["covered"] == 30
    world.settle()
    row.found(judged(world))


def test_a_copy_is_put_over_a_log_that_was_left_behind(group_world: World, fault: Fault, tmp_path: Path) -> None:
    """SQLite takes the pages of the log for those of the copy, and nobody can tell it from a whole store
    (https://www.sqlite.org/howtocorrupt.html, section 1.4): only `verify` finds what is missing in it. The way out is
    to put the copy there once more, without the log.
    """
    world, row = group_world, fault("projection restored · over a log that was left behind")
    path = world.stores / "group.db"
    consumer = world.consumer()
    backup = tmp_path / "backup.db"
    for step, users in enumerate((world.users[:40], world.users[40:80], world.users[80:90])):
        world.producer(count=len(users), users=users).finish()
        world.publish()
        world.expect(lambda: not world.left(), "they are applied")
        if step == 0:
            breakage.copy(path, backup)
        elif step == 1:
            breakage.settle_log(path)  # what was written since the copy is in the file, and in the log no more
    consumer.kill()
    path.write_bytes(backup.read_bytes())
    row.reached()
    done = world.command("verify", "--json")
    assert done["code"] == 3
    assert json.loads(done["out"])["drift"] > 0
    breakage.restore(path, backup)
    assert is_refused(world)
    rebuilt(world)
    world.settle()
    row.found(judged(world))
