"""`imsync status --watch`: on a terminal and to a pipe, while the server goes and comes back."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from imsync.embedded import EmbeddedServer
from tests.acceptance.driver import CLI, Imsync
from tests.acceptance.inprocess import InProcess
from tests.servers import StartServer, eventually

WATCH = ("status", "--watch", "--interval", "100ms")


def rows_of(process: subprocess.Popen[str]) -> Callable[[Callable[[dict[str, Any]], Any]], dict[str, Any]]:
    """Reads on until an object is as wanted, and returns it."""
    stdout = process.stdout
    assert stdout is not None

    def until(wanted: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
        for _ in range(600):
            assert select.select([stdout], [], [], 20)[0], "nothing more comes"
            row: dict[str, Any] = json.loads(stdout.readline())
            if wanted(row):
                return row
        pytest.fail("no object was as wanted")

    return until


def test_a_watch_goes_on_while_redis_is_away(stores: Imsync, start_server: StartServer) -> None:
    im, server = InProcess.of(stores), start_server(appendonly=True)
    im.set(URL=server.url)
    recorded = im.folder / "samples"
    watch = im.start(*WATCH, "--record", recorded)
    until = rows_of(watch)
    row = until(lambda row: row["groups"] and row["rates"]["seconds"])
    assert (row["redis"], row["rates"]["edits_per_second"]) == (None, 0.0)

    im.ok("publish", "user-update", "--count", 50)
    assert until(lambda row: row["rates"]["edits_per_second"])["outbox"]["unsent"] >= 0
    im.ok("consume", "group", "--until-empty")
    busy = until(lambda row: row["rates"]["groups"] and row["rates"]["groups"][0]["events_per_second"])
    assert busy["rates"]["groups"][0]["group"] == "group"

    server.kill()
    away = until(lambda row: row["redis"])
    assert (away["groups"], away["retention"], away["healthy"]) == ([], None, False)
    assert away["redis"]["kind"] == "redis_unreachable"
    later = until(lambda row: row["time"] > away["time"])
    assert later["redis"]["since"] == away["redis"]["since"] == away["time"]
    waits = im.json("publish", "user-update", "--count", 7)["outbox"]
    assert until(lambda row: row["outbox"]["unsent"] == waits)["redis"], "what is here is seen all the same"

    server.start()
    back = until(lambda row: not row["redis"])
    assert back["retention"]["length"] == 50
    im.end(watch, signal.SIGINT).expect(0)
    samples = [json.loads(line) for line in recorded.read_text().splitlines()]
    assert [each["redis"] is None for each in samples[:1]] == [True]
    assert {row["time"], away["time"], back["time"]} <= {each["time"] for each in samples}


def test_a_store_that_is_missing_for_a_while_is_survived(inside: Imsync) -> None:
    im = inside
    watch = im.start(*WATCH)
    until = rows_of(watch)
    until(lambda row: row["groups"])
    (im.data / "group.db").rename(im.folder / "kept")
    until(lambda row: row["groups"][0]["store"] != "here")
    (im.folder / "kept").rename(im.data / "group.db")
    until(lambda row: row["groups"][0]["store"] == "here")
    im.end(watch, signal.SIGTERM).expect(0)


def test_an_embedded_server_that_was_stopped_is_not_started_again(im: Imsync) -> None:
    watch = im.start(*WATCH)
    until = rows_of(watch)
    until(lambda row: row["groups"])
    assert EmbeddedServer(im.data).stop()
    away = until(lambda row: row["redis"])
    for _ in range(5):
        away = until(lambda row, before=away["time"]: row["time"] > before)  # type: ignore[misc]
    assert not EmbeddedServer(im.data).status().running
    EmbeddedServer(im.data).start()
    until(lambda row: not row["redis"])
    im.end(watch, signal.SIGTERM).expect(0)


def test_a_server_that_does_not_answer_holds_nobody_up(stores: Imsync, start_server: StartServer) -> None:
    im, server = InProcess.of(stores), start_server()
    im.set(URL=server.url)
    watch = im.start(*WATCH)
    rows_of(watch)(lambda row: row["retention"])
    server.freeze()
    while select.select([watch.stdout], [], [], 1.0)[0]:  # until a look hangs
        assert watch.stdout
        watch.stdout.readline()
    im.end(watch, signal.SIGINT, seconds=3).expect(0)  # a look at it would take five


def test_so_many_looks(inside: Imsync) -> None:
    rows = inside.run(*WATCH, "--count", 3).expect(0).rows()
    assert len(rows) == 3
    assert rows[0]["rates"]["seconds"] is None
    assert all(each["rates"]["seconds"] >= 0.05 for each in rows[1:])
    assert sorted(each["time"] for each in rows) == [each["time"] for each in rows]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("status", "--watch", "--interval", "99ms"), "bad interval"),
        (("status", "--watch", "--interval", "soon"), "bad duration"),
        (("status", "--count", "3"), "are for --watch"),
        (("status", "--watch", "--record", "/nobody/has/this"), "cannot record to"),
        (("status", "--watch", "--record", "."), "cannot record to"),
    ],
)
def test_bad_usage(inside: Imsync, words: tuple[str, ...], message: str) -> None:
    error = inside.json(*words, code=2)["error"]
    assert error["kind"] == "usage"
    assert message in error["message"]


def test_a_recording_that_fails_is_told_once_and_the_watch_goes_on(inside: Imsync) -> None:
    done = inside.run(*WATCH, "--count", 4, "--record", "/dev/full", "--json").expect(0)
    assert len(done.rows()) == 4
    assert done.err == "imsync: the recording fails: No space left on device\n"


def test_without_stores_and_without_a_url_there_is_nothing_to_watch(bare: Imsync) -> None:
    bare = InProcess.of(bare)
    assert bare.json(*WATCH, code=5)["error"]["kind"] == "store_unusable"
    assert not bare.data.exists()


def test_a_reader_that_goes_away_ends_it(inside: Imsync) -> None:
    reader, writer = os.pipe()
    process = subprocess.Popen(
        [*CLI, *WATCH], stdout=writer, stderr=subprocess.PIPE, cwd=inside.folder, env=inside.environ
    )
    os.close(writer)
    with open(reader, "rb") as lines:
        assert json.loads(lines.readline())
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (1, b"")


# ── on a terminal ────────────────────────────────────────────────────────────────────────────────────────


def test_on_a_terminal_it_is_drawn_until_control_c(stores: Imsync, start_server: StartServer) -> None:
    im, server = InProcess.of(stores), start_server(appendonly=True)
    im.set(URL=server.url)
    im.ok("publish", "user-update", "--count", 30)
    with im.terminal(*WATCH) as shown:
        eventually(lambda: "edits/s" in shown.plain())
        im.ok("publish", "user-update", "--count", 30)
        eventually(lambda: re.search("[▂-█]", shown.plain()))  # a bar that is not the lowest
        assert "\x1b[?1049h" in shown.seen, "a screen of its own"
        server.kill()
        eventually(lambda: re.search(r"Redis is away since \d\d:\d\d:\d\d \(", shown.plain()))
        assert "unknown" in shown.plain()
        gone = len(shown.plain())
        server.start()
        eventually(lambda: re.search(r"stream: \d+ entries", shown.plain()[gone:]))
        shown.press(b"\x03")
        assert shown.end() == 0
    assert "Traceback" not in shown.plain()
    afterwards = shown.seen.rpartition("\x1b[?1049l")[2]
    assert "published" in afterwards, "the last picture stays"
    assert max(len(line) for line in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\r", "", afterwards).splitlines()) <= 80


def test_what_is_hostile_is_harmless_on_a_screen(inside: Imsync) -> None:
    im = inside
    name = "\x1b]52;c;QUFB\x07[bold]x\u202e"
    with im.client() as client:
        client.xadd(im.stream, {"event": "x"})
        client.xreadgroup("group", name, {im.stream: ">"})
        client.set(im.keys.alive("group", name), json.dumps({"host": name, "pid": 1, "since": 1}))
        client.set(im.keys.vitals("group", name), json.dumps({"last_error": name, "last_error_ms": 2**62, "events": 1}))
    with im.terminal(*WATCH, "--count", "2") as shown:
        assert shown.end() == 0
    for hidden in ("\x1b]52", "\x07", "\u202e"):
        assert hidden not in shown.seen
    assert "[bold]x" in shown.plain()
