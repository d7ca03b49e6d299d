"""`rebuild`: what it prints, what it refuses, and that afterwards everything is right.

The commands run in this process, which takes a tenth of the time, except where one is told to stop.
"""

from __future__ import annotations

import fcntl
import signal
from pathlib import Path

import pytest

from tests.acceptance.driver import Imsync
from tests.acceptance.inprocess import InProcess
from tests.servers import Server, eventually

PLAN = ["group", "store", "creates", "users", "pending", "undelivered", "consumers", "dry_run"]
RESULT = [*PLAN, "changed", "ahead", "covered", "position"]
USERS = 300
DEAD_PORT = "redis://127.0.0.1:1"


@pytest.fixture
def im(here: InProcess, server: Server) -> InProcess:
    """Made stores and a server, with the groups of `init`; heartbeats that end soon."""
    return here.on(server, CONSUMER_HEARTBEAT_MS="100", CONSUMER_BLOCK_MS="50")


def files(im: Imsync, name: str) -> list[Path]:
    return [im.data / f"{name}.db{suffix}" for suffix in ("", "-wal", "-shm")]


def remove(im: Imsync, name: str) -> None:
    for path in files(im, name):
        path.unlink(missing_ok=True)


def consumed(im: Imsync, service: str, edits: int, seed: int) -> None:
    """Edits that a service has applied."""
    im.ok("publish", "user-update", "--count", edits, "--seed", seed)
    im.ok("consume", service, "--until-empty")


def put_older_copy(im: Imsync, service: str) -> None:
    """The store misses 40 of 60 edits that its group has acknowledged."""
    consumed(im, service, 20, 1)
    copy = (im.data / f"{service}.db").read_bytes()
    consumed(im, service, 40, 2)
    remove(im, service)
    (im.data / f"{service}.db").write_bytes(copy)


@pytest.mark.parametrize("service", ["group", "friend"])
def test_a_store_that_is_refused_is_rebuilt(im: Imsync, service: str) -> None:
    put_older_copy(im, service)
    overrides = im.overrides()
    refusal = im.run("consume", service, "--until-empty").expect(5)
    assert refusal.out == ""
    assert f"this store is older than what group '{service}' has acknowledged" in refusal.err
    assert f"imsync rebuild {service}" in refusal.err
    error = im.json("consume", service, "--until-empty", code=5)["error"]
    assert error["kind"] == "store_mismatch"
    assert error["hint"].endswith(f"imsync rebuild {service}")
    problem = im.json("status", code=3)["problems"][0]
    assert f"the {service} service is stopped: this store is older" in problem["what"]
    assert problem["remedy"] == f"imsync rebuild {service}"
    im.ok("publish", "user-update", "--count", 7, "--seed", 3)

    result = im.json("rebuild", service, "--yes")
    assert list(result) == RESULT
    with im.client() as client:
        last = client.xrevrange(im.stream, count=1)[0][0].decode()
    assert result | {"changed": 0} == {
        "group": service,
        "store": str(im.data / f"{service}.db"),
        "creates": False,
        "users": USERS,
        "pending": 0,
        "undelivered": 7,
        "consumers": 0,
        "dry_run": False,
        "changed": 0,
        "ahead": 0,
        "covered": 40,
        "position": last,
    }
    assert 0 < result["changed"] <= 40
    consumed(im, service, 10, 4)
    assert im.wrong_copies(service) == []
    assert im.overrides() == overrides
    status = im.json("status")
    (group,) = [each for each in status["groups"] if each["group"] == service]
    assert group["accounting"]["covered"] == 40
    assert group["accounting"]["unexplained"] == 0


def test_people_are_told_the_plan_and_the_result(im: Imsync) -> None:
    put_older_copy(im, "group")
    done = im.ok("rebuild", "group", "--yes")
    plan, *_ = done.err.splitlines()
    assert plan.endswith(f"group.db from {USERS} users, after 0 pending and 0 undelivered entries of the group")
    assert plan.startswith("imsync: rebuild /")
    (line,) = done.out.splitlines()
    assert line.startswith(f"{USERS} users, ")
    assert line.endswith(" of them changed; 40 events are covered by the snapshot")
    again = im.ok("rebuild", "group", "--yes")
    assert again.out.startswith(f"{USERS} users, 0 of them changed; 40 events")


def test_edits_that_a_restored_user_store_has_forgotten_are_written_off(im: Imsync) -> None:
    consumed(im, "group", 20, 1)
    with im.store("user") as users:
        before = bytes(users.serialize())
    consumed(im, "group", 40, 2)
    remove(im, "user")
    (im.data / "user.db").write_bytes(before)
    assert im.ok("rebuild", "group", "--yes").out.endswith(
        "left as they are: imsync verify --repair, then rebuild again\n"
    )
    (problem,) = [each for each in im.json("status", code=3)["problems"] if each["group"] == "group"]
    assert problem["remedy"] == "imsync verify --repair, then imsync rebuild group"
    im.run("verify", "--repair", "--yes").expect(3)
    done = im.ok("rebuild", "group", "--yes")
    assert done.out.endswith("; 40 events that the source does not know any more are written off\n")


def test_a_dry_run_changes_nothing(im: Imsync) -> None:
    put_older_copy(im, "group")
    im.ok("publish", "user-update", "--count", 7, "--seed", 3)
    before = im.everything()
    plan = im.json("rebuild", "group", "--dry-run")
    assert list(plan) == PLAN
    assert plan["dry_run"] is True
    assert (plan["creates"], plan["users"], plan["undelivered"]) == (False, USERS, 7)
    done = im.ok("rebuild", "group", "--dry-run")
    assert done.out == "dry run: nothing was changed\n"
    assert "rebuild /" in done.err
    remove(im, "friend")
    plan = im.json("rebuild", "friend", "--dry-run", "--create")
    assert plan["creates"] is True
    assert not (im.data / "friend.db").exists()
    im.run("rebuild", "friend", "--dry-run").expect(5)
    stores, redis = im.everything()  # type: ignore[misc]
    stores_before, redis_before = before  # type: ignore[misc]
    assert (stores, redis) == (stores_before[:2], redis_before)


def test_it_asks_first(im: Imsync) -> None:
    before = im.query("group", "SELECT value FROM meta WHERE key = 'store_id'")
    done = im.run("rebuild", "group").expect(2)
    assert "--yes" in done.err
    assert "rebuild" in done.err
    assert im.query("group", "SELECT value FROM meta WHERE key = 'store_id'") == before


def test_a_missing_store_is_made_only_when_asked_for(im: Imsync) -> None:
    consumed(im, "group", 30, 1)
    remove(im, "group")
    for arguments in (["consume", "group"], ["rebuild", "group", "--yes"]):
        error = im.json(*arguments, code=5)["error"]
        assert error["kind"] == "store_unusable"
        assert "there is no group store at" in error["message"]
    assert "--create" in im.run("rebuild", "group", "--yes").expect(5).err
    assert not (im.data / "group.db").exists()
    done = im.run("rebuild", "group", "--yes", "--create").expect(0)
    assert done.err.startswith("imsync: make /")
    assert (im.data / "group.db").stat().st_mode & 0o777 == 0o600
    assert im.query("group", "SELECT count(*) FROM im_group_member") == [(0,)]
    consumed(im, "group", 10, 2)
    im.ok("consume", "friend", "--until-empty")
    verdict = im.json("verify")
    assert (verdict["users"], verdict["drift"], verdict["in_flight"]) == (USERS, 0, 0)
    assert im.json("status")["healthy"] is True


def test_it_is_refused_while_a_consumer_lives(im: Imsync) -> None:
    put_older_copy(im, "group")
    im.ok("rebuild", "group", "--yes")
    consumer = im.start("consume", "group")
    eventually(lambda: im.alive())
    before = im.query("group", "SELECT * FROM meta")
    error = im.json("rebuild", "group", "--yes", code=2)["error"]
    assert error["kind"] == "usage"
    assert error["message"] == "group 'group' has 1 living consumer"
    assert "stop them" in error["hint"]
    assert im.json("rebuild", "group", "--dry-run")["consumers"] == 1
    assert im.query("group", "SELECT * FROM meta") == before
    im.ok("rebuild", "friend", "--yes")
    im.end(consumer, signal.SIGTERM).expect(0)
    im.ok("rebuild", "group", "--yes")


def test_what_cannot_be_done_is_told_by_its_exit_code(im: Imsync) -> None:
    help_ = im.ok("rebuild", "--help").out
    assert "group" in help_
    assert "friend" in help_
    for service in ("group", "friend"):
        help_ = im.ok("rebuild", service, "--help").out
        assert "--create" in help_
        assert "--dry-run" in help_
        assert f"{service}.db" in help_
    assert "group" in im.run("rebuild").expect(2).err
    im.run("rebuild", "nobody").expect(2)
    im.run("rebuild", "group", "--yes", "--force").expect(2)
    before = im.everything()
    assert im.json("rebuild", "group", "--yes", "--url", DEAD_PORT, code=4)["error"]["kind"] == "redis_unreachable"
    with im.locked("group"):
        im.set(STORE_BUSY_TIMEOUT_MS="50")
        assert im.json("rebuild", "group", "--yes", code=5)["error"]["kind"] == "store_unusable"
    (im.data / "user.db").rename(im.data / "away.db")
    error = im.json("rebuild", "group", "--yes", code=5)["error"]
    assert "there is no user store" in error["message"]
    (im.data / "away.db").rename(im.data / "user.db")
    im.ok("rebuild", "group", "--yes")
    assert before != im.everything()


def test_a_folder_without_stores_gets_no_server(bare: Imsync) -> None:
    assert bare.json("rebuild", "group", "--yes", code=5)["error"]["kind"] == "store_unusable"
    assert not (bare.data / "redis").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["INT", "TERM"])
def test_a_signal_ends_it_and_it_can_be_run_again(im: Imsync, number: int) -> None:
    """It is held by another relay; what it has done by then is nothing, and it says so by its code."""
    put_older_copy(im, "group")
    with (im.data / "user.db.relay-lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = im.start("rebuild", "group", "--yes")
        eventually(lambda: has_open(process.pid, "user.db"))
        done = im.end(process, number, seconds=3)
    assert done.code in (130, -number)
    assert im.json("consume", "group", "--until-empty", code=5)["error"]["kind"] == "store_mismatch"
    im.ok("rebuild", "group", "--yes")
    im.ok("consume", "group", "--until-empty")
    assert im.wrong_copies("group") == []


def has_open(pid: int, name: str) -> bool:
    """Whether a process has this file open."""
    try:
        return any(each.readlink().name == name for each in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:  # one was closed meanwhile
        return False


def test_a_damaged_store_is_not_rebuilt_in_place(im: Imsync) -> None:
    """Its rows are its own: they come from a backup, or are gone."""
    consumed(im, "group", 20, 1)
    path = im.data / "group.db"
    path.write_bytes(b"not a database".ljust(8192))
    for flags in ([], ["--create"]):
        error = im.json("rebuild", "group", "--yes", *flags, code=5)["error"]
        assert error["kind"] == "store_unusable"
        assert "not a database" in error["message"]
    assert path.read_bytes() == b"not a database".ljust(8192)
    remove(im, "group")
    im.ok("rebuild", "group", "--yes", "--create")
    assert im.wrong_copies("group") == []
