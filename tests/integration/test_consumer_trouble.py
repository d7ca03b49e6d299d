"""The consumer when things go wrong around it: killed processes, killed servers, lost replies, deleted groups."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from imsync.errors import GroupMissing, InfrastructureError, RedisUnreachable
from tests.consumers import GROUP, Recorder, Rig, Settling, settled
from tests.servers import LossyProxy, Server, Spawn, StartServer, eventually

# --- consumers that are killed

HOLD = """
import sys
from tests.consumers import Recorder, Rig

def hold(numbers):
    print(numbers, flush=True)
    sys.stdin.read()  # until the test lets go of the other end

Rig(sys.argv[1]).consumer(Recorder(hold), name=sys.argv[2], heartbeat_ms=int(sys.argv[3])).run()
"""

DIE = """
import json, os, signal, sys
from tests.consumers import Recorder, Rig

class Dying(Recorder):
    def apply(self, batch):
        outcomes = super().apply(batch)
        with open(sys.argv[2], "w") as store:
            json.dump(self.numbers, store)
            store.flush()
            os.fsync(store.fileno())
        os.kill(os.getpid(), signal.SIGKILL)  # committed, and not yet acknowledged
        return outcomes

Rig(sys.argv[1]).consumer(Dying()).run()
"""


def test_the_living_take_over_what_a_killed_process_held(any_rig: Rig, any_server: Server, spawn: Spawn) -> None:
    any_rig.publish(range(1, 11))
    process = spawn("-c", HOLD, any_server.url, "victim", 100)
    assert process.stdout is not None
    assert json.loads(process.stdout.readline()) == list(range(1, 11))
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert any_rig.pending() == {"victim": 10}
    assert any_rig.client.exists(any_rig.keys.alive(GROUP, "victim")), "it still looks alive"
    any_rig.publish([11])
    handler = Recorder()
    counts = any_rig.drain(handler)
    assert handler.batches == [[11], list(range(1, 11))]
    assert (counts.taken_over, counts.applied, counts.events) == (10, 11, 11)
    assert any_rig.pending() == {}


def test_what_the_living_hold_stays_theirs(rig: Rig) -> None:
    holding, released = threading.Event(), threading.Event()

    def hold(numbers: list[int]) -> None:
        holding.set()
        assert released.wait(20)

    rig.publish([1, 2, 3])
    slow, quick = Recorder(hold), Recorder()
    # its heartbeat lasts for 1.5 s, so that a busy machine does not take it for dead
    running = rig.start(slow, name="slow", heartbeat_ms=500)
    try:
        assert holding.wait(10)
        rig.publish([4])
        counts = rig.drain(quick)
        assert quick.batches == [[4]]
        assert (counts.taken_over, counts.left_pending) == (0, 3)
        assert rig.pending() == {"slow": 3}
    finally:
        released.set()
    eventually(lambda: rig.pending() == {})
    assert running.stop().applied == 3


def test_a_running_consumer_notices_a_death(rig: Rig) -> None:
    rig.held_by("doomed", [1, 2, 3])
    heartbeat = rig.keys.alive(GROUP, "doomed")
    rig.client.set(heartbeat, "a living one's", px=60_000)
    handler = Recorder()
    running = rig.start(handler, batch=2)
    rig.publish([4])
    eventually(lambda: handler.batches == [[4]])
    rig.client.delete(heartbeat)
    eventually(lambda: handler.batches == [[4], [1, 2], [3]])
    assert running.stop().taken_over == 3


def test_two_survivors_share_what_the_dead_held(rig: Rig) -> None:
    rig.held_by("dead", range(1, 41))
    handlers = [Recorder(), Recorder()]
    runs = [rig.start(handler, batch=4, until_empty=True, heartbeat_ms=300) for handler in handlers]
    assert sum(running.result().taken_over for running in runs) == 40
    assert sorted(handlers[0].numbers + handlers[1].numbers) == list(range(1, 41))
    assert rig.pending() == {}


def test_a_crash_between_commit_and_acknowledgement_repeats_the_batch(
    rig: Rig, server: Server, spawn: Spawn, tmp_path: Path
) -> None:
    ids = rig.publish(range(1, 6))
    process = spawn("-c", DIE, server.url, tmp_path / "store")
    assert process.wait(20) == -signal.SIGKILL
    assert json.loads((tmp_path / "store").read_text()) == [1, 2, 3, 4, 5]
    assert [entry.id for entry in rig.stream.pending(GROUP, count=9)] == ids
    handler = Recorder()
    assert rig.drain(handler).taken_over == 5
    assert handler.numbers == [1, 2, 3, 4, 5]


# --- servers that are killed


def test_a_server_killed_in_the_middle_loses_nothing(any_kind: str, start_server: StartServer) -> None:
    server = start_server(any_kind, appendonly=True)
    troubles: list[InfrastructureError] = []

    def crash(numbers: list[int]) -> None:
        if 50 in numbers and not troubles:
            server.kill()

    def restart(error: InfrastructureError, seconds: float) -> None:
        troubles.append(error)
        if len(troubles) == 3:
            server.start()

    with contextlib.closing(Rig(server.url)) as rig:
        rig.publish(range(1, 101))
        handler = Settling(crash)
        running = rig.start(handler, batch=20, on_trouble=restart)
        eventually(lambda: len(handler.numbers) == 100)
        rig.publish([101])
        eventually(lambda: len(handler.numbers) == 101)
        eventually(lambda: rig.pending() == {})
        counts = running.stop()
        assert handler.numbers == list(range(1, 102))
        assert {type(error) for error in troubles} == {RedisUnreachable}
        assert (counts.troubles, counts.dead, counts.lost) == (3, 0, 0)
        assert handler.repeats == 20, "the batch at hand came again"
        assert (counts.applied, counts.duplicates) == (101, 0), "and is counted once"
        assert counts.events == settled(counts)
        assert sum(consumer.pending for consumer in rig.stream.consumers(GROUP)) == 0


def test_a_waiting_consumer_survives_its_server(start_server: StartServer) -> None:
    server = start_server(appendonly=True)
    handler = Recorder()
    with contextlib.closing(Rig(server.url)) as rig:
        running = rig.start(handler, block_ms=500)
        eventually(lambda: rig.client.info("clients")["blocked_clients"] == 1)
        server.kill()
        eventually(lambda: running.consumer.counts.troubles >= 2)
        server.start()
        rig.publish([1])
        eventually(lambda: handler.numbers == [1])
        assert running.stop().applied == 1


# --- replies that are lost


LOST = {
    "delivered, and nobody knows": b"XREADGROUP*>",
    "its own entries, before anything else": b"XREADGROUP*0",
    "acknowledged, and nobody knows": b"XACK",
    "buried, and nobody knows": b"XADD*EXEC",
    "a look at what others hold": b"XPENDING",
}


@pytest.mark.parametrize("request_words", LOST.values(), ids=LOST)
def test_a_lost_reply_loses_and_repeats_nothing(
    rig: Rig, server: Server, lossy: Callable[[Server], LossyProxy], request_words: bytes
) -> None:
    rig.publish(range(1, 11))
    rig.stream.append(b"bad")
    rig.publish(range(11, 21))
    proxy = lossy(server)
    proxy.lose_reply_to(*request_words.split(b"*"))
    handler = Recorder()
    counts = rig.drain(handler, url=proxy.url, batch=7)
    assert proxy.lost == counts.troubles == 1
    assert handler.batches == [[1, 2, 3, 4, 5, 6, 7], [8, 9, 10, 11, 12, 13], [14, 15, 16, 17, 18, 19, 20]]
    assert [letter.reason for letter in rig.dead_letters()] == ["bad_json"]
    assert (counts.applied, counts.taken_over, rig.pending()) == (20, 0, {})


def test_a_lost_reply_at_the_start_is_an_error(rig: Rig, server: Server, lossy: Callable[[Server], LossyProxy]) -> None:
    proxy = lossy(server)
    proxy.lose_reply_to(b"XGROUP")
    with pytest.raises(RedisUnreachable):
        rig.start(Recorder(), url=proxy.url).result()
    assert rig.client.keys("*alive*") == []


# --- groups that are deleted


@pytest.mark.parametrize("how", ["XGROUP DESTROY", "DEL", "FLUSHALL"])
def test_a_deleted_group_is_created_again_where_repeats_are_harmless(
    any_rig: Rig, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    rig = any_rig
    handler = Settling()
    running = rig.start(handler)
    rig.publish([1, 2, 3])
    eventually(lambda: handler.numbers == [1, 2, 3] and rig.pending() == {})
    delete(rig, how)
    eventually(lambda: rig.stream.groups())
    rig.publish([4])
    eventually(lambda: handler.numbers == [1, 2, 3, 4])
    counts = running.stop()
    assert counts.troubles >= 1
    assert (counts.applied, counts.duplicates) == (4, 3 if how == "XGROUP DESTROY" else 0), "read from the start"
    assert "was deleted" in caplog.text


@pytest.mark.parametrize("how", ["XGROUP DESTROY", "DEL"])
def test_a_deleted_group_ends_a_consumer_that_would_repeat_its_effects(any_rig: Rig, how: str) -> None:
    rig = any_rig
    handler = Recorder()
    running = rig.start(handler)
    rig.publish([1, 2, 3])
    eventually(lambda: handler.numbers == [1, 2, 3] and rig.pending() == {})
    delete(rig, how)
    with pytest.raises(GroupMissing, match="would repeat its effects") as raised:
        running.result()
    assert "XGROUP CREATE" in raised.value.hint
    assert handler.numbers == [1, 2, 3]
    assert rig.stream.groups() == [], "nothing was created behind anybody's back"
    assert rig.client.keys("*alive*") == []


def delete(rig: Rig, how: str) -> None:
    if how == "XGROUP DESTROY":
        rig.client.xgroup_destroy(rig.keys.stream, GROUP)
    elif how == "DEL":
        rig.client.delete(rig.keys.stream)
    else:
        rig.client.flushall()
