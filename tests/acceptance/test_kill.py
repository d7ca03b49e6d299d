"""kill -9, ^C and SIGTERM at the worst moments: nothing is lost, nothing takes effect twice, nobody hangs."""

from __future__ import annotations

import shutil
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from imsync.cli.publish import SIMULATED_CHUNK
from imsync.embedded import EmbeddedServer
from tests.acceptance.conftest import EDITS
from tests.acceptance.driver import Imsync, event_ids, freeze
from tests.servers import eventually

Process = subprocess.Popen[str]

DEAD_PORT = "redis://127.0.0.1:1"


@pytest.fixture
def quick(bare: Imsync, busy_template: Path) -> Imsync:
    """Stores with `EDITS` published edits, and consumers that are known to be dead 0.75 s after their death."""
    shutil.copytree(busy_template, bare.data)
    bare.set(CONSUMER_HEARTBEAT_MS="250")
    EmbeddedServer(bare.data).start()
    return bare


@pytest.fixture
def calm(im: Imsync) -> Imsync:
    """Stores without any edit, and a running server."""
    EmbeddedServer(im.data).start()
    return im


def finish(im: Imsync) -> dict[str, Any]:
    """Consumes what is left for the group service, and proves its copies right, by the command and by hand."""
    counts: dict[str, Any] = im.json("consume", "group", "--until-empty")
    assert im.json("verify")["drift"] == 0
    assert im.wrong_copies("group") == []
    return counts


def shape(entries: list[dict[str, Any]]) -> list[tuple[str, str, int]]:
    """What must not change of pending entries that nobody touches."""
    return [(e["message_id"].decode(), e["consumer"].decode(), e["times_delivered"]) for e in entries]


def settled(im: Imsync, group: str = "group") -> Counter[str]:
    return Counter(outcome for (outcome,) in im.query(group, "SELECT outcome FROM settled"))


# ── consumers that are killed ────────────────────────────────────────────────────────────────────────


def anywhere(im: Imsync) -> None:
    """Killed wherever it happened to be when it was found holding entries."""
    process = im.start("consume", "group", "--batch", 2)

    def caught() -> bool:
        freeze(process)
        if im.pending():
            return True
        process.send_signal(signal.SIGCONT)
        return False

    eventually(caught)
    process.kill()
    process.wait()


BATCH = 50
HELD = 2 * BATCH
"""What a consumer holds that is held up: the batch at hand, and the next one, which it has asked for."""


@contextmanager
def held_up_before_the_commit(im: Imsync) -> Iterator[Process]:
    """A consumer that has read entries and waits for the store's write lock."""
    with im.locked("group"):
        process = im.start("consume", "group", "--batch", BATCH)
        eventually(lambda: len(im.pending()) == HELD)
        yield process


def before_the_commit(im: Imsync) -> None:
    """Killed when it had read entries and not applied them."""
    with held_up_before_the_commit(im) as process:
        process.kill()
        process.wait()
    assert not settled(im)


def before_the_acknowledgement(im: Imsync) -> None:
    """Killed when it had committed and not acknowledged: the server takes no writes meanwhile."""
    with im.client() as client:
        with held_up_before_the_commit(im) as process:
            client.execute_command("CLIENT", "PAUSE", "60000", "WRITE")
        eventually(lambda: settled(im))
        process.kill()
        process.wait()
        client.execute_command("CLIENT", "UNPAUSE")
    assert (settled(im).total(), len(im.pending())) == (BATCH, HELD)


MOMENTS = [anywhere, before_the_commit, before_the_acknowledgement]


def test_replay_pending_plans_and_then_applies_what_a_killed_consumer_held(quick: Imsync) -> None:
    anywhere(quick)
    held = quick.pending()
    assert held
    before, rows = shape(held), settled(quick)

    assert quick.json("replay", "pending")["planned"] == 0  # nobody has waited 60 s yet
    plan = quick.json("replay", "pending", "--min-idle", "0s", "--dry-run")
    assert [(e["id"], e["owner"], e["deliveries"]) for e in plan["entries"]] == before
    assert all(e["group"] == "group" and 0 <= e["idle_seconds"] < 60 for e in plan["entries"])
    assert (plan["planned"], plan["dry_run"]) == (len(held), True)
    assert [plan[name] for name in ("taken_over", "applied", "superseded", "dead")] == [0, 0, 0, 0]
    assert (shape(quick.pending()), settled(quick)) == (before, rows)  # and changed nothing

    one = before[0][0]
    chosen = quick.json("replay", "pending", "--min-idle", "0s", "--id", one, "--group", "group", "--limit", 9)
    assert [e["id"] for e in chosen["entries"]] == [one]
    done = quick.json("replay", "pending", "--min-idle", "0s", "--consumer", before[0][1])
    assert (done["planned"], done["taken_over"], done["dry_run"]) == (len(held) - 1, len(held) - 1, False)
    for result in (chosen, done):
        assert result["applied"] + result["superseded"] + result["duplicates"] == result["planned"]
    assert quick.pending() == []
    with quick.client() as client:
        names = [consumer["name"] for consumer in client.xinfo_consumers(quick.stream, "group")]
    assert names == [before[0][1].encode()]  # the replay leaves no consumer of its own behind

    group = finish(quick)
    assert group["taken_over"] == 0
    assert settled(quick).total() == EDITS


@pytest.mark.parametrize("moment", MOMENTS)
def test_the_living_take_over_what_the_dead_held(quick: Imsync, moment: Callable[[Imsync], None]) -> None:
    moment(quick)
    held, committed = len(quick.pending()), settled(quick).total()
    assert held
    with quick.client() as client:
        (undelivered,) = (g["lag"] for g in client.xinfo_groups(quick.stream) if g["name"] == b"group")

    group = finish(quick)
    assert (group["taken_over"], group["events"]) == (held, held + undelivered)
    assert group["duplicates"] == committed + held + undelivered - EDITS  # committed and not acknowledged
    if moment is before_the_acknowledgement:
        assert group["duplicates"] == BATCH  # recognised by the settlement log: no effect twice
    assert settled(quick).total() == EDITS
    if moment is before_the_acknowledgement:
        status = quick.run("status", "--json").json()  # of whatever health: nobody consumes for the friend service
        assert status["groups"][0]["accounting"]["unexplained"] == 0


def test_what_the_living_hold_is_left_alone_and_a_zombie_is_harmless(quick: Imsync) -> None:
    """A consumer stands still in the middle of a batch. While its heart beats nobody touches its entries; when
    it has stopped they are taken over, and newer edits are applied; then the consumer wakes up."""
    with held_up_before_the_commit(quick) as zombie:
        freeze(zombie)
    held = shape(quick.pending())
    assert len(held) == HELD
    name = held[0][1]

    stop = threading.Event()

    def beat() -> None:
        with quick.client() as client:
            while not stop.is_set():
                client.set(quick.keys.alive("group", name), "by hand", px=30_000)
                stop.wait(0.02)
            client.delete(quick.keys.alive("group", name))

    heart = threading.Thread(target=beat)
    heart.start()
    try:
        eventually(lambda: name in quick.alive())
        other = quick.json("consume", "group", "--until-empty")
        assert (other["taken_over"], other["left_pending"]) == (0, HELD)
        assert shape(quick.pending()) == held
        verdict = quick.json("verify")
        assert verdict["drift"] == 0
        assert verdict["in_flight"] > 0
    finally:
        stop.set()
        heart.join()

    quick.json("publish", "user-update", "--count", EDITS, "--seed", 8)
    other = quick.json("consume", "group", "--until-empty")
    assert other["taken_over"] == HELD
    assert quick.pending() == []
    versions = "SELECT user_id, version FROM user_profile_replica"
    before = dict(quick.query("group", versions))

    zombie.send_signal(signal.SIGCONT)
    eventually(lambda: name in quick.alive())  # it works again
    counts = quick.end(zombie, signal.SIGTERM).expect(0).json()
    assert (counts["applied"], counts["superseded"], counts["duplicates"]) == (0, 0, HELD)
    after = dict(quick.query("group", versions))
    assert all(after[user] >= version for user, version in before.items())
    finish(quick)
    assert settled(quick).total() == 2 * EDITS


# ── a producer that is killed ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("moment", ["anywhere", "while_publishing"])
def test_no_edit_of_a_killed_producer_is_lost(calm: Imsync, moment: str) -> None:
    producer = calm.start("publish", "user-update", "--count", 1_000_000)
    with calm.client() as client:
        eventually(lambda: client.xlen(calm.stream))
        if moment == "while_publishing":
            client.execute_command("CLIENT", "PAUSE", "60000", "WRITE")
            unsent = "SELECT count(*) FROM outbox WHERE sent_ms IS NULL"
            eventually(lambda: calm.query("user", unsent)[0][0] in range(1000, SIMULATED_CHUNK + 1, 1000))
        producer.kill()
        producer.wait()
        client.execute_command("CLIENT", "UNPAUSE")
    accepted = calm.query("user", "SELECT count(*) FROM outbox")[0][0]
    assert 0 < accepted < 1_000_000

    assert calm.json("relay", "--until-empty")["outbox"] == 0
    with calm.client() as client:
        published = event_ids(fields[b"event"] for _, fields in client.xrange(calm.stream))
    written = {row[0].hex() for row in calm.query("user", "SELECT event_id FROM outbox")}
    assert {each.replace("-", "") for each in published} == written
    counts = finish(calm)
    assert counts["applied"] + counts["superseded"] == accepted
    assert counts["duplicates"] == len(published) - accepted


# ── signals ──────────────────────────────────────────────────────────────────────────────────────────

BOTH = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["INT", "TERM"])


@BOTH
def test_a_consumer_that_is_told_to_stop_finishes_what_it_has(quick: Imsync, number: int) -> None:
    process = quick.start("consume", "group", "--batch", 5)
    eventually(lambda: settled(quick))
    counts = quick.end(process, number).expect(0).json()
    assert 0 < counts["events"] == counts["applied"] + counts["superseded"] == settled(quick).total() < EDITS
    assert counts["left_pending"] == 0
    assert quick.pending() == []
    assert quick.alive() == []
    with quick.client() as client:
        assert client.xinfo_consumers(quick.stream, "group") == []


@BOTH
def test_an_idle_relay_and_an_idle_consumer_end_with_a_summary(calm: Imsync, number: int) -> None:
    relay, consumer = calm.start("relay"), calm.start("consume", "friend")
    counts = calm.json("publish", "user-update", "--count", 20)
    assert (counts["accepted"], counts["outbox"]) == (20, 0)  # published by whichever of the two relays
    eventually(lambda: settled(calm, "friend").total() == 20)
    eventually(lambda: all(catches_sigterm(each) for each in (relay, consumer)))  # the relay may be slow to begin
    began = time.monotonic()
    summary = calm.end(relay, number).expect(0).json()
    assert summary["outbox"] == 0
    assert calm.end(consumer, number).expect(0).json()["events"] == 20
    assert time.monotonic() - began < 5


def test_a_simulation_that_is_told_to_stop_publishes_what_it_has_accepted(calm: Imsync) -> None:
    process = calm.start("publish", "user-update", "--count", 100_000, "--rate", 200)
    eventually(lambda: calm.query("user", "SELECT count(*) FROM outbox WHERE sent_ms IS NOT NULL")[0][0] > 3)
    counts = calm.end(process, signal.SIGINT).expect(0).json()
    assert 3 < counts["accepted"] == counts["published"] < 100_000
    assert counts["outbox"] == 0
    assert calm.query("user", "SELECT count(*) FROM outbox") == [(counts["accepted"],)]


def test_a_second_signal_ends_a_consumer_at_once_and_does_no_harm(quick: Imsync) -> None:
    """Somebody else holds the store's lock, for which the first signal has to wait: up to 5 s."""
    with held_up_before_the_commit(quick) as process:
        end_at_once(quick, process)
    finish(quick)
    assert settled(quick).total() == EDITS


def test_a_second_signal_ends_a_relay_at_once_and_does_no_harm(calm: Imsync) -> None:
    """Between publishing and noting that it has published."""
    calm.json("publish", "user-update", "--count", 100, "--url", DEAD_PORT)
    with calm.locked("user"), calm.client() as client:
        process = calm.start("relay")
        eventually(lambda: client.xlen(calm.stream) == 100)
        end_at_once(calm, process)
    again = calm.json("relay", "--until-empty")
    assert again | {"seconds": 0} == {"published": 100, "resent": 0, "outbox": 0, "seconds": 0}
    assert finish(calm)["duplicates"] == 100


def end_at_once(im: Imsync, process: Process) -> None:
    """Sends two signals to a process that cannot get on."""
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    eventually(lambda: not signals_waiting(process))
    assert process.poll() is None
    done = im.end(process, signal.SIGTERM)
    assert time.monotonic() - began < 2
    assert done.code == 128 + signal.SIGTERM


def test_the_deadline_for_stopping_is_kept_and_told(quick: Imsync) -> None:
    quick.set(CONSUMER_STOP_DEADLINE_SECONDS="0.2")
    with held_up_before_the_commit(quick) as process:
        began = time.monotonic()
        done = quick.end(process, signal.SIGTERM).expect(1)
        assert time.monotonic() - began < 2
    assert "0.2 s" in done.err
    finish(quick)


def signals_waiting(process: Process) -> int:
    """The signals that the process was sent and has not taken yet, as a bit mask."""
    return signal_mask(process, "SigPnd") | signal_mask(process, "ShdPnd")


def catches_sigterm(process: Process) -> bool:
    """Whether the process has a handler for SIGTERM, which it sets up after the one for SIGINT."""
    return bool(signal_mask(process, "SigCgt") >> (signal.SIGTERM - 1) & 1)


def signal_mask(process: Process, name: str) -> int:
    """What the kernel says of a process's signals: a bit for each, from 1 on. proc_pid_status(5)"""
    with open(f"/proc/{process.pid}/status") as status:
        lines = dict(line.split(":", 1) for line in status)
    return int(lines[name], 16)


def test_a_replay_that_selects_nothing_tells_what_it_leaves_alone(im: Imsync) -> None:
    im.ok("publish", "user-update", "--count", 7)
    with im.client() as client:
        client.xreadgroup("group", "somebody", {"imsync:{user-update}:stream": ">"})
    done = im.run("replay", "pending", "--group", "group")
    assert (done.code, done.out.strip()) == (0, "nothing to replay")
    assert "7 entries of group group are pending, and none of them is selected" in done.err
