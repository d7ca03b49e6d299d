"""The server of one's own, as the commands show it: shared by all, stopped by one, and its data kept."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.acceptance.driver import Imsync
from tests.servers import eventually


def lives(pid: int) -> bool:
    """Whether the process exists; one that has ended and was not yet collected counts as gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_commands_share_one_server_and_its_data_outlives_it(im: Imsync) -> None:
    assert im.json("server", "status")["running"] is False
    assert not (im.data / "redis" / "redis.sock").exists()  # asking starts nothing

    workers = [im.start("consume", group, "--max-events", 40, "--batch", 40) for group in ("group", "friend")]
    im.json("publish", "user-update", "--count", 40)
    for worker in workers:
        assert im.end(worker).expect(0).json()["events"] == 40
    first = im.json("server", "status")
    assert first["running"]
    assert lives(first["pid"])
    log = (im.data / "redis" / "server.log").read_text()
    assert log.count("eady to accept connections") == 2  # once here, and once for the folder that this is a copy of

    im.json("publish", "user-update", "--count", 30, "--seed", 8)
    assert im.json("server", "stop") == {"stopped": True}
    assert im.json("server", "stop") == {"stopped": False}
    eventually(lambda: not lives(first["pid"]))
    assert im.json("server", "status")["running"] is False

    assert im.json("consume", "group", "--until-empty")["events"] == 30  # which starts it again
    with im.client() as client:
        assert client.xlen(im.stream) == 70
    second = im.json("server", "start")
    assert (second["running"], second["started"]) == (True, False)
    assert second["pid"] != first["pid"]
    im.json("consume", "friend", "--until-empty")
    assert im.json("verify")["drift"] == 0
    assert im.wrong_copies() == []


def test_start_says_what_it_started(bare: Imsync) -> None:
    started = bare.ok("server", "start")
    assert str(bare.data / "redis" / "redis.sock") in started.out
    status = bare.json("server", "status")
    assert status.keys() == {"running", "url", "pid", "version", "uptime_seconds", "data_dir", "started"}
    assert (status["data_dir"], status["started"]) == (str(bare.data), False)
    assert status["version"].split()[0] in ("Valkey", "Redis")
    with bare.client() as client:
        assert client.config_get("port") == {"port": "0"}  # reachable through the socket alone
        assert client.config_get("appendonly") == {"appendonly": "yes"}
    assert bare.data.stat().st_mode & 0o777 == 0o700
    assert (bare.data / "redis").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("verb", ["start", "stop"])
def test_with_a_url_there_is_no_server_of_ones_own(bare: Imsync, verb: str) -> None:
    done = bare.run("server", verb, "--url", "redis://127.0.0.1:1", "--json").expect(2)
    error = done.json()["error"]
    assert error["kind"] == "usage"
    assert "--url" in error["hint"]
    assert not bare.data.exists()


def test_a_folder_that_cannot_be_used_is_told(bare: Imsync) -> None:
    bare.data.write_text("a file, not a folder")
    done = bare.run("server", "start").expect(1)
    (line,) = done.err.splitlines()
    assert str(bare.data) in line
    assert "--data-dir" in line
    bare.data.unlink()


def test_data_dir_flag_wins_over_the_variable(bare: Imsync) -> None:
    other = bare.folder / "other"
    try:
        made = bare.json("init", "--users", 10, "--groups", 1, "--data-dir", other)
        assert made["data_dir"] == str(other)
        assert not bare.data.exists()
        assert bare.json("server", "status", "--data-dir", "other")["running"]  # relative to the current folder
        assert sorted(path.name for path in other.glob("*.db")) == ["friend.db", "group.db", "user.db"]
        assert all(path.stat().st_mode & 0o777 == 0o600 for path in other.glob("*.db"))
    finally:
        assert bare.json("server", "stop", "--data-dir", other) == {"stopped": True}
    assert os.listdir(bare.folder).count("data") == 0
