"""`relay` and `publish` as processes: told to stop, waiting for each other, fed slowly, and when Redis comes back."""

from __future__ import annotations

import contextlib
import fcntl
import json
import re
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from imsync.embedded import EmbeddedServer
from tests.acceptance.driver import CLI, Done, Imsync, event_ids
from tests.servers import StartServer, eventually

Process = subprocess.Popen[str]

DEAD_PORT = "redis://127.0.0.1:1"
BOTH = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["INT", "TERM"])
RELAYS = pytest.mark.parametrize("flags", [(), ("--until-empty",)], ids=["for_ever", "until_empty"])


def sent(im: Imsync) -> int:
    return int(im.query("user", "SELECT count(*) FROM outbox WHERE sent_ms IS NOT NULL")[0][0])


def told(process: Process) -> str:
    """The next line on a process's stderr."""
    stderr = process.stderr
    assert stderr is not None
    eventually(lambda: select.select([stderr], [], [], 0)[0])
    return stderr.readline()


def signals_waiting(process: Process) -> int:
    """The signals that the process was sent and has not taken yet, as a bit mask."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    lines = dict(line.split(":", 1) for line in status.splitlines())
    return int(lines["SigPnd"], 16) | int(lines["ShdPnd"], 16)


# ── the relay ────────────────────────────────────────────────────────────────────────────────────────


@RELAYS
def test_a_relay_ends_after_the_round_trip_whatever_waits(im: Imsync, flags: tuple[str, ...]) -> None:
    EmbeddedServer(im.data).start()
    im.json("publish", "user-update", "--count", 4000, "--url", DEAD_PORT)
    im.set(RELAY_BATCH="1")
    relay = im.start("relay", *flags)
    with im.client() as client:
        eventually(lambda: sent(im))
        client.execute_command("CLIENT", "PAUSE", "60000", "WRITE")
        relay.send_signal(signal.SIGTERM)
        eventually(lambda: not signals_waiting(relay))
        client.execute_command("CLIENT", "UNPAUSE")
        summary = im.end(relay).expect(0).json()
        assert 0 < summary["published"] == sent(im) == client.xlen(im.stream)
    assert 0 < summary["outbox"] == 4000 - summary["published"]


@contextlib.contextmanager
def another_relay(im: Imsync) -> Iterator[None]:
    """Holds the relay's lock."""
    with (im.data / "user.db.relay-lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@RELAYS
def test_a_relay_that_waits_for_another_says_so_once_and_can_be_told_to_stop(
    im: Imsync, flags: tuple[str, ...]
) -> None:
    EmbeddedServer(im.data).start()
    im.json("publish", "user-update", "--count", 3, "--url", DEAD_PORT)
    with another_relay(im):
        relay = im.start("relay", *flags)
        assert "another relay" in told(relay)
        done = im.end(relay, signal.SIGTERM).expect(0)
    assert done.err == ""
    assert (done.json()["published"], done.json()["outbox"]) == (0, 3)


def test_a_lock_that_cannot_be_used_loses_no_edit(im: Imsync) -> None:
    lock = im.data / "user.db.relay-lock"
    lock.unlink(missing_ok=True)
    lock.mkdir()
    done = im.run("publish", "user-update", "--user", im.users()[0], "--nick-name", "甲", "--json").expect(0)
    assert (done.json()["accepted"], done.json()["outbox"]) == (1, 1)
    (line,) = done.err.splitlines()
    assert "relay-lock" in line
    assert "kept in the outbox" in line
    error = im.json("relay", "--until-empty", code=5)["error"]
    assert error["kind"] == "store_unusable"
    assert error["hint"]
    lock.rmdir()
    assert im.json("relay", "--until-empty")["published"] == 1


# ── Redis goes and comes back during a run ───────────────────────────────────────────────────────────


def test_a_simulation_publishes_again_when_redis_is_back(stores: Imsync, start_server: StartServer) -> None:
    """In the second outage it is told to stop: the last attempt is made however short ago the one before was."""
    im, server = stores, start_server(appendonly=True)
    im.set(URL=server.url)
    server.kill()
    process = im.start("publish", "user-update", "--count", 1_000_000, "--rate", 200)
    assert "kept in the outbox" in told(process)
    server.start()
    at_first = eventually(lambda: sent(im))
    eventually(lambda: sent(im) > at_first)  # so the delivery of the first ones has ended
    server.kill()
    assert "kept in the outbox" in told(process)  # another outage, told again
    server.start()
    done = im.end(process, signal.SIGTERM).expect(0)
    assert re.fullmatch(r"imsync: told to stop after [\d,]+ of 1,000,000 edits\n", done.err), "and of no third outage"
    counts = done.json()
    assert counts["outbox"] == 0
    assert counts["accepted"] == counts["published"] == sent(im)


def test_without_redis_a_short_simulation_is_quick(stores: Imsync) -> None:
    stores.set(URL=DEAD_PORT)
    began = time.monotonic()
    done = stores.run("publish", "user-update", "--count", 50, "--json").expect(0)
    assert time.monotonic() - began < 5
    assert (done.json()["accepted"], done.json()["outbox"]) == (50, 50)
    assert len(done.err.splitlines()) == 1


# ── what the server loses ────────────────────────────────────────────────────────────────────────────


def standing(im: Imsync) -> list[str]:
    """The ids of the events in the stream."""
    with im.client() as client:
        return event_ids(fields[b"event"] for _, fields in client.xrange(im.stream))


def written(im: Imsync) -> list[str]:
    """The ids of the events in the outbox."""
    return event_ids(body for (body,) in im.query("user", "SELECT body FROM outbox ORDER BY seq"))


def test_one_edit_brings_back_what_the_server_has_lost(im: Imsync) -> None:
    im.json("publish", "user-update", "--count", 50)
    with im.client() as client:
        client.flushall()
    done = im.run("publish", "user-update", "--user", im.users()[0], "--nick-name", "甲", "--json").expect(0)
    (line,) = done.err.splitlines()
    assert line.startswith("imsync: error: ")
    assert "has lost events: the last 50 are sent again" in line
    assert (done.json()["accepted"], done.json()["published"], done.json()["outbox"]) == (1, 51, 0)
    assert standing(im) == written(im)
    assert im.json("relay", "--until-empty")["resent"] == 0


def test_the_relay_says_what_was_lost(im: Imsync) -> None:
    im.json("publish", "user-update", "--count", 1200)
    with im.client() as client:
        client.delete(im.stream)
    done = im.run("relay", "--until-empty", "--json").expect(0)
    assert "the last 1200 are sent again" in done.err
    counts = done.json()
    assert (counts["published"], counts["resent"], counts["outbox"]) == (1200, 1200, 0)
    assert standing(im) == written(im)
    with im.client() as client:
        client.delete(im.stream)
    done = im.ok("relay", "--until-empty")
    assert done.out == "1,200 published, 0 wait, 1,200 had been lost and were due again\n"
    assert im.ok("relay", "--until-empty").out == "0 published, 0 wait\n"


def test_a_running_relay_sends_again_what_a_restart_lost(stores: Imsync, start_server: StartServer) -> None:
    """While nobody edits anything."""
    im, server = stores, start_server()
    im.set(URL=server.url)
    relay = im.start("relay")
    im.json("publish", "user-update", "--count", 300)
    eventually(lambda: sent(im) == 300)
    server.kill()
    server.start()
    eventually(lambda: len(standing(im)) == 300)
    done = im.end(relay, signal.SIGTERM).expect(0)
    assert (done.json()["resent"], done.json()["outbox"]) == (300, 0)
    assert "the last 300 are sent again" in done.err
    assert standing(im) == written(im)


def test_sent_rows_are_kept_for_as_long_as_is_set(im: Imsync) -> None:
    im.json("publish", "user-update", "--count", 30)
    for group in ("group", "friend"):
        im.json("consume", group, "--until-empty")
    with im.locked("user") as connection:
        connection.execute("UPDATE outbox SET sent_ms = sent_ms - 100 * 3600000 WHERE seq <= 20")
        connection.commit()
    im.json("relay", "--until-empty")
    assert len(written(im)) == 30
    im.json("relay", "--until-empty", IMSYNC_RELAY_KEEP_SENT_HOURS="99")
    assert len(written(im)) == 10
    verdict = im.json("verify")
    assert (verdict["drift"], verdict["in_flight"]) == (0, 0)
    for group in im.json("status")["groups"]:
        assert (group["accounting"]["published"], group["accounting"]["unexplained"]) == (30, 0)


# ── edits from standard input ────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def fed(im: Imsync, *flags: str) -> Iterator[Process]:
    """`publish --stdin`, whose input is written by the test."""
    process = subprocess.Popen(
        [*CLI, "publish", "user-update", "--stdin", "--json", *flags],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, cwd=im.folder, env=im.environ,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def feed(process: Process, text: str) -> None:
    assert process.stdin is not None
    process.stdin.write(text)
    process.stdin.flush()


def told_to_stop(im: Imsync, process: Process, number: int = signal.SIGTERM) -> Done:
    """The end of a process whose input goes on: it is closed only afterwards."""
    process.send_signal(number)
    process.wait(30)
    return im.end(process)


def edit(user: int, name: str) -> str:
    return json.dumps({"id": user, "nickName": name}) + "\n"


@BOTH
def test_lines_are_applied_when_no_more_are_ready(im: Imsync, number: int) -> None:
    first, second, third = im.users()[:3]
    with fed(im) as process:
        feed(process, edit(first, "a") + edit(second, "b")[:9])
        eventually(lambda: sent(im) == 1)
        feed(process, edit(second, "b")[9:])
        eventually(lambda: sent(im) == 2)
        feed(process, edit(third, "c")[:9])  # and no more of it
        done = told_to_stop(im, process, number).expect(0)
    assert done.json() == {"accepted": 2, "unchanged": 0, "rejected": 0, "published": 2, "outbox": 0}
    assert done.err == ""


def test_told_to_stop_it_tells_of_the_lines_that_were_rejected(im: Imsync) -> None:
    user = im.users()[0]
    with fed(im) as process:
        feed(process, "no edit\n" + edit(user, "a"))
        eventually(lambda: sent(im) == 1)
        counts = told_to_stop(im, process).expect(2).json()
    assert (counts["accepted"], counts["rejected"], counts["errors"][0]["line"]) == (1, 1, 1)


def test_strict_applies_nothing_of_an_input_without_end(im: Imsync) -> None:
    with fed(im, "--strict") as process:
        feed(process, edit(im.users()[0], "a") + "no edit\n")
        told(process)  # it has read both lines
        error = told_to_stop(im, process).expect(1).json()["error"]
    assert "no line was applied" in error["message"]
    assert im.query("user", "SELECT count(*) FROM outbox") == [(0,)]


def test_lines_may_be_64_kib_long(im: Imsync) -> None:
    first, second, third = im.users()[:3]
    longest = edit(first, "a").rstrip("\n").ljust(65536)
    lines = [longest, longest + " ", edit(second, "b").rstrip("\n"), "x" * 1_000_000, edit(third, "c")]
    done = im.run("publish", "user-update", "--stdin", "--json", stdin="\n".join(lines)).expect(2)
    counts = done.json()
    assert counts["accepted"] == 3
    assert counts["errors"] == [{"line": line, "message": "longer than 64 KiB"} for line in (2, 4)]


def test_no_line_is_lost_between_two_reads(im: Imsync) -> None:
    """Lines of many lengths, in characters of several bytes, the last one without an end."""
    users = im.users()
    lines = [edit(users[i % len(users)], f"{i}" + "名" * (i % 50)).strip() for i in range(5000)]
    lines = [json.dumps(json.loads(line), ensure_ascii=False) for line in lines]
    counts = im.json("publish", "user-update", "--stdin", stdin="\n".join(lines))
    assert (counts["accepted"], counts["published"]) == (5000, 5000)
    names = dict(im.query("user", "SELECT id, nick_name FROM im_user"))
    for line in lines[-len(users) :]:
        assert names[json.loads(line)["id"]] == json.loads(line)["nickName"]
