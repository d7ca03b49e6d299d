"""Stores that cannot be written or read: nothing is acknowledged, nothing that was accepted is lost, and it goes on by
itself when they are whole again. See `breakage` for how they are broken."""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from imsync.im.group_store import GroupStore
from imsync.im.user_store import SCHEMA
from tests.disks import Disk, with_disks
from tests.faults import breakage
from tests.faults.breakage import (
    BREAKAGES,
    DISK_FULL,
    Breakage,
    UnprivilegedConsumer,
    UnprivilegedProducer,
    UnprivilegedRelay,
)
from tests.faults.evidence import STREAM, rows
from tests.faults.nursery import Worker
from tests.faults.rig import World
from tests.faults.steps import At
from tests.faults.table import Fault
from tests.faults.workers import CommandJob

BUSY_MS = 50
WATCHED_SECONDS = 1.0
STORES = ("user", "group", "friend")


@pytest.fixture
def patience(tmp_path: Path) -> list[str]:
    """Arguments of commands that do not wait long for a lock."""
    path = tmp_path / "patience.toml"
    path.write_text(f"[store]\nbusy_timeout_ms = {BUSY_MS}\n")
    return ["--config", str(path), "--json"]


def produce(world: World, count: int, **job: object) -> None:
    """Edits by a process of their own, which has let go of the store."""
    assert world.producer(count=count, **job).finish()["accepted"] == count


def relay(world: World, at: At) -> Worker:
    """A relay for which permissions count."""
    return world.nursery.start(
        UnprivilegedRelay(world.stores, world.url, busy_timeout_ms=BUSY_MS, relay=world.relay_options, steps=(at,))
    )


def consumer(world: World, service: str, at: At) -> Worker:
    """A consumer for which permissions count."""
    return world.nursery.start(
        UnprivilegedConsumer(
            world.stores, world.url, service, options=world.consumer_options, busy_timeout_ms=BUSY_MS, steps=(at,)
        )
    )


def run(world: World, job: type[CommandJob], *arguments: str) -> dict[str, Any]:
    """Runs a command in a way that lets it meet the fault."""
    words = [*arguments, "--data-dir", str(world.stores), "--url", world.url]
    result: dict[str, Any] = world.nursery.start(job(words)).finish()
    return result


def settled(world: World, service: str) -> int:
    """How many events a service has settled."""
    return int(rows(world.stores / f"{service}.db", "SELECT count(*) FROM settled")[0][0])


@pytest.mark.parametrize("broken", BREAKAGES, ids=lambda each: each.name.replace(" ", "-"))
def test_a_store_is_broken_and_mended(world: World, fault: Fault, broken: Breakage, patience: list[str]) -> None:
    if broken.breaks is breakage.io_errors and sys.platform != "linux":
        pytest.skip("prlimit is Linux's")
    break_and_mend(world, fault, broken, patience)


@with_disks
def test_a_disk_is_full_and_is_not_any_more(
    request: pytest.FixtureRequest, world: World, fault: Fault, patience: list[str]
) -> None:
    with Disk(4 * 1024) as disk:
        world.stores = world.template.copy(disk.folder / "stores")
        break_and_mend(world, fault, DISK_FULL, patience)


def break_and_mend(world: World, fault: Fault, broken: Breakage, patience: list[str]) -> None:
    """The relay is about to note what it has sent, the consumers are about to apply it, and a producer is about to
    edit: each of them meets it in the middle of something."""
    user_store, projection = fault(f"user store {broken.name}"), fault(f"projection {broken.name}")
    last = world.users[-1]
    version = world.template.began[last].version + 1
    relaying = relay(world, At("xadd_unread", containing=f'"id":{last}'))
    consumers = {service: consumer(world, service, breakage.hold(last, version)) for service in world.services}
    working = [relaying, *consumers.values()]
    produce(world, 60, users=world.users[:-1])
    world.expect(lambda: not world.left(), "the first edits are applied")
    producer = world.nursery.start(
        UnprivilegedProducer(
            world.stores, world.history.path, "fails", busy_timeout_ms=BUSY_MS, steps=(At("before_edit"),)
        )
    ).reach("before_edit")
    produce(world, 1, users=[last])
    relaying.reach("xadd_unread")
    for worker in consumers.values():
        worker.reach("before_apply")
    before = {service: settled(world, service) for service in world.services}

    with broken.breaks(world, STORES, [*working, producer]):
        for worker in (*working, producer):
            worker.go_on()
        for worker in working:
            world.expect(lambda worker=worker: re.search(broken.says, worker.log), f"{worker} says what is wrong")
        assert producer.wait() == 1
        assert producer.error is not None
        assert producer.error[0] == "StoreUnusable"
        edit = run(world, broken.command, "publish", "user-update", "--user", str(last), "--nick-name", "x", *patience)
        assert edit["code"] == 5, edit
        told = json.loads(edit["out"])["error"]
        assert told["kind"] == "store_unusable"
        assert told["hint"]
        if broken.refused:
            for command in (["consume", "group"], ["relay"], ["verify"], ["status"]):
                done = run(world, broken.command, *command, *patience)
                assert done["code"] == 5, done
        with world.watching(*working):
            time.sleep(WATCHED_SECONDS)
        for service in world.services:
            assert world.client.xpending(STREAM, service)["pending"] == 1, "acknowledged, and not applied"
        user_store.reached()
        projection.reached(len(consumers))
    for service, worker in consumers.items():
        assert worker.alive, worker.log
        world.expect(lambda service=service: settled(world, service) > before[service], f"{service} goes on")
    produce(world, 20)
    world.settle(by_living=True)
    found = world.check()
    for row in (user_store, projection):
        row.found(found)


def test_stores_of_the_first_version_are_migrated_while_everybody_comes(world: World, fault: Fault) -> None:
    """Many processes open them at once: one of each migrates, in a transaction, and all go on. What was settled and
    sent before counts still."""
    row = fault("user store, older schema"), fault("projection, older schema")
    produce(world, 40)
    world.settle()
    breakage.downgrade_user_store(world.stores / "user.db")
    for service in world.services:
        breakage.downgrade_projection(world.stores / f"{service}.db")
        world.client.delete(f"imsync:{{user-update}}:store:{service}")  # there were no bindings either
    before = {service: settled(world, service) for service in world.services}
    assert set(before.values()) == {40}
    producers = [world.producer(count=20, pause_seconds=0.001) for _ in range(2)]
    relays = [world.relay() for _ in range(2)]
    consumers = [world.consumer(service) for service in world.services for _ in range(2)]
    for producer in producers:
        assert producer.finish()["accepted"] == 20
    world.settle(by_living=True)
    assert all(worker.exit_code == 0 for worker in (*relays, *consumers))
    versions = {name: rows(world.stores / f"{name}.db", "PRAGMA user_version")[0][0] for name in STORES}
    copies = dict.fromkeys(world.services, len(GroupStore.schema.migrations))
    assert versions == {"user": len(SCHEMA.migrations), **copies}
    found = world.check()
    for each in row:
        each.reached()
        each.found(found)
    for service in world.services:
        assert settled(world, service) == 80
        bound = world.client.zrange(f"imsync:{{user-update}}:store:{service}", 0, -1, withscores=True)
        meta = dict(rows(world.stores / f"{service}.db", "SELECT key, value FROM meta"))
        assert bound == [(meta["store_id"].encode(), float(meta["generation"]))]
