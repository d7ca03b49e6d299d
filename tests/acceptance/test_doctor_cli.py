"""`imsync doctor`: every check of the stores, the settings and the connection turns red when it should, and says what
to do; and looking changes nothing. (The checks of the server are tested where they are: with real servers.)
"""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from imsync.embedded import EmbeddedServer
from imsync.im.group_store import GroupStore
from imsync.store import file_checks
from tests import version1
from tests.acceptance.driver import Imsync, free_port
from tests.acceptance.inprocess import InProcess
from tests.disks import Disk, with_disks
from tests.servers import StartServer, eventually

PAGE = 4096


def examined(im: Imsync, *args: str, **more: str) -> dict[str, dict[str, Any]]:
    """What doctor finds, by check; the exit code goes with it, and everything red has a remedy."""
    done = im.run("doctor", *args, "--json", **more)
    report = done.json()
    for row in report["findings"]:
        assert (row["remedy"] is None) is (row["verdict"] == "ok"), row
    numbers = {name: sum(row["verdict"] == name for row in report["findings"]) for name in ("ok", "warn", "bad")}
    assert {name: report[name] for name in numbers} == numbers
    assert report["healthy"] is (report["bad"] == 0)
    assert done.code == (3 if report["bad"] else 0)
    return {row["check"]: row for row in report["findings"]}


def verdicts(im: Imsync, *args: str, **more: str) -> dict[str, str]:
    return {name: row["verdict"] for name, row in examined(im, *args, **more).items()}


def expect(im: Imsync, check: str, verdict: str, *said: str, **more: str) -> None:
    """That a check ends so, with these words in its evidence."""
    row = examined(im, **more)[check]
    assert row["verdict"] == verdict, row
    assert all(each in row["evidence"] for each in said), row


@pytest.fixture
def served(here: InProcess, start_server: StartServer) -> InProcess:
    """Stores and a server that is all that a server should be."""
    server = start_server(appendonly=True, appendfsync="everysec")
    return here.on(server, CONSUMER_HEARTBEAT_MS="100")


def state(im: Imsync) -> object:
    with im.client() as client:
        kept = {key: client.dump(key) for key in client.keys("*")}
    return kept, {path.name: path.read_bytes() for path in sorted(im.data.glob("*")) if path.is_file()}


def test_all_is_well_and_looking_changes_nothing(served: InProcess) -> None:
    served.ok("publish", "user-update", "--count", 3)
    before = state(served)
    found = verdicts(served, "--deep")
    assert set(found.values()) == {"ok"}, found
    assert {"settings", "stores", "file-permissions", "disk", "user-integrity", "group-schema", "friend-log", "redis",
            "version", "role", "eviction", "memory", "persistence", "saving", "idle-timeout", "output-buffer", "clock",
            "rights", "stream", "groups", "consumers", "retention", "group-binding"} <= found.keys()  # fmt: skip
    assert state(served) == before
    shown = served.ok("doctor").out
    assert f"{len(found)} ok" in shown
    assert "maxmemory-policy noeviction" in shown


# ── the stores ───────────────────────────────────────────────────────────────────────────────────────────


def test_files_that_others_may_read(served: InProcess) -> None:
    (served.data / "group.db").chmod(0o640)
    expect(served, "file-permissions", "bad", "others may read group.db")
    (served.data / "group.db").chmod(0o600)
    served.data.chmod(0o755)
    expect(served, "file-permissions", "bad", "others may read data")
    served.data.chmod(0o700)
    if os.geteuid() == 0:
        os.chown(served.data / "user.db", 1, -1)
        expect(served, "file-permissions", "warn", "another user owns user.db")


def test_stores_that_are_missing(served: InProcess) -> None:
    (served.data / "friend.db").unlink()
    expect(served, "stores", "warn", "friend.db not in")
    assert examined(served)["stores"]["remedy"].endswith("restore them, then imsync rebuild friend")
    with served.client() as client:
        client.flushall()
    assert examined(served)["stream"]["remedy"].startswith("imsync relay")  # `init` refuses stores that are there
    for path in served.data.glob("*.db"):
        path.unlink()
    expect(served, "stores", "bad", "there are none")


def damage(path: Path) -> None:
    """Every page but the first is noise."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(PAGE)
        file.write(b"\x5a" * (size - PAGE))


def other_index(path: Path) -> None:
    """An index that does not agree with its table: only a deep look finds it."""
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE extra (a, b)")
        connection.execute("CREATE INDEX extra_by_a ON extra (a)")
        connection.execute("INSERT INTO extra VALUES (1, 2), (3, 4)")
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute(
            "UPDATE sqlite_schema SET sql = 'CREATE INDEX extra_by_a ON extra (b)' WHERE name = 'extra_by_a'"
        )


@pytest.mark.parametrize(
    ("spoil", "check", "verdict", "said"),
    [
        (damage, "group-integrity", "bad", "is damaged"),
        (lambda path: path.write_bytes(b"no database at all" * 999), "group-schema", "bad", "not a database"),
        (lambda path: shutil.copy(path.parent / "friend.db", path), "group-schema", "bad", "is not a group store"),
        (lambda path: path.write_bytes(b""), "group-schema", "bad", "is not a group store"),
        (lambda path: pragma(path, "user_version = 99"), "group-schema", "bad", "this imsync knows"),
    ],
    ids=["damaged", "no database", "another store", "empty", "newer"],
)  # fmt: skip
def test_stores_that_are_not_what_they_should_be(
    served: InProcess, spoil: Callable[[Path], object], check: str, verdict: str, said: str
) -> None:
    spoil(served.data / "group.db")
    expect(served, check, verdict, said)
    assert verdicts(served)["user-integrity"] == "ok"


def pragma(path: Path, text: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA {text}")


def test_an_older_store_is_not_migrated_by_looking(served: InProcess) -> None:
    path = served.data / "group.db"
    path.unlink()
    version1.make(path, GroupStore.schema.application_id).close()
    expect(served, "group-schema", "warn", "schema version 1 of 3")
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)


def test_only_a_deep_look_compares_indexes(served: InProcess) -> None:
    other_index(served.data / "group.db")
    assert verdicts(served)["group-integrity"] == "ok"
    assert verdicts(served, "--deep")["group-integrity"] == "bad"


def test_a_write_ahead_log_that_grows(tmp_path: Path) -> None:
    path = tmp_path / "group.db"
    path.touch()
    assert file_checks.log_size(path).verdict == "ok"
    with (tmp_path / "group.db-wal").open("wb") as log:
        log.truncate(file_checks.LOG_BYTES + 1)
    finding = file_checks.log_size(path)
    assert (finding.verdict, "fuser" in finding.remedy) == ("warn", True)


@with_disks
def test_a_disk_that_is_full(request: pytest.FixtureRequest) -> None:
    with Disk(1024) as disk:
        assert file_checks.disk_space(disk.folder).verdict == "bad"


@pytest.mark.parametrize(("free", "verdict"), [(1, "bad"), (500 * 2**20, "warn"), (5 * 2**30, "ok")])
def test_a_disk_that_fills(free: int, verdict: str) -> None:
    assert file_checks.judge_space("disk", "evidence", free).verdict == verdict


def test_a_store_of_another_group(served: InProcess, template: Path) -> None:
    served.ok("consume", "group", "--until-empty")
    with served.client() as client:
        client.delete(served.keys.store("group"))
        client.zadd(served.keys.store("group"), {"another store": 7})
    expect(served, "group-binding", "bad", "another store")
    assert "imsync rebuild group" in examined(served)["group-binding"]["remedy"]


# ── the settings ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("settings", "verdict", "said"),
    [
        ({"RETENTION_MIN_HOURS": "200"}, "warn", "retention.min_hours 200 is above retention.hours 168"),
        ({"RELAY_KEEP_SENT_HOURS": "2"}, "warn", "relay.keep_sent_hours 2 is below retention.min_hours 24"),
        ({"RETENTION_ENTRIES": "100"}, "warn", "retention.entries 100 is below consumer.batch"),
        ({"CONSUMER_STOP_DEADLINE_SECONDS": "1"}, "warn", "stop_deadline_seconds 1 is shorter"),
        ({"USERNAME": "x"}, "warn", "a username without a password"),
        ({"URL": "", "PASSWORD": "geheim"}, "warn", "without effect on imsync's own server"),
        ({"URL": "redis://127.0.0.1:1", "TLS_CA_FILE": "/ca.pem"}, "bad", "nothing is encrypted"),
        ({"URL": "redis://redis.invalid:1", "PASSWORD": "geheim"}, "warn", "the password and the profiles travel"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_settings_that_contradict_each_other(
    here: InProcess,
    settings: dict[str, str],
    verdict: str,
    said: str,
) -> None:
    here.set(URL="redis://127.0.0.1:1")
    here.set(**settings)
    here.secrets = ["geheim"]
    rows = [row for row in here.run("doctor", "--json").json()["findings"] if row["check"] == "settings"]
    assert [row["verdict"] for row in rows if said in row["evidence"]] == [verdict], rows


# ── the connection ───────────────────────────────────────────────────────────────────────────────────────


def test_nobody_listens(here: InProcess) -> None:
    here.set(URL=f"redis://127.0.0.1:{free_port()}")
    found = examined(here)
    assert (found["redis"]["verdict"], found["server"]["verdict"]) == ("bad", "unknown")
    assert "cannot reach Redis" in found["redis"]["evidence"]


def test_a_wrong_password(served: InProcess) -> None:
    with served.client() as client:
        client.config_set("requirepass", "geheim1")
    served.secrets = ["geheim1", "geheim2"]
    expect(served, "redis", "bad", "refuses access", IMSYNC_PASSWORD="geheim2")
    assert verdicts(served, IMSYNC_PASSWORD="geheim1")["redis"] == "ok"


def test_who_may_not_look_is_told_so(served: InProcess) -> None:
    with served.client() as client:
        client.execute_command("ACL", "SETUSER", "nobody", "on", ">x", "+ping")
    found = examined(served, IMSYNC_USERNAME="nobody", IMSYNC_PASSWORD="x")
    assert found["rights"]["verdict"] == "bad"
    of_the_server = ("version", "role", "eviction", "memory", "persistence", "saving", "idle-timeout", "clock",
                     "output-buffer", "stream", "groups", "consumers", "retention", "group-binding")  # fmt: skip
    assert {found[name]["verdict"] for name in of_the_server} == {"unknown"}


def test_a_key_of_another_type(served: InProcess) -> None:
    with served.client() as client:
        client.delete(served.stream)
        client.set(served.stream, "x")
    expect(served, "stream", "bad", "WRONGTYPE")


# ── the server of its own ────────────────────────────────────────────────────────────────────────────────


def test_the_embedded_server_is_looked_at_and_not_started(here: InProcess) -> None:
    expect(here, "embedded-server", "warn", "has never run")
    assert not (here.data / "redis").exists()
    server = EmbeddedServer(here.data)
    server.start()
    expect(here, "embedded-server", "ok", "process")
    pid = server.status().pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not server.status().running)
    expect(here, "embedded-server", "warn", "was killed")
    assert verdicts(here)["server"] == "unknown"
    server.start()
    server.stop()
    expect(here, "embedded-server", "warn", "is stopped")
    assert not server.status().running


def test_an_embedded_server_that_hangs(here: InProcess) -> None:
    server = EmbeddedServer(here.data)
    pid = server.start().pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        expect(here, "embedded-server", "bad", "does not answer")
    finally:
        os.kill(pid, signal.SIGCONT)
