"""A projection's file in trouble, under a real consumer: nothing is acknowledged, the message says what it is, and when
the trouble is over the consumer goes on as if nothing had been.
"""

from __future__ import annotations

import os
import re
import resource
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from imsync.bus import Backoff, Bus
from imsync.bus.consumer import Consumer
from imsync.bus.entry import following
from imsync.errors import InfrastructureError, StoreMismatch, StoreUnusable
from imsync.im.events import DESTINATION, UserUpdated
from imsync.im.group_store import Group, GroupStore, Member
from imsync.im.user_store import Profile
from tests import version1
from tests.consumers import QUICK, Running
from tests.disks import Disk, with_disks
from tests.servers import Server, Spawn, eventually
from tests.stores import hear, sql, tell

USERS = 3000
"""Enough that a consumer, which reads a page only when it needs it, has not read most of the file."""
OPTIONS = replace(QUICK, backoff=Backoff(first_seconds=0.02, longest_seconds=0.1))


class Service:
    """A group store with a consumer that runs in a thread, and events for it.

    Args:
        path: the store's file; made, when it is missing.
    """

    def __init__(self, server: Server, path: Path) -> None:
        self.path = path
        self.bus = Bus.from_url(server.url)
        self.stream = self.bus.stream(DESTINATION)
        self.client: Any = self.bus.endpoint.connect()
        self.troubles: list[InfrastructureError] = []
        self._versions = dict.fromkeys(range(1, USERS + 1), 1)
        self.published = 0
        self.running: Running | None = None
        if not path.exists():
            with closing(GroupStore(path, create=True)) as store:
                store.bootstrap(
                    [Profile(n, f"user{n}", "name 1", "image 1", "thumb 1") for n in self._versions],
                    [Group(10, "g", 1)],
                    [Member(10, n, "mine" if n == 1 else "") for n in self._versions],
                )

    def start(self, **options: Any) -> None:
        """Opens the store and consumes."""
        self.store = GroupStore(self.path, busy_timeout_ms=50)
        self.running = Running(
            Consumer(
                self.bus.endpoint,
                self.bus.keys(DESTINATION),
                group="group",
                events=GroupStore.events,
                handler=self.store,
                options=replace(OPTIONS, **options),
                on_trouble=self._note,
            )
        )

    def _note(self, error: InfrastructureError, _: float) -> None:
        self.troubles.append(error)

    def publish(self, users: Sequence[int]) -> None:
        """The next version of each of these users."""
        for user_id in users:
            self._versions[user_id] += 1
        self.bus.publish_many(self._event(user_id) for user_id in users)
        self.published += len(users)

    def _event(self, user_id: int) -> UserUpdated:
        version = self._versions[user_id]
        content = {"head_image": f"image {version}", "head_image_thumb": f"thumb {version}"}
        return UserUpdated(id=user_id, version=version, nick_name=f"name {version}", **content)

    # ── what is seen from outside ────────────────────────────────────────────────────────────────────

    def outstanding(self) -> int:
        """How many entries are not acknowledged: those that were delivered, and those that were not yet."""
        groups = self.stream.groups()
        if not groups:
            return self.published
        undelivered = self.client.xrange(self.stream.key, following(groups[0].last_delivered_id))
        return self.held() + len(undelivered)

    def held(self) -> int:
        """How many entries were delivered and are not acknowledged."""
        return self.stream.pending_summary("group").count

    def trouble(self, before: int) -> InfrastructureError:
        """The first failure that the consumer reports after so many."""
        eventually(lambda: len(self.troubles) > before)
        return self.troubles[before]

    def assert_at_rest(self) -> None:
        """Everything was applied, once, and the file is whole."""
        eventually(lambda: self.outstanding() == 0)
        states = sql(self.path, "SELECT user_id, version, nick_name, head_image FROM user_profile_replica")
        assert {row[0]: row[1:] for row in states} == {
            n: (version, f"name {version}", f"thumb {version}") for n, version in self._versions.items()
        }
        rows = sql(self.path, "SELECT user_id, user_nick_name, head_image, remark_nick_name FROM im_group_member")
        assert {row[0]: row[1:] for row in rows} == {
            n: (f"name {version}", f"thumb {version}", "mine" if n == 1 else "")
            for n, version in self._versions.items()
        }
        tallies = {outcome: n for _, outcome, n in sql(self.path, "SELECT * FROM tally") if n}
        assert tallies.pop("applied", 0) == self.published
        assert tallies.keys() <= {"duplicate"}
        assert sql(self.path, "SELECT count(*) FROM settled WHERE outcome = 'applied'") == [(self.published,)]
        assert sql(self.path, "PRAGMA integrity_check") == [("ok",)]
        assert self.running is None or self.running.running
        assert self.client.exists(self.bus.keys(DESTINATION).dead("group")) == 0

    def assert_waits(self, users: Sequence[int], message: str, hint: str, *, readable: bool = False) -> None:
        """While it is broken: what is published is neither acknowledged nor given up, and the message says why.

        Args:
            readable: the store can be read, so the consumer is given entries before it finds out.
        """
        before = len(self.troubles)
        self.publish(users)
        if readable:
            eventually(self.held)
        held = self.held()
        eventually(lambda: len(self.troubles) >= before + 4)
        first = next(error for error in self.troubles[before:] if re.search(message, error.message))
        assert isinstance(first, StoreUnusable)
        assert str(self.path) in first.message
        assert re.search(hint, first.hint)
        assert self.outstanding() == len(users)
        assert self.held() >= held
        assert self.running is not None
        assert self.running.running
        assert all(isinstance(error, StoreUnusable) for error in self.troubles[before:])

    def close(self) -> None:
        if self.running is not None:
            self.running.consumer.stop()
            self.running.join()
            self.store.close()
        self.client.close()
        self.bus.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "group.db"


@pytest.fixture
def service(server: Server, path: Path) -> Iterator[Service]:
    """One that works, and has worked."""
    with closing(Service(server, path)) as service:
        service.start()
        service.publish(range(1, 11))
        service.assert_at_rest()
        assert service.troubles == []
        yield service


def elsewhere(*command: object) -> None:
    """Does something to a store's file in a process of its own: to open and close it in this one would take away the
    locks that SQLite holds on it (https://www.sqlite.org/howtocorrupt.html, section 2.2)."""
    subprocess.run([str(word) for word in command], check=True, capture_output=True, timeout=20)


WRITE = """
import random, sys
path, start, end = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
with open(path, "r+b") as file:
    file.seek(start)
    file.write(random.randbytes(end - start))
"""


def side_files(path: Path) -> list[Path]:
    return [path.with_name(path.name + suffix) for suffix in ("-wal", "-shm")]


def backed_up(path: Path) -> Path:
    """A whole copy of a store that is at rest. All of it is in the file itself then, and its log is empty."""
    assert sql(path, "PRAGMA wal_checkpoint(TRUNCATE)")[0][0] == 0
    copy = path.with_name("backup.db")
    elsewhere("cp", path, copy)
    return copy


def put_in_place(copy: Path, path: Path) -> None:
    """As somebody does who knows that the log is a part of the store."""
    for file in side_files(path):
        file.unlink(missing_ok=True)
    copy.rename(path)


# ── locked ───────────────────────────────────────────────────────────────────────────────────────────

HOLDER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE"); print("locked", flush=True)
sys.stdin.readline()
"""


def test_locked_by_another_process(service: Service, spawn: Spawn) -> None:
    holder = spawn("-c", HOLDER, service.path)
    assert hear(holder) == "locked"
    service.assert_waits(range(5, 25), "database is locked", "another process is writing", readable=True)
    tell(holder)
    assert holder.wait(10) == 0
    service.assert_at_rest()


def test_locked_by_a_process_that_dies(service: Service, spawn: Spawn) -> None:
    holder = spawn("-c", HOLDER, service.path)
    assert hear(holder) == "locked"
    service.assert_waits(range(5, 25), "database is locked", "another process is writing", readable=True)
    holder.kill()
    holder.wait(10)
    service.assert_at_rest()


# ── the disk ─────────────────────────────────────────────────────────────────────────────────────────


@with_disks
def test_disk_full(request: pytest.FixtureRequest, server: Server) -> None:
    with Disk(8 * 1024) as disk, closing(Service(server, disk.folder / "group.db")) as service:
        service.start()
        service.publish(range(1, 11))
        service.assert_at_rest()
        filler = disk.fill()
        service.assert_waits(range(5, 1000), "database or disk is full", "free some disk space", readable=True)
        filler.unlink()
        service.assert_at_rest()
        filler = disk.fill()  # and again
        service.assert_waits(range(5, 1000), "database or disk is full", "free some disk space", readable=True)
        filler.unlink()
        service.assert_at_rest()


@with_disks
def test_disk_full_when_it_starts(request: pytest.FixtureRequest, server: Server) -> None:
    with Disk(8 * 1024) as disk, closing(Service(server, disk.folder / "group.db")) as service:
        filler = disk.fill()
        with pytest.raises(StoreUnusable):  # not even the shared memory beside the file can be made
            service.start()
        filler.unlink()
        service.start()
        service.publish(range(1, 11))
        service.assert_at_rest()


@with_disks
def test_disk_read_only(request: pytest.FixtureRequest, server: Server) -> None:
    with Disk(8 * 1024) as disk, closing(Service(server, disk.folder / "group.db")) as service:
        service.start(backoff=Backoff(first_seconds=0.4, longest_seconds=0.4))
        service.publish(range(1, 11))
        service.assert_at_rest()
        away = disk.folder / "away.db"
        # the kernel makes nothing read-only that is open for writing: the consumer must let go of it first
        for _ in range(20):
            before = len(service.troubles)
            service.path.rename(away)
            assert "gone" in service.trouble(before).message
            away.rename(service.path)
            if disk.remount("ro"):
                break
        else:
            pytest.fail("the consumer was always quicker")
        service.assert_waits(range(5, 25), "readonly|unable to open", "mounted writable")
        assert disk.remount("rw")
        service.assert_at_rest()


CONSUMER = """
import sys
from pathlib import Path
from imsync.bus import Bus
from imsync.bus.consumer import Consumer
from imsync.im.events import DESTINATION
from imsync.im.group_store import GroupStore
from tests.integration.test_store_faults import OPTIONS
def trouble(error, seconds):
    print(type(error).__name__, error.message, error.hint, sep="|", flush=True)
bus = Bus.from_url(sys.argv[1])
print("ready", flush=True)
Consumer(bus.endpoint, bus.keys(DESTINATION), group="group", events=GroupStore.events,
         handler=GroupStore(Path(sys.argv[2])), options=OPTIONS, on_trouble=trouble).run()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="prlimit is Linux's")
def test_io_error(server: Server, path: Path, spawn: Spawn) -> None:
    """A process may not write beyond a size: to SQLite that is an error of the disk."""
    with closing(Service(server, path)) as service:
        consumer = spawn("-c", CONSUMER, server.url, path)
        assert hear(consumer) == "ready"
        service.publish(range(1, 11))
        service.assert_at_rest()
        limits = resource.prlimit(consumer.pid, resource.RLIMIT_FSIZE)
        # enough for the shared memory beside the file, and not for a batch
        resource.prlimit(consumer.pid, resource.RLIMIT_FSIZE, (40_000, limits[1]))
        os.kill(consumer.pid, signal.SIGSTOP)
        service.publish(range(5, 1000))
        os.kill(consumer.pid, signal.SIGCONT)
        for _ in range(5):
            kind, message, hint = hear(consumer).split("|")
            assert kind == "StoreUnusable"
            assert re.search(r"disk I/O error \(SQLITE_IOERR_\w+\)", message)
            assert str(path) in message
            assert "check the disk" in hint
            assert service.outstanding() == 995
            assert service.held() > 0
        resource.prlimit(consumer.pid, resource.RLIMIT_FSIZE, limits)
        service.assert_at_rest()


# ── damage ───────────────────────────────────────────────────────────────────────────────────────────


def test_a_damaged_page(service: Service) -> None:
    size = service.path.stat().st_size
    good = backed_up(service.path)
    elsewhere(sys.executable, "-c", WRITE, service.path, 8 * 4096, size)
    service.assert_waits(range(2000, 2100), "malformed", r"damaged: restore it .*imsync rebuild group")
    assert "is damaged" in service.troubles[-1].message  # as long as any page is, read or not
    elsewhere("cp", good, service.path)  # over the damage, in the same file
    service.assert_at_rest()


def test_cut_short(service: Service) -> None:
    """Noticed at once, also when all that is needed lies in the cache."""
    good = backed_up(service.path)
    for read in (lambda: service.store.states(0, USERS), service.store.tallies, service.store.staleness):
        read()
    assert service.store.prune("0-1") == 0  # has looked at the settled rows
    elsewhere("truncate", "--size", str(20 * 4096), service.path)
    service.assert_waits(range(1, 11), "malformed|damaged", r"restore it .*imsync rebuild group")
    elsewhere("cp", good, service.path)
    service.assert_at_rest()


@pytest.mark.parametrize("content", [b"no database at all" * 500, b"\x00" * 8192], ids=["text", "zeros"])
def test_not_a_database(service: Service, content: bytes) -> None:
    away = service.path.with_name("away.db")
    logs = side_files(service.path)
    for file in (service.path, *logs):
        file.rename(away.with_name(file.name.replace("group", "away")))
    service.path.write_bytes(content)
    service.assert_waits(range(5, 25), "not a database|is not a group store|is empty", "damaged|data-dir|restore it")
    for file in logs:
        file.unlink(missing_ok=True)
    for file in (service.path, *logs):
        file.with_name(file.name.replace("group", "away")).rename(file)
    service.assert_at_rest()


# ── other versions ───────────────────────────────────────────────────────────────────────────────────


def test_a_newer_schema(service: Service) -> None:
    sql(service.path, "PRAGMA user_version = 99")
    service.assert_waits(range(5, 25), "schema version 99, this imsync knows 3", "upgrade imsync", readable=True)
    sql(service.path, "PRAGMA user_version = 3")
    service.assert_at_rest()


def test_an_older_schema_is_migrated(server: Server, path: Path) -> None:
    path.parent.mkdir()
    with closing(version1.make(path, "IMSG")) as old:
        old.execute("BEGIN")
        rows = [(n, 1, "name 1", "thumb 1", 0, 0) for n in range(1, USERS + 1)]
        old.executemany("INSERT INTO user_profile_replica VALUES (?, ?, ?, ?, ?, ?)", rows)
        members = [(n, 10, "name 1", "thumb 1", "mine" if n == 1 else "", 0) for n in range(1, USERS + 1)]
        old.executemany("INSERT INTO im_group_member VALUES (?, ?, ?, ?, ?, ?)", members)
        old.execute("COMMIT")
    with closing(Service(server, path)) as service:
        service.start()
        service.publish(range(1, 11))
        service.assert_at_rest()
        assert sql(path, "PRAGMA user_version") == [(3,)]


# ── another file, or none ────────────────────────────────────────────────────────────────────────────


def test_deleted_and_put_back_from_a_copy(service: Service) -> None:
    good = backed_up(service.path)
    service.path.unlink()
    service.assert_waits(range(5, 25), "gone: it was deleted or moved away", r"put it back; if it is lost, .*rebuild")
    assert not service.path.exists()  # it is not made anew in passing
    put_in_place(good, service.path)
    service.assert_at_rest()


def test_moved_away_and_back(service: Service) -> None:
    away = service.path.with_name("away.db")
    service.path.rename(away)
    service.assert_waits(range(5, 25), "gone: it was deleted or moved away", "put it back")
    away.rename(service.path)
    service.assert_at_rest()


def test_the_whole_folder_moved_away_and_back(service: Service) -> None:
    away = service.path.parent.with_name("away")
    service.path.parent.rename(away)
    service.assert_waits(range(5, 25), "gone|cannot be opened", "put it back|check the folder")
    away.rename(service.path.parent)
    service.assert_at_rest()


def test_replaced_by_an_equal_copy(service: Service) -> None:
    put_in_place(backed_up(service.path), service.path)
    service.publish(range(5, 25))
    service.assert_at_rest()


def test_replaced_by_a_copy_beside_a_log_that_is_not_its_own(service: Service) -> None:
    """SQLite would mix the two."""
    backed_up(service.path).rename(service.path)
    service.assert_waits(range(5, 25), "still that of the file before", "move group.db-wal and group.db-shm away")
    for file in side_files(service.path):
        file.rename(file.with_name(f"aside{file.suffix}"))
    service.assert_at_rest()


@pytest.mark.parametrize("what", ["an older copy", "another store"])
def test_replaced_by_what_lacks_what_was_acknowledged(service: Service, what: str, tmp_path: Path) -> None:
    """Waiting would not help: it ends, and nothing more is acknowledged or given up."""
    if what == "an older copy":
        copy = backed_up(service.path)
        service.publish(range(5, 25))
        service.assert_at_rest()
    else:
        copy = tmp_path / "other.db"
        GroupStore(copy, create=True).close()
    put_in_place(copy, service.path)
    service.publish(range(1, 31))
    assert service.running is not None
    with pytest.raises(StoreMismatch) as raised:
        service.running.result()
    assert "imsync rebuild group" in raised.value.hint
    assert service.outstanding() == 30
    assert service.client.exists(service.bus.keys(DESTINATION).dead("group")) == 0


# ── the write-ahead log ──────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("which", [0, slice(None)], ids=["wal", "wal and shm"])
def test_the_log_deleted(service: Service, which: int | slice) -> None:
    """What is committed then is in no file that has a name: it is saved before anything is acknowledged."""
    files = side_files(service.path)[which]
    for file in files if isinstance(files, list) else [files]:
        file.unlink()
    service.publish(range(5, 25))
    error = service.trouble(0)
    assert isinstance(error, StoreUnusable)
    assert "lost its write-ahead log" in error.message
    assert "they are part of it" in error.hint
    service.assert_at_rest()
    assert sum(error.message.count("write-ahead log") for error in service.troubles) == 1


def test_the_log_deleted_while_somebody_reads_by_it(service: Service, spawn: Spawn) -> None:
    with closing(sqlite3.connect(service.path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM im_group_member").fetchone()
        side_files(service.path)[0].unlink()
        service.assert_waits(range(5, 25), "lost its write-ahead log", "part of it")
        reader.execute("COMMIT")
        service.assert_at_rest()


def test_what_was_committed_without_a_log_survives_kill_9(service: Service, tmp_path: Path) -> None:
    """As soon as the trouble is reported, the file alone has everything."""
    side_files(service.path)[0].unlink()
    seen: list[Path] = []

    def copy(error: InfrastructureError, seconds: float) -> None:
        seen.append(tmp_path / "as-it-was.db")
        elsewhere("cp", service.path, seen[-1])

    assert service.running is not None
    service.running.consumer._on_trouble = copy
    service.publish([5])
    service.assert_at_rest()
    assert sql(seen[0], "SELECT version FROM user_profile_replica WHERE user_id = 5") == [(3,)]
