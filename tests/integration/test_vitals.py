"""What a consumer tells of its work beside its heartbeat, and what others make of it."""

from __future__ import annotations

import json
import logging
import threading
import time
from typing import Any

import pytest

from imsync.bus.inspection import ConsumerView, view_group
from imsync.bus.liveness import Heartbeat, Life, lives
from imsync.bus.vitals import Journal, Vitals
from imsync.errors import RedisRefused, StoreUnusable
from tests.consumers import GROUP, Rig, Settling
from tests.servers import StartServer, eventually


def member(rig: Rig) -> ConsumerView:
    (found,) = eventually(lambda: view_group(rig.bus, "notes", GROUP).members)
    return found


def vitals(rig: Rig) -> Vitals:
    return eventually(lambda: (life := member(rig).life) and life.vitals)


def test_a_consumer_tells_of_its_work_until_it_leaves(any_rig: Rig) -> None:
    before_ms = time.time_ns() // 1_000_000
    running = any_rig.start(Settling())
    any_rig.publish(range(1, 8))
    told = eventually(lambda: v if (v := vitals(any_rig)).events == 7 else None)
    assert (told.dead, told.failing, told.troubles, told.last_error) == (0, 0, 0, None)
    assert before_ms <= (told.last_batch_ms or 0) <= time.time_ns() // 1_000_000
    life = member(any_rig).life
    assert life is not None
    assert (life.host is not None, life.pid is not None) == (True, True)
    assert before_ms - 1000 < (life.since_ms or 0) <= (told.last_batch_ms or 0)
    running.stop()
    assert any_rig.client.keys(any_rig.keys.vitals(GROUP, "*")) == []


def test_a_consumer_tells_what_its_last_trouble_was(rig: Rig) -> None:
    broken = threading.Event()
    broken.set()

    def fail(numbers: list[int]) -> None:
        if broken.is_set():
            raise StoreUnusable("the disk is full")

    rig.start(Settling(fail))
    rig.publish([1])
    told = eventually(lambda: v if (v := vitals(rig)).last_error else None)
    assert (told.last_error, told.events) == ("store_unusable", 0)
    assert (told.troubles or 0) > 0
    broken.clear()
    eventually(lambda: vitals(rig).events == 1)


def test_a_handler_that_fails_is_told_by_its_exception(rig: Rig) -> None:
    def fail(numbers: list[int]) -> None:
        raise LookupError("no such note: 0123456789")

    rig.start(Settling(fail))
    rig.publish([1])
    told = eventually(lambda: v if (v := vitals(rig)).dead == 1 else None)
    assert told.last_error == "LookupError", "without what the message holds"


def test_a_server_that_is_full_takes_no_vitals_and_no_harm_comes_of_it(
    start_server: StartServer, caplog: pytest.LogCaptureFixture
) -> None:
    """The heartbeat lives on, and the refusal is noted once."""
    caplog.set_level(logging.DEBUG, "imsync.bus.liveness")
    server = start_server(maxmemory_policy="noeviction")
    rig = Rig(server.url)
    rig.start(Settling())
    rig.publish([1])
    eventually(lambda: vitals(rig).events == 1)
    rig.client.config_set("maxmemory", 1)
    refused = "cannot tell of its work"
    eventually(lambda: refused in caplog.text)
    alive = rig.keys.alive(GROUP, member(rig).name)
    for _ in range(5):  # beats
        was = rig.client.pttl(alive)
        eventually(lambda was=was: rig.client.pttl(alive) > was)  # type: ignore[misc]
        eventually(lambda was=was: rig.client.pttl(alive) <= was)  # type: ignore[misc]
    assert member(rig).life == Life(*_told(rig, alive), vitals=None), "expired, and the consumer lives"
    assert caplog.text.count(refused) == 1
    rig.client.config_set("maxmemory", 0)
    eventually(lambda: (life := member(rig).life) and life.vitals)
    rig.close()


def _told(rig: Rig, key: str) -> tuple[str, int, int]:
    told = json.loads(rig.client.get(key))
    return told["host"], told["pid"], told["since"]


def test_who_waits_for_a_name_does_not_tell_under_it(rig: Rig) -> None:
    key, told = rig.keys.alive(GROUP, "ann"), rig.keys.vitals(GROUP, "ann")
    rig.client.set(key, "somebody else", px=60_000)
    beats = threading.Semaphore(0)
    heartbeat = Heartbeat(
        rig.bus.endpoint, key, 10, lambda client: beats.release(), vitals_key=told, vitals=lambda: Vitals(events=1)
    )
    with heartbeat:
        for _ in range(3):
            assert beats.acquire(timeout=10)
        assert rig.client.get(told) is None
        rig.client.set(told, "theirs")
    assert rig.client.get(told) == b"theirs", "nor is it removed by who never had the name"


HOSTILE = [
    b"",
    b"null",
    b"[1]",
    b"{" * 5000,
    b'{"a":' * 1500 + b"1",
    b"\xff\xfe",
    json.dumps({"host": "x" * 9999}).encode(),
    json.dumps({"host": 7, "pid": "1", "since": 1.5, "events": True, "last_error": ["x"]}).encode(),
    json.dumps({"pid": -1, "since": 2**64, "events": -5, "troubles": "many", "last_error": ""}).encode(),
]


@pytest.mark.parametrize("value", HOSTILE, ids=range(len(HOSTILE)))
def test_what_nobody_can_read_is_alive_and_unknown(rig: Rig, value: bytes) -> None:
    """Anybody who may use the server may write the keys."""
    rig.client.set(rig.keys.alive(GROUP, "ann"), value)
    rig.client.set(rig.keys.vitals(GROUP, "ann"), value)
    found = lives(rig.client, rig.keys, GROUP, ["ann", "bob"], "here")
    assert found["bob"] is None
    assert found["ann"] in (Life(None, None, None, None), Life(None, None, None, Vitals()))


def test_keys_of_another_type_and_rights_that_are_missing(rig: Rig) -> None:
    rig.client.rpush(rig.keys.alive(GROUP, "ann"), "x")
    rig.client.rpush(rig.keys.vitals(GROUP, "ann"), "x")
    assert lives(rig.client, rig.keys, GROUP, ["ann"], "here") == {"ann": Life(None, None, None, None)}
    rig.client.delete(rig.keys.alive(GROUP, "ann"))
    assert lives(rig.client, rig.keys, GROUP, ["ann"], "here") == {"ann": None}

    def as_user(*rules: str) -> Any:
        rig.client.acl_setuser("reader", enabled=True, nopass=True, commands=["+get", "+ping"], keys=rules, reset=True)
        other = rig.bus.endpoint.connect()
        other.execute_command("AUTH", "reader", "")
        return other

    rig.client.set(rig.keys.alive(GROUP, "ann"), '{"host": "web", "pid": 5}')
    limited = as_user("*:alive:*")
    limited.connection_pool.connection_kwargs |= {"username": "reader", "password": ""}
    assert lives(limited, rig.keys, GROUP, ["ann"], "here") == {"ann": Life("web", 5, None, None)}
    blind = as_user("*:vitals:*")
    blind.connection_pool.connection_kwargs |= {"username": "reader", "password": ""}
    with pytest.raises(RedisRefused):
        lives(blind, rig.keys, GROUP, ["ann"], "here")
    rig.client.acl_deluser("reader")
    limited.close()
    blind.close()


def test_a_journal_keeps_times_and_the_last_error() -> None:
    from imsync.bus.processor import Counts

    journal = Journal(counts := Counts(), clock_ms=iter((5, 6, 7)).__next__)
    assert journal.vitals() == Vitals(0, 0, 0, 0, None, None, None)
    counts.applied, counts.dead, counts.troubles = 3, 1, 2
    journal.settled()
    journal.failed("redis_refused")
    assert journal.vitals() == Vitals(4, 1, 0, 2, 5, "redis_refused", 6)
    assert Vitals.decoded(journal.vitals().encoded()) == journal.vitals()
    assert Vitals.decoded(None) is None
