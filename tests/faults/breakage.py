"""Ways to break a store's file under those who use it, and to put it right again.

Each is a block: in it the stores are broken, after it they are as they were. Nobody may be in a transaction when it
begins. This process must have none of the files open: SQLite's locks end when any descriptor of a file is closed.
"""

from __future__ import annotations

import ctypes
import os
import resource
import sqlite3
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults.nursery import Worker
from tests.faults.rig import World
from tests.faults.steps import At
from tests.faults.workers import CommandJob, ConsumerJob, Context, ProducerJob, RelayJob
from tests.servers import eventually

PAGE_BYTES = 4096
SMALL_FILE = 1 << 16
"""What a worker's log does not grow to, and the write-ahead logs have passed."""
NEWER_SCHEMA = 99


@dataclass(frozen=True)
class Breakage:
    """A way to break stores.

    Args:
        name: what the table calls it.
        says: what those who meet it must say, as a regular expression.
        breaks: the block: breaks the stores of these names, which these workers have open.
        refused: whether a store that is broken so cannot even be opened.
        command: how a command is run that is to meet it too.
    """

    name: str
    says: str
    breaks: Callable[[World, Sequence[str], Sequence[Worker]], Any]
    refused: bool = True
    command: type[CommandJob] = CommandJob


def paths(world: World, names: Sequence[str]) -> list[Path]:
    """The files of these stores."""
    return [world.stores / f"{name}.db" for name in names]


def all_of(path: Path) -> list[Path]:
    """A store's file, and those that SQLite puts beside it."""
    return [path, path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-shm")]


def remove(path: Path) -> None:
    """A store is gone, with all its files."""
    for each in all_of(path):
        each.unlink(missing_ok=True)


def copy(path: Path, to: Path) -> Path:
    """A copy of a store as it is at this moment, made as SQLite says that copies are to be made."""
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(to)) as target:
        source.backup(target)
    to.chmod(0o600)
    return to


def restore(path: Path, from_copy: Path) -> None:
    """Puts a copy in the place of a store, as somebody does who knows what belongs to it."""
    beside = path.with_name(f"{path.name}.restored")
    beside.write_bytes(from_copy.read_bytes())
    beside.chmod(0o600)
    remove(path)
    beside.rename(path)


def execute(path: Path, *statements: str) -> list[tuple[Any, ...]]:
    """Runs statements in one transaction of another process, so to speak; the rows of the last one."""
    with closing(sqlite3.connect(path, isolation_level=None, timeout=10)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        rows: list[tuple[Any, ...]] = []
        for statement in statements:
            rows = connection.execute(statement).fetchall()
        connection.execute("COMMIT")
        return rows


# ── locked, full, IO errors ──────────────────────────────────────────────────────────────────────────


@contextmanager
def locked(world: World, names: Sequence[str], workers: Sequence[Worker]) -> Iterator[None]:
    """Another process holds the write locks."""
    with ExitStack() as locks:
        for name in names:
            locks.enter_context(world.write_lock(name))
        yield


@contextmanager
def full(world: World, names: Sequence[str], workers: Sequence[Worker]) -> Iterator[None]:
    """The disk that the stores are on, which is a small one of the test's own, has no byte left."""
    filler = world.stores / "filler"
    free = os.statvfs(world.stores)
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize)
    assert os.statvfs(world.stores).f_bavail == 0
    try:
        yield
    finally:
        filler.unlink()


@contextmanager
def io_errors(world: World, names: Sequence[str], workers: Sequence[Worker]) -> Iterator[None]:
    """The system refuses to write: these processes' files may not be longer than the stores' logs are already."""
    for path in paths(world, names):
        assert path.with_name(f"{path.name}-wal").stat().st_size >= SMALL_FILE
    before = [(worker, resource.prlimit(worker.pid, resource.RLIMIT_FSIZE)) for worker in workers]
    for worker, (_, hard) in before:
        resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, (SMALL_FILE, hard))
    try:
        yield
    finally:
        for worker, limits in before:
            with suppress(ProcessLookupError):  # a producer has ended
                resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, limits)


# ── read-only, gone ──────────────────────────────────────────────────────────────────────────────────


@contextmanager
def moved_away(world: World, names: Sequence[str], workers: Sequence[Worker]) -> Iterator[None]:
    """The files are somewhere else for a while."""
    files = paths(world, names)
    for path in files:
        settle_log(path)
        path.rename(path.with_suffix(".away"))
    try:
        yield
    finally:
        for path in files:
            path.with_suffix(".away").rename(path)


@contextmanager
def read_only(world: World, names: Sequence[str], workers: Sequence[Worker]) -> Iterator[None]:
    """Files that may not be written, when somebody opens them: they are moved away, and come back so.

    The workers must be `Unprivileged…`: for root there are no permissions.
    """
    files = paths(world, names)
    with moved_away(world, names, workers):
        for worker in workers:
            worker.go_on()
        for worker in workers:
            eventually(lambda worker=worker: "moved away" in worker.log)  # type: ignore[misc]
        for path in files:
            path.with_suffix(".away").chmod(0o400)
            path.with_suffix(".away").rename(path)
        try:
            yield
        finally:
            for path in files:
                path.chmod(0o600)
                path.rename(path.with_suffix(".away"))


def without_override() -> None:
    """From now on permissions count for this process, also if it is root's (capabilities(7), CAP_DAC_OVERRIDE)."""
    if sys.platform != "linux":
        return

    class Header(ctypes.Structure):
        _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))

    class Data(ctypes.Structure):
        _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))

    libc = ctypes.CDLL(None, use_errno=True)
    header, data = Header(0x20080522, 0), (Data * 2)()
    assert libc.capget(ctypes.byref(header), data) == 0, os.strerror(ctypes.get_errno())
    data[0].effective &= ~(1 << 1)
    assert libc.capset(ctypes.byref(header), data) == 0, os.strerror(ctypes.get_errno())


class UnprivilegedProducer(ProducerJob):
    """A producer for which permissions count."""

    def run(self, context: Context) -> dict[str, int]:
        without_override()
        return super().run(context)


class UnprivilegedRelay(RelayJob):
    """A relay for which permissions count."""

    def run(self, context: Context) -> dict[str, int]:
        without_override()
        return super().run(context)


class UnprivilegedConsumer(ConsumerJob):
    """A consumer for which permissions count."""

    def run(self, context: Context) -> dict[str, Any]:
        without_override()
        return super().run(context)


class UnprivilegedCommand(CommandJob):
    """A command for which permissions count."""

    def run(self, context: Context) -> dict[str, Any]:
        without_override()
        return super().run(context)


class LimitedCommand(CommandJob):
    """A command whose files may not be longer than the stores' logs are already."""

    def run(self, context: Context) -> dict[str, Any]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (SMALL_FILE, SMALL_FILE))
        return super().run(context)


# ── damaged ──────────────────────────────────────────────────────────────────────────────────────────


def settle_log(path: Path) -> None:
    """Copies the write-ahead log into the file, so that the file is all there is, and everybody reads it again."""
    with closing(sqlite3.connect(path, isolation_level=None, timeout=10)) as connection:
        connection.execute("UPDATE meta SET value = value")
        busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        assert not busy, f"somebody is at work in {path}"


@contextmanager
def _overwritten(files: Sequence[Path], damage: Callable[[Path], None]) -> Iterator[None]:
    originals = []
    for path in files:
        settle_log(path)
        originals.append(path.read_bytes())
        damage(path)
    try:
        yield
    finally:
        for path, content in zip(files, originals, strict=True):
            with path.open("r+b") as file:
                file.write(content)


def _write_at(path: Path, position: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        file.write(content)


def corrupt(world: World, names: Sequence[str], workers: Sequence[Worker]) -> Any:
    """All pages but the first are garbage."""
    return _overwritten(
        paths(world, names), lambda path: _write_at(path, PAGE_BYTES, b"\xa5" * (path.stat().st_size - PAGE_BYTES))
    )


def truncated(world: World, names: Sequence[str], workers: Sequence[Worker]) -> Any:
    """The second half is missing."""
    return _overwritten(paths(world, names), lambda path: os.truncate(path, path.stat().st_size // 2))


def not_a_database(world: World, names: Sequence[str], workers: Sequence[Worker]) -> Any:
    """Somebody has written something else over its beginning."""
    return _overwritten(paths(world, names), lambda path: _write_at(path, 0, b"Dear diary, today I have ".ljust(4096)))


# ── schemas ──────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def newer_schema(world: World, names: Sequence[str], workers: Sequence[Worker]) -> Iterator[None]:
    """A later imsync has migrated them."""
    files = paths(world, names)
    before = [execute(path, "PRAGMA user_version")[0][0] for path in files]
    for path in files:
        execute(path, f"PRAGMA user_version = {NEWER_SCHEMA}")
    try:
        yield
    finally:
        for path, version in zip(files, before, strict=True):
            execute(path, f"PRAGMA user_version = {version}")


def downgrade_projection(path: Path) -> None:
    """As the first imsync left it, before stores had an identity."""
    execute(
        path,
        "DROP TABLE fan_out",
        "DELETE FROM meta WHERE key IN ('store_id', 'generation', 'position', 'position_source')",
        "PRAGMA user_version = 1",
    )


def downgrade_user_store(path: Path) -> None:
    """As the first imsync left it, before rows had a place in the order of sending."""
    execute(
        path,
        "DROP INDEX outbox_sent",
        "ALTER TABLE outbox DROP COLUMN place",
        "DELETE FROM counter WHERE name IN ('round_trip', 'resent')",
        "PRAGMA user_version = 1",
    )


DISK_FULL = Breakage("disk full", "database or disk is full", full, refused=False)
BREAKAGES = (
    Breakage("locked by another process", "database is locked", locked, refused=False),
    Breakage("IO error", "disk I/O error", io_errors, refused=False, command=LimitedCommand),
    Breakage("read-only", "readonly database", read_only, refused=False, command=UnprivilegedCommand),
    Breakage("moved away", "moved away", moved_away),
    Breakage("corrupt pages", "malformed|is damaged", corrupt),
    Breakage("truncated", "cut short|malformed|is damaged", truncated),
    Breakage("not a database", "file is not a database", not_a_database),
    Breakage("newer schema", f"has schema version {NEWER_SCHEMA}", newer_schema),
)


def hold(user: int, version: int) -> At:
    """Holds a consumer when it is about to apply this version."""
    return At("before_apply", containing=f"user={user} version={version} ")
