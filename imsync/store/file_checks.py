"""Whether a store's file is what it should be. Looks only: opens nothing for writing, migrates nothing."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

from imsync.bus.finding import Finding, bad, ok, unknown, warn
from imsync.store.checkpoints import LARGEST_PAGES
from imsync.store.database import Schema

LOG_BYTES = 2 * LARGEST_PAGES * 4096
"""A write-ahead log of twice what it grows to at most: something keeps checkpoints from being finished."""
FULL_BYTES, FILLING_BYTES = 100 * 2**20, 2**30


def permissions(paths: Iterable[Path], folder: Path) -> Finding:
    """Whether nobody else can read the profiles: files 0600, their folder 0700, and all of them ours."""
    name = "file-permissions"
    try:
        found = [path for path in paths if path.exists()]
        open_to_others = [path for path in found if stat.S_IMODE(path.stat().st_mode) & 0o077]
        if stat.S_IMODE(folder.stat().st_mode) & 0o077:
            open_to_others.append(folder)
        foreign = [path for path in (*found, folder) if path.stat().st_uid != os.geteuid()]
    except OSError as error:
        return unknown(name, f"{folder}: {error.strerror}", "look at it as the user who runs imsync")
    if open_to_others:
        named = ", ".join(path.name for path in open_to_others)
        return bad(name, f"others may read {named}", f"chmod go= {' '.join(map(str, open_to_others))}")
    if foreign:
        named = ", ".join(path.name for path in foreign)
        return warn(name, f"another user owns {named}", "run imsync as the user who owns the stores")
    return ok(name, f"{len(found)} files for their owner alone, in {folder}")


def schema(path: Path, wanted: Schema) -> Finding:
    """Whether the file is a store of this kind, and of a version that this imsync knows."""
    name = f"{path.stem}-schema"
    try:
        with closing(_look_into(path)) as connection:
            (magic,) = connection.execute("PRAGMA application_id").fetchone()
            (version,) = connection.execute("PRAGMA user_version").fetchone()
    except (sqlite3.Error, OSError) as error:
        return bad(name, f"{path} cannot be read: {error}", wanted.remedy)
    latest = len(wanted.migrations)
    if magic != wanted.magic:
        return bad(name, f"{path} is not a {wanted.name}", "check --data-dir; put the right file back")
    if version > latest:
        return bad(name, f"schema version {version}, this imsync knows {latest}", "upgrade imsync")
    if version < latest:
        return warn(
            name, f"schema version {version} of {latest}: the next command migrates it",
            "back it up before; an older imsync cannot read it afterwards",
        )  # fmt: skip
    return ok(name, f"{wanted.name}, schema version {version}")


def integrity(path: Path, wanted: Schema, *, deep: bool) -> Finding:
    """Whether SQLite finds the file whole.

    Args:
        deep: compare the indexes with their tables too, which takes several times as long.
    """
    name = f"{path.stem}-integrity"
    pragma = "integrity_check" if deep else "quick_check"
    try:
        with closing(_look_into(path)) as connection:
            problems = [row[0] for row in connection.execute(f"PRAGMA {pragma}(3)")]
    except sqlite3.OperationalError as error:
        return unknown(name, f"{path}: {error}", "try again")
    except sqlite3.Error as error:
        return bad(name, f"{path} is damaged: {error}", wanted.remedy)
    if problems == ["ok"]:
        return ok(name, f"{pragma} is ok, {path.stat().st_size / 2**20:,.1f} MiB")
    return bad(name, f"{path} is damaged: {'; '.join(' '.join(each.split()) for each in problems)}", wanted.remedy)


def log_size(path: Path) -> Finding:
    """Whether the write-ahead log is copied into the file."""
    name = f"{path.stem}-log"
    log = Path(f"{os.path.realpath(path)}-wal")
    size = log.stat().st_size if log.exists() else 0
    evidence = f"write-ahead log of {size / 2**20:,.1f} MiB"
    if size > LOG_BYTES:
        return warn(
            name, f"{evidence}: somebody has been reading for long, and keeps it from being copied into the file",
            f"find who has {path.name} open (fuser {path}), and end it",
        )  # fmt: skip
    return ok(name, evidence)


def disk_space(folder: Path) -> Finding:
    """How much the disk has left."""
    name = "disk"
    try:
        usage = shutil.disk_usage(folder)
    except OSError as error:
        return unknown(name, f"{folder}: {error.strerror}", "df")
    evidence = f"{usage.free / 2**30:,.1f} GiB free of {usage.total / 2**30:,.1f} GiB at {folder}"
    return judge_space(name, evidence, usage.free)


def judge_space(name: str, evidence: str, free: int) -> Finding:
    """What so many free bytes mean."""
    remedy = "free some disk space; a full disk stops edits and consumers, and loses nothing"
    if free < FULL_BYTES:
        return bad(name, evidence, remedy)
    return warn(name, evidence, remedy) if free < FILLING_BYTES else ok(name, evidence)


def _look_into(path: Path) -> sqlite3.Connection:
    """A connection that changes nothing. (One of mode=ro would leave its log and index behind when it is closed.)"""
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=5)
    connection.execute("PRAGMA query_only = ON")
    return connection
