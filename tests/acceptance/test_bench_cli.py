"""`imsync bench` for real, at the smallest scale: its numbers close, and nothing is left however it ends."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.driver import CLI, Imsync
from tests.servers import Server, StartServer, eventually

SMALL = ("--seconds", 1, "--users", 60, "--events", 500, "--rate", 100)
LONG = ("--seconds", 60, "--users", 60, "--events", 2000, "--rate", 100)
LATENCY_PARTS = 6


@pytest.fixture
def folder(bare: Imsync) -> Iterator[Path]:
    """The only folder for temporary files of the commands."""
    folder = bare.folder / "tmp"
    folder.mkdir()
    bare.environ["TMPDIR"] = str(folder)
    yield folder
    for pid in processes_of(folder):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def processes_of(folder: Path) -> list[int]:
    """The processes that have the folder on their command line or in their environment."""
    found = []
    for each in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.fsencode(folder) in (each / "cmdline").read_bytes() + (each / "environ").read_bytes():
                found.append(int(each.name))
    return found


def keys_of(server: Server) -> list[bytes]:
    with server.client() as client:
        return sorted(client.keys("*"))


def assert_closes(result: dict[str, Any]) -> None:
    """That the numbers agree with each other."""
    assert (result["events"], result["interrupted"]) == (500, False)
    assert result["rounds"] >= 1
    both = 2 * (result["rounds"] + 1)  # with the first round, which does not count
    assert result["checked_rows"] == result["rows"] * (both + LATENCY_PARTS)
    latency = result["latency"]
    for side in ("imsync", "by_hand"):
        assert sum(each[side] for each in latency["histogram"]) == latency["edits"] > 0
        assert any(tick[side] for tick in result["timeline"])
    for name, figure in result["figures"].items():
        for side in ("imsync", "by_hand", "ratio"):
            assert 0 < figure[side]["low"] <= figure[side]["value"] <= figure[side]["high"], name
    p50, p90, p99, most = (result["figures"][f"latency_{name}_ms"] for name in ("p50", "p90", "p99", "max"))
    for side in ("imsync", "by_hand"):
        assert p50[side]["value"] <= p90[side]["value"] <= p99[side]["value"] <= most[side]["value"]
        assert latency["histogram"][-1]["up_to_ms"] >= most[side]["value"]
    shares = [value for name, value in result["time"].items() if name != "batches"]
    assert sum(shares) == pytest.approx(1, abs=0.001)
    assert result["time"]["batches"] >= 1
    assert 0 < result["fsync"]["p50_ms"] <= result["fsync"]["p99_ms"] <= result["fsync"]["max_ms"]


def test_on_a_server_of_its_own(bare: Imsync, folder: Path) -> None:
    im, picture = bare, bare.folder / "bench.svg"
    done = im.run("bench", *SMALL, "--svg", picture, "--json").expect(0)
    result = done.json()
    assert_closes(result)
    assert result["machine"]["embedded"] is True
    assert Path(result["machine"]["folder"]).parent == folder
    assert "about 1 s on" in done.err
    assert result["machine"]["folder"] in done.err
    assert list(folder.iterdir()) == []
    assert not im.data.exists()
    assert processes_of(folder) == []
    assert ET.parse(picture).getroot().tag == "{http://www.w3.org/2000/svg}svg"


def test_on_a_server_that_others_use(bare: Imsync, folder: Path, server: Server) -> None:
    im = bare
    im.set(URL=server.url)
    im.data.mkdir()
    with server.client() as client:
        client.set("imsync:{user-update}:stream", "somebody's")
    done = im.run("bench", *SMALL, "--json").expect(0)
    result = done.json()
    assert_closes(result)
    assert (result["machine"]["embedded"], result["machine"]["where"]) == (False, server.url)
    assert "keys imsync-bench-" in done.err
    assert Path(result["machine"]["folder"]).parent == im.data, "the disk that was configured"
    assert list(im.data.iterdir()) == []
    assert keys_of(server) == [b"imsync:{user-update}:stream"]
    assert processes_of(folder) == []


def announced(process: subprocess.Popen[str], folder: Path, server: Server) -> None:
    assert process.stderr is not None
    assert "about 60 s on" in process.stderr.readline()


def working(process: subprocess.Popen[str], folder: Path, server: Server) -> None:
    """At work on the server."""
    eventually(lambda: keys_of(server), within=30)


def consuming(process: subprocess.Popen[str], folder: Path, server: Server) -> None:
    """A consumer is alive: something was measured."""
    seen: set[bytes] = set()

    def third() -> bool:
        seen.update(key for key in keys_of(server) if b":alive:" in key)
        return len(seen) >= 3

    eventually(third, within=30)


Moment = Callable[["subprocess.Popen[str]", Path, Server], None]


@pytest.mark.parametrize("moment", [announced, working, consuming])
@pytest.mark.parametrize("signals", [(signal.SIGINT,), (signal.SIGTERM, signal.SIGINT), (signal.SIGHUP,) * 5])
def test_interrupted(
    bare: Imsync, folder: Path, server: Server, moment: Moment, signals: tuple[signal.Signals, ...]
) -> None:
    im = bare
    im.set(URL=server.url)
    process = im.start("bench", *LONG)
    moment(process, folder, server)
    assert processes_of(folder), "no process to leave behind"
    for number in signals:
        process.send_signal(number)
    done = im.end(process)
    assert done.code in (0, 130)
    assert keys_of(server) == []
    assert processes_of(folder) == []
    assert list(folder.iterdir()) == []
    if done.code == 130:
        assert done.out == ""
        assert moment is not consuming
    else:
        result = done.json()
        assert result["interrupted"] is True
        assert "interrupted" in [each["kind"] for each in result["doubts"]]


def test_its_processes_end_when_it_is_killed(bare: Imsync, folder: Path, server: Server) -> None:
    im = bare
    im.set(URL=server.url)
    process = im.start("bench", *LONG)
    working(process, folder, server)
    assert len(processes_of(folder)) > 1
    im.end(process, signal.SIGKILL)
    eventually(lambda: not processes_of(folder))


def test_a_server_that_dies_in_the_middle(bare: Imsync, folder: Path, start_server: StartServer) -> None:
    im, server = bare, start_server()
    im.set(URL=server.url)
    process = im.start("bench", *LONG)
    working(process, folder, server)
    server.kill()
    done = im.end(process)
    assert done.code == 4, done
    assert done.json()["error"]["kind"] == "redis_unreachable"
    assert "keys imsync-bench-" in done.err.splitlines()[-1], "who can delete them must know of them"
    assert processes_of(folder) == []
    assert list(folder.iterdir()) == []


def test_what_cannot_be_is_said_before_anything_is_measured(bare: Imsync, folder: Path) -> None:
    im, picture = bare, bare.folder / "mine.svg"
    picture.write_text("<svg/>")
    for words in (("--svg", picture), ("--svg", im.folder / "nobody" / "b.svg"), ("--svg", "/dev/null"), ("--rate", 0)):
        done = im.run("bench", *words, "--json").expect(2)
        assert done.json()["error"]["kind"] == "usage"
        assert done.err == ""
    error = im.json("bench", "--url", "redis://127.0.0.1:1", code=4)["error"]
    assert error["kind"] == "redis_unreachable"
    assert picture.read_text() == "<svg/>"
    im.set(URL="redis://127.0.0.1:1")
    im.json("bench", "--svg", picture, "--force", code=4)  # it may be written
    im.json("bench", "--svg", im.folder / "other.svg", code=4)  # and this one
    picture.write_text("<!-- imsync bench -->\n<svg/>")
    im.json("bench", "--svg", picture, code=4)  # and this one is ours
    assert list(folder.iterdir()) == []


def test_a_user_who_may_not_use_its_keys(bare: Imsync, folder: Path, start_server: StartServer) -> None:
    im, server = bare, start_server()
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "limited", "on", ">secret", "~imsync:*", "+@all")
        client.execute_command("ACL", "SETUSER", "owner", "on", ">secret", "~imsync-bench-*", "+@all", "-info")
    im.set(URL=server.url, USERNAME="limited", PASSWORD="secret")
    im.secrets = ["secret"]
    done = im.run("bench", *SMALL, "--json").expect(4)
    assert (done.json()["error"]["kind"], done.err) == ("redis_refused", "")
    assert "imsync-bench-*" in done.json()["error"]["hint"]
    im.set(USERNAME="owner")
    result = im.json("bench", *SMALL)
    assert_closes(result)
    assert result["machine"]["server"] == "Redis", "it may not be asked"
    assert "server_cpu_seconds_per_100k" not in result["figures"]
    assert keys_of(server) == []


def test_without_a_terminal_there_is_no_progress(bare: Imsync, folder: Path) -> None:
    done = subprocess.run(
        [*CLI, "bench", *map(str, SMALL)], capture_output=True, text=True, cwd=bare.folder, env=bare.environ, timeout=60
    )
    bare.checked(("bench",), done.returncode, done.stdout, done.stderr)
    assert done.returncode == 0
    assert all(line.startswith("imsync: ") for line in done.stderr.splitlines())
    for words in ("publish, events/s", "consume, events/s", "all right", "what limits it", "no key is left"):
        assert words in done.stdout
