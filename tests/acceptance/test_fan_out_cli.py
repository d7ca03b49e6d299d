"""A user in 20,000 groups: what every command says while the rows are written, and after the consumer was killed."""

from __future__ import annotations

import shutil
import signal
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from imsync.embedded import EmbeddedServer
from tests.acceptance.driver import Imsync, freeze
from tests.servers import eventually

ROWS = 20_000
FIRST = -(2**63)


@pytest.fixture
def im(bare: Imsync, template: Path) -> Imsync:
    shutil.copytree(template, bare.data)
    bare.set(CONSUMER_HEARTBEAT_MS="250")
    EmbeddedServer(bare.data).start()
    return bare


@pytest.fixture
def user(im: Imsync) -> int:
    """Somebody in very many groups."""
    found = im.users()[0]
    with closing(sqlite3.connect(im.data / "group.db")) as connection, connection:
        connection.execute(
            "WITH RECURSIVE n (id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM n WHERE id < ?) "
            "INSERT OR IGNORE INTO im_group_member (user_id, group_id, user_nick_name, head_image) "
            "SELECT r.user_id, 1000000 + n.id, r.nick_name, r.head_image FROM n, user_profile_replica AS r "
            "WHERE r.user_id = ?",
            (ROWS, found),
        )
    return found


def jobs(im: Imsync) -> list[tuple[Any, ...]]:
    return im.query("group", "SELECT user_id, position FROM fan_out")


def killed_in_the_middle(im: Imsync, user: int) -> None:
    """A consumer that has settled an edit of the user, and written some of the rows."""
    consumer = im.start("consume", "group")

    def caught() -> bool:
        freeze(consumer)
        if any(position > FIRST for _, position in jobs(im)) and not im.pending():
            return True
        consumer.send_signal(signal.SIGCONT)
        return False

    for edit in range(20):  # it may be too quick
        with im.locked("group"):
            im.ok("publish", "user-update", "--user", user, "--nick-name", f"Name {edit}")
            eventually(im.pending)
        while im.pending() or jobs(im):
            if caught():
                consumer.kill()
                consumer.wait()
                return
    pytest.fail("it was never caught in the middle")


def test_the_next_consumer_finishes_what_a_killed_one_has_put_off(im: Imsync, user: int) -> None:
    killed_in_the_middle(im, user)
    assert im.pending() == []
    wrong = len(im.wrong_copies("group"))
    assert 0 < wrong < ROWS

    verdict = im.json("verify", "--group", "group")
    assert (verdict["drift"], verdict["in_flight"], verdict["flight"]["fan_out"]) == (0, 1, 1)
    told = im.ok("verify", "--group", "group").out
    assert "group: fan-out of 1 user unfinished: start imsync consume group" in told
    assert "1 in flight (1 in an unfinished fan-out)" in told
    assert im.run("verify", "--group", "group", "--strict").expect(3)

    (group,) = (each for each in im.json("status")["groups"] if each["group"] == "group")
    assert group["fan_out"]["users"] == 1
    assert group["fan_out"]["seconds"] >= 0
    assert "group: fan-out of 1 user unfinished" in im.ok("status").out

    traced = im.run("trace", user, "--json").expect(3).json()
    (service,) = (each for each in traced["groups"] if each["group"] == "group")
    rows = service["rows"]
    assert rows >= ROWS
    assert service["fan_out"]["rows"] == rows
    assert 0 < service["fan_out"]["visited"] < rows
    assert service["remedy"] == "imsync consume group"
    words = im.run("trace", user).expect(3).out
    assert f"fan-out under way: it has come to {service['fan_out']['visited']:,} of {rows:,} rows" in words

    assert im.json("consume", "group", "--until-empty")["events"] == 0
    assert jobs(im) == []
    assert im.wrong_copies("group") == []
    assert im.json("verify", "--group", "group", "--strict")["drift"] == 0
    assert im.json("consume", "friend", "--until-empty")["applied"] > 0
    assert im.json("trace", user)["verdict"] == "in_step"
    (group,) = (each for each in im.json("status")["groups"] if each["group"] == "group")
    assert group["fan_out"] == {"users": 0, "seconds": None}


def test_a_replay_leaves_nothing_undone(im: Imsync, user: int) -> None:
    """Nobody comes after it."""
    im.ok("publish", "user-update", "--user", user, "--nick-name", "Replayed")
    with im.locked("group"):
        consumer: subprocess.Popen[str] = im.start("consume", "group")
        eventually(im.pending)
        consumer.kill()
        consumer.wait()
    assert im.json("replay", "pending", "--min-idle", "0s", "--group", "group")["applied"] == 1
    assert jobs(im) == []
    assert im.wrong_copies("group") == []


def test_a_rebuild_leaves_nothing_undone(im: Imsync, user: int) -> None:
    im.ok("publish", "user-update", "--user", user, "--nick-name", "Rebuilt")
    im.ok("rebuild", "group", "--yes")
    assert jobs(im) == []
    assert im.wrong_copies("group") == []
    assert im.json("verify", "--group", "group")["drift"] == 0
