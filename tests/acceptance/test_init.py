"""`imsync init` twice at once, and after a `kill -9` in the middle: no store is lost, and the way out is told."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from imsync.errors import UsageError
from imsync.im.demo_data import generate
from imsync.im.setup import make_stores, refuse_existing
from imsync.im.workspace import Workspace
from tests.acceptance.driver import CHECKOUT, Imsync
from tests.servers import Server, eventually

STORES = ["friend.db", "group.db", "user.db"]

# Makes stores as `init` does, and stops itself (SIGSTOP) where a store of this name is next.
MAKER = """
import os, signal, sys
from pathlib import Path
from imsync.errors import ImsyncError
from imsync.im.demo_data import generate
from imsync.im.setup import make_stores
from imsync.im.workspace import Workspace

def on_step(store):
    if store == sys.argv[2]:
        os.kill(os.getpid(), signal.SIGSTOP)

try:
    make_stores(Workspace(Path(sys.argv[1])), generate(users=50, groups=5), on_step)
except ImsyncError as error:
    sys.exit(error.message)
"""


UNFINISHED = ["user.db.new", "user.db.new-wal", "user.db.new-shm"]


def maker(folder: Path, stop_at: str = "") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", MAKER, str(folder), stop_at], cwd=CHECKOUT, stderr=subprocess.PIPE, text=True
    )


def stopped_maker(folder: Path, stop_at: str) -> subprocess.Popen[str]:
    """A process that stands still before it makes the store of this name."""
    process = maker(folder, stop_at)
    assert os.WIFSTOPPED(os.waitpid(process.pid, os.WUNTRACED)[1])
    return process


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def waits_for_a_lock(process: subprocess.Popen[str]) -> bool:
    return f"-> FLOCK  ADVISORY  WRITE {process.pid} " in Path("/proc/locks").read_text()


@pytest.mark.parametrize("stop_at", ["group", "friend", "user"])
def test_the_second_of_two_at_once_waits_and_spoils_nothing(tmp_path: Path, stop_at: str) -> None:
    first = stopped_maker(tmp_path, stop_at)
    second = maker(tmp_path)
    try:
        eventually(lambda: waits_for_a_lock(second) or second.poll() is not None)
        first.send_signal(signal.SIGCONT)
        _, told = first.communicate(timeout=30)
        assert (first.returncode, told) == (0, "")
        _, told = second.communicate(timeout=30)
    finally:
        for process in (first, second):
            process.kill()
            process.communicate()
    assert (second.returncode, told.strip()) == (1, f"{tmp_path} has stores already: user.db, group.db, friend.db")
    assert names(tmp_path) == STORES
    with contextlib.closing(Workspace(tmp_path).user_store()) as users:
        assert users.count_users() == 50


def test_two_commands_at_once(bare: Imsync) -> None:
    words = ("init", "--users", 300, "--groups", 40)
    bare.ok("server", "start")
    ended = [bare.end(process) for process in [bare.start(*words) for _ in range(2)]]
    assert sorted(done.code for done in ended) == [0, 2], ended
    assert sorted(path.name for path in bare.data.glob("*.db*")) == STORES
    assert bare.wrong_copies() == []
    assert len(bare.users("1")) == 300


def test_a_failure_removes_nothing_of_others(tmp_path: Path) -> None:
    """A file that has appeared since the look at the folder, where the store that failed would have come next."""
    mine = tmp_path / "friend.db"

    def on_step(store: str) -> None:
        if store == "group":
            mine.write_text("precious")
        else:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_stores(Workspace(tmp_path), generate(users=5, groups=1), on_step)
    assert names(tmp_path) == ["friend.db"]
    assert mine.read_text() == "precious"


@pytest.mark.parametrize(
    ("stop_at", "left"),
    [("friend", ["group.db", *UNFINISHED]), ("user", ["group.db", "friend.db", *UNFINISHED])],
    ids=["friend", "user"],
)
def test_after_a_kill_the_files_to_remove_are_named(bare: Imsync, stop_at: str, left: list[str]) -> None:
    process = stopped_maker(bare.data, stop_at)
    process.kill()
    process.communicate()
    error = bare.json("init", "--users", 5, "--groups", 1, code=2)["error"]
    assert error["message"] == f"an init in {bare.data} was cut short: there is no user.db"
    assert error["hint"] == f"remove what it left there, then run it again: {', '.join(left)}"
    for name in left:
        (bare.data / name).unlink()
    bare.ok("init", "--users", 5, "--groups", 1)
    bare.ok("verify")


def test_a_user_store_that_is_not_whole_is_not_called_user_db(tmp_path: Path) -> None:
    """`kill -9` while the users are written: what is there then does not pass for all stores."""
    make_stores(Workspace(tmp_path), generate(users=5, groups=1))
    unfinished = tmp_path / "user.db.new"
    (tmp_path / "user.db").rename(unfinished)
    with contextlib.closing(sqlite3.connect(unfinished)) as connection:
        connection.execute("CREATE TABLE left_open (x)")  # the log and its index lie beside it while it is open
        with pytest.raises(UsageError) as caught:
            refuse_existing(Workspace(tmp_path))
    expected = ["group.db", "friend.db", "user.db.new", "user.db.new-wal", "user.db.new-shm"]
    assert caught.value.hint.rpartition(": ")[2].split(", ") == expected


def test_a_lost_user_store_is_not_taken_for_an_init_that_was_cut_short(bare: Imsync) -> None:
    """What is left is real: nobody may be told to remove it."""
    bare.ok("init", "--users", 50, "--groups", 5)
    for path in bare.data.glob("user.db*"):
        path.unlink()
    for command in (["init"], ["status"], ["relay", "--until-empty"], ["verify"]):
        error = bare.json(*command, code=2 if command == ["init"] else 5)["error"]
        assert "restore it from a backup" in error["hint"], error
        assert "imsync init" not in error["hint"]
    for path in bare.data.glob("group.db*"):
        path.unlink()
    error = bare.json("consume", "group", "--until-empty", code=5)["error"]
    assert "restore it from a backup" in error["hint"]
    assert "imsync rebuild group" in error["hint"]


def test_a_prefix_whose_groups_feed_another_folder_is_refused(bare: Imsync, server: Server, tmp_path: Path) -> None:
    first = ["--url", server.url, "--data-dir", str(tmp_path / "first")]
    second = ["--url", server.url, "--data-dir", str(tmp_path / "second")]
    bare.ok("init", "--users", 50, "--groups", 5, *first)
    bare.ok("publish", "user-update", "--count", 5, *first)
    bare.ok("consume", "group", "--until-empty", *first)
    with server.client() as client:
        client.xtrim("imsync:{user-update}:stream", maxlen=0, approximate=False)
    error = bare.json("init", *second, code=2)["error"]
    assert "feeds the store of another data folder" in error["message"]
    assert "IMSYNC_PREFIX" in error["hint"]
    assert not (tmp_path / "second").exists()
    bare.ok("group", "drop", "group", "--yes", *second)
    bare.ok("init", "--users", 50, "--groups", 5, *second)
